"""A session of PostgreSQL: how it is reached, what it is told first, how long it is waited for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready
from sqlalchemy.engine import URL, Connection, make_url

from fwdb import errors

if TYPE_CHECKING:
    from fwdb.stores.timing import QueryTimes

MINIMUM_VERSION = 140000  # PostgreSQL 14, the oldest release that fwdb is tested for
OF_PARENT = (
    "this transaction was begun by the parent process, before the fork, and only that may go on "
    "with it; leave its block, then begin one here"
)
_CANCEL_SECONDS = 1.0

T = TypeVar("T")


class Silent(psycopg.OperationalError):
    """The server sent nothing for `seconds`; the connection is closed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")
        self.seconds = seconds


class Session(psycopg.Connection[Any]):
    """A connection that waits for its server no longer than it has to.

    psycopg waits for ever. A server that is frozen, or behind a network that swallows packets,
    sends nothing and closes nothing, so neither it nor the system ends the wait. Here one that
    sends nothing for `silence` seconds is given up, with `Silent`, and nothing more is said to it.
    A statement that it may work on for longer, `allowed` seconds, is waited for while it `answers`
    on another connection.

    Each process has its own: after a fork both would read the answers of one socket.
    """

    silence = 5.0
    allowed = 0.0
    ping_seconds = 5.0
    answers: Callable[[], bool]
    times: QueryTimes

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opened_by = os.getpid()

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Whatever `gen` returns; all that psycopg asks a server comes through here."""
        if self._opened_by != os.getpid():
            raise psycopg.InterfaceError(OF_PARENT)
        try:
            return waiting.wait(self._heard(gen), self.pgconn.socket, interval, timeout)
        except (KeyboardInterrupt, SystemExit):
            # psycopg waits for 10 s then. What is left of the answer makes it useless anyway.
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                with contextlib.suppress(psycopg.Error):
                    self.cancel_safe(timeout=_CANCEL_SECONDS)
                self.pgconn.finish()
            raise

    def _heard(self, gen: PQGen[T]) -> PQGen[T]:
        """`gen`, which ends with `Silent` when the server says nothing any more."""
        began = heard = monotonic()
        ready: Ready | int | None = None
        while True:
            try:
                state = gen.send(ready)  # type: ignore[arg-type]
            except StopIteration as end:
                found: T = end.value
                return found
            ready = yield state
            if ready:
                heard = monotonic()
            elif monotonic() - heard >= self.silence:
                if monotonic() - began >= self.allowed or not self.answers():
                    self.pgconn.finish()
                    raise Silent(self.silence)
                heard = monotonic()

    @property
    def is_lost(self) -> bool:
        """Whether nothing more can be asked: closed, or in the midst of an answer."""
        return self.closed or self.pgconn.transaction_status == TransactionStatus.ACTIVE

    def allow(self, seconds: float) -> None:
        """Let statements take so long, and a little for the server to say that it stopped one."""
        self.allowed = 1.1 * seconds

    def ping(self) -> bool:
        """True, or an error: nothing is asked. It may take as long as dialling another."""
        given = self.silence, self.allowed, self.autocommit
        self.silence, self.allowed, self.autocommit = self.ping_seconds, 0.0, True
        try:
            psycopg.Cursor(self).execute("")
        finally:
            self.silence, self.allowed = given[:2]
            if not self.closed:
                self.autocommit = given[2]
        return True

    def rollback(self) -> None:
        """Roll back, unless the server does by itself, or the parent process is to do it."""
        if not self.closed and self._opened_by == os.getpid():
            super().rollback()

    def close(self) -> None:
        """Close the connection; one of the parent process stays as it is."""
        if self._opened_by == os.getpid():
            super().close()


def driver_of(connection: Connection) -> Session:
    """The driver's own connection behind one of SQLAlchemy."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, Session)
    return driver


def answers(*args: Any, **options: Any) -> bool:
    """Whether a server takes a new connection, or refuses it in words."""
    try:
        psycopg.connect(*args, **options).close()
    except psycopg.OperationalError as error:
        return not isinstance(error, psycopg.errors.ConnectionTimeout)
    return True


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


def options(url: URL, *, connect_seconds: float, silence: float, name: str) -> dict[str, Any]:
    """Options of libpq for `url`; those that it has itself win.

    With keepalives, so that the system notices a network that lost an idle connection.
    """
    ours = {
        "connect_timeout": max(2, round(connect_seconds)),
        "application_name": name,
        "keepalives_idle": max(1, round(silence)),
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    return ours | {n: v for n, v in url.query.items() if n.startswith("keepalives")}


def require_version(session: Session, address: str) -> None:
    """Refuse a server that is too old."""
    version = session.info.server_version
    if version < MINIMUM_VERSION:
        raise errors.FeatureUnavailable(
            f"postgres at {address} is version {version // 10000}; "
            f"fwdb needs {MINIMUM_VERSION // 10000} or newer."
        )
