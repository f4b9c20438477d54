"""How PostgreSQL is reached: the URL as the driver wants it, and when the network is given up."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from fwdb import errors


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
