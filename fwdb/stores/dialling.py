"""How PostgreSQL is reached: the URL as the driver wants it, and what a new connection is told."""

from __future__ import annotations

from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from fwdb import errors

MINIMUM_VERSION = 140000  # PostgreSQL 14, the oldest release that fwdb is tested for


def keepalive(seconds: int) -> dict[str, int]:
    """Options of libpq for a connection that is given up when the network is silent so long.

    Without them a connection whose other end is gone, without a word, is waited for for hours.
    """
    if not seconds:
        return {}
    return {
        "keepalives_idle": seconds,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * seconds,
    }


def parse_url(url: str) -> URL:
    """The URL as SQLAlchemy reads it, always with psycopg 3. Raises `ConfigError`."""
    try:
        parsed = make_url(url)
        if "@" in (parsed.host or ""):  # the rest of a password, which ends at the first
            raise ValueError
    except (sa.exc.ArgumentError, ValueError):
        # The text itself may hold the password, so it is not repeated.
        raise errors.ConfigError(
            "the PostgreSQL URL cannot be read; write "
            "postgresql://user:password@host:5432/database, with special characters as %XX."
        ) from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise errors.ConfigError(
            f"the PostgreSQL URL starts with '{parsed.drivername}://'; write postgresql://…"
        )
    return parsed.set(drivername="postgresql+psycopg")


def session(*, timeout_ms: int, lock_timeout_ms: int, read_only: bool) -> str:
    """The settings of a session, as statements: connection poolers refuse them at the start-up.

    Planned anew each time: optional parameters (NULL lets all through) want another plan for each
    use, and a generic one would read the whole table for the narrowest question.
    """
    settings = (
        "SET plan_cache_mode = force_custom_plan;"
        f" SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET statement_timeout = {timeout_ms};"
        f" SET default_transaction_read_only = {'on' if read_only else 'off'}"
    )
    return settings + (f"; SET lock_timeout = {lock_timeout_ms}" if lock_timeout_ms else "")


def prepare(connection: psycopg.Connection[Any], session: str, address: str) -> None:
    """Refuse a server that is too old, and tell a new connection the settings of its session."""
    version = connection.info.server_version
    if version < MINIMUM_VERSION:
        raise errors.FeatureUnavailable(
            f"postgres at {address} is version {version // 10000}; "
            f"fwdb needs {MINIMUM_VERSION // 10000} or newer."
        )
    connection.autocommit = True
    connection.execute(session)
    connection.autocommit = False
