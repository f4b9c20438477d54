"""Takes readings and stores them in the schema `monitoring`."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.errors import (
    FeatureUnavailable,
    FwdbError,
    ParameterError,
    PermissionDenied,
)
from fwdb.models import monitoring as tables
from fwdb.monitoring import cache, elsewhere, retention, server_readings, sessions, statements
from fwdb.monitoring.commands import Checkpoint, CommandLedger
from fwdb.monitoring.history import History
from fwdb.stores import MongoStore, PoolStats, PostgresStore
from fwdb.stores.timing import OWN

logger = logging.getLogger(__name__)

Kind = Literal["light", "full"]

# One key for all samplers of a database; the first half is "fwdb" in ASCII, as is the key that
# migrations take.
LOCK = (0x66776462, 0x6D6F6E69)

# A sampler takes its turn a little early, so that its own clock never makes it miss one.
_EARLY = 0.9

# Nothing gets older than the hours that are thinned to one reading more often than this.
_TIDY_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored reading: how many rows went where, and what could not be read.

    `kind` is ``process`` when another sampler stores the servers' readings at this moment; the
    pools and commands of this process are stored all the same.
    """

    reading_id: int
    read_at: datetime
    kind: str
    rows: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        stored = ", ".join(f"{n} {name}" for name, n in self.rows.items() if n) or "nothing"
        said = "".join(f"; {reason}" for reason in self.missing.values())
        return f"{self.kind} reading {self.reading_id}: {stored}{said}"


class Sampler:
    """Stores readings of both servers and of this process in the history.

    `store` is the monitor's own, on the database that is watched; the history may be in another.
    Readings older than `detail_days` are thinned to one per hour, and those older than the
    history keeps are removed, by the sampler itself.
    """

    def __init__(
        self,
        store: PostgresStore,
        mongodb: MongoStore,
        pools: Callable[[], list[PoolStats]],
        ledger: CommandLedger,
        history: History,
        *,
        process: str,
        detail_days: float = 7,
    ) -> None:
        self._store = store
        self._detail_days = detail_days
        self._tidy_at = time.monotonic()
        self._mongodb = mongodb
        self._pools = pools
        self._ledger = ledger
        self._history = history
        self.process = process

    def sample(self, kind: Kind = "light", *, spacing: Mapping[str, float] | None = None) -> Sample:
        """Store one reading; see `Monitor.sample`.

        The servers are left out while another sampler reads them, and when the last reading of
        this kind is younger than `spacing` has for it, in seconds.
        """
        self._history.require_writable()
        checkpoint = self._ledger.checkpoint()
        rows: dict[str, int] = {}
        missing: dict[str, str] = {}
        details: dict[str, Any] = {"commands_since": checkpoint.since.isoformat()}
        # Before the transaction: a MongoDB that does not answer must not hold it open.
        mongodb = self._mongodb_counters(missing, full=self._full_is_due(kind, spacing or {}))
        with self._history.store.transaction() as connection:
            reading_id, read_at = self._begin(connection, details)
            rows["pools"] = self._store_pools(connection, reading_id)
            rows["commands"] = _store_commands(connection, reading_id, checkpoint)
            stored = self._turn(connection, kind, spacing or {}, read_at)
            if stored != "process":
                rows["sessions"] = self._store_sessions(connection, reading_id)
                rows["counters"] = self._store_counters(
                    connection, reading_id, mongodb, missing, full=stored == "full"
                )
            if stored == "full":
                stored, rows["statements"] = self._store_statements(reading_id, details, missing)
            connection.execute(
                sa.update(tables.readings)
                .where(tables.readings.c.reading_id == reading_id)
                .values(kind=stored, details=details | {"missing": missing})
                .prefix_with(OWN)
            )
        self._ledger.settle(checkpoint)
        if stored != "process" and time.monotonic() >= self._tidy_at:
            self._tidy()
        return Sample(reading_id, read_at, stored, rows, missing)

    def _begin(self, connection: Connection, details: dict[str, Any]) -> tuple[int, datetime]:
        row = connection.execute(
            sa.insert(tables.readings)
            .values(kind="process", process=self.process, details=details)
            .returning(tables.readings.c.reading_id, tables.readings.c.read_at)
            .prefix_with(OWN)
        ).one()
        return int(row.reading_id), row.read_at

    def _turn(
        self, connection: Connection, kind: Kind, spacing: Mapping[str, float], at: datetime
    ) -> str:
        """What the reading of `at` is to have of the servers: ``full``, ``light``, ``process``."""
        if not _locked(connection):
            return "process"
        if kind == "full" and not self._young(connection, ["full"], spacing.get("full", 0), at):
            return "full"
        if not self._young(connection, ["light", "full"], spacing.get("light", 0), at):
            return "light"
        return "process"

    def _full_is_due(self, kind: Kind, spacing: Mapping[str, float]) -> bool:
        """Seen before its turn, so another sampler may be first: then MongoDB is asked in vain."""
        with self._history.store.connection() as connection:
            return kind == "full" and not self._young(connection, ["full"], spacing.get("full", 0))

    def _young(
        self, connection: Connection, kinds: list[str], seconds: float, at: datetime | None = None
    ) -> bool:
        """Whether one of `kinds` was read within the `seconds` before `at`, or before now.

        By the times of the readings alone: between the time of one and this question lies the
        time that the server took for what came between.
        """
        if not seconds:
            return False
        found = connection.execute(
            sa.text(
                "SELECT EXISTS (SELECT FROM monitoring.readings WHERE kind = ANY(:kinds) AND "
                "read_at > coalesce(CAST(:at AS timestamptz), clock_timestamp()) "
                f"- make_interval(secs => :seconds)) {OWN}"
            ),
            {"kinds": kinds, "seconds": seconds, "at": at},
        )
        return bool(found.scalar_one())

    def _store_pools(self, connection: Connection, reading_id: int) -> int:
        # A pool that was never used tells nothing about the work of this process.
        rows = [
            {
                "reading_id": reading_id,
                **{name: getattr(pool, name) for name in _POOL_FIELDS},
                "wait_counts": list(pool.wait.counts),
                "hold_counts": list(pool.hold.counts),
                "hold_ms": pool.hold.total_ms,
                "dial_counts": list(pool.dial.counts),
                "dial_ms": pool.dial.total_ms,
            }
            for pool in self._pools()
            if pool.opened
        ]
        return _insert(connection, tables.pool_samples, rows)

    def _store_sessions(self, connection: Connection, reading_id: int) -> int:
        rows = [
            {"reading_id": reading_id, **row} for row in sessions.postgres_sessions(self._store)
        ]
        return _insert(connection, tables.session_samples, rows)

    def _store_counters(
        self,
        connection: Connection,
        reading_id: int,
        mongodb: dict[str, dict[str, Any]],
        missing: dict[str, str],
        *,
        full: bool,
    ) -> int:
        rows = [
            {
                "reading_id": reading_id,
                "database": "postgres",
                "subject": "database",
                "counters": cache.postgres_counters(self._store),
            }
        ]
        rows += [
            {"reading_id": reading_id, "database": "mongodb", "subject": s, "counters": c}
            for s, c in mongodb.items()
        ]
        found = server_readings.postgres(self._store, self._history, missing, full=full)
        rows += [
            {"reading_id": reading_id, "database": "postgres", "subject": s, "counters": c}
            for s, c in found
        ]
        return _insert(connection, tables.counter_samples, rows)

    def _mongodb_counters(
        self, missing: dict[str, str], *, full: bool
    ) -> dict[str, dict[str, Any]]:
        """Counters of MongoDB by subject; none when it does not answer."""
        try:
            return server_readings.mongodb(self._mongodb, full=full)
        except FwdbError as error:
            missing["mongodb"] = str(error)
            return {}

    def _store_statements(
        self, reading_id: int, details: dict[str, Any], missing: dict[str, str]
    ) -> tuple[str, int]:
        """A server that records no statements still gives a light reading."""
        target = self._history.store
        try:
            if target is self._store:
                with target.transaction() as savepoint:
                    found = statements.recorder(target)
                    count = statements.store_reading(target, savepoint, reading_id)
            else:
                with self._store.transaction(), target.transaction() as savepoint:
                    found = statements.recorder(self._store)
                    count = elsewhere.copy_statements(self._store, savepoint, reading_id)
        except (FeatureUnavailable, PermissionDenied) as error:
            missing["statements"] = str(error)
            return "light", 0
        details["statements"] = found.details
        return "full", count

    def _tidy(self) -> None:
        """Thin and remove old readings, a part of them each time, unless another sampler does."""
        try:
            with self._history.store.transaction() as connection:
                if not _locked(connection):
                    return
                removed = retention.expire(connection, self._history.days, most=retention.MOST)
                removed += retention.thin(connection, self._detail_days, most=retention.MOST)
        except FwdbError as error:
            # The reading is stored; what is old can be dealt with in an hour.
            logger.warning("old readings were not thinned out: %s", error)
            removed = 0
        pause = 0 if removed >= retention.MOST else _TIDY_SECONDS
        self._tidy_at = time.monotonic() + pause

    # -- in the background ------------------------------------------------------------------------

    def run(
        self,
        *,
        interval: float,
        full_every: float,
        stop: threading.Event,
        said: Callable[[Sample], object] | None = None,
    ) -> None:
        """Take readings until `stop` is set.

        A store that does not answer is tried again at the next turn, and logged once. Raises
        `FeatureUnavailable` or `PermissionDenied` when readings can never be stored here.
        """
        if full_every < interval:
            raise ParameterError(
                f"readings every {interval:g} s and full ones every {full_every:g} s cannot be: "
                "the second must not be smaller.",
                name="interval",
            )
        spacing = {"light": _EARLY * interval, "full": _EARLY * full_every}
        turn, trouble = time.monotonic(), ""
        while not stop.is_set():
            try:
                # Whether a full one is due is seen from the history, for all samplers alike.
                taken = self.sample("full", spacing=spacing)
                if said is not None:
                    said(taken)
                trouble = ""
            except (FeatureUnavailable, PermissionDenied):
                raise
            except FwdbError as error:
                if str(error) != trouble:
                    logger.warning("no reading was stored: %s", error)
                trouble = str(error)
            # Turns that were missed are not made up for.
            turn = max(turn + interval, time.monotonic())
            stop.wait(turn - time.monotonic())

    @contextmanager
    def sampling(self, *, every: float, full_every: float) -> Iterator[None]:
        """Readings from a thread while the block runs: a full one first and last."""
        self.sample("full")
        stop = threading.Event()

        def work() -> None:
            if not stop.wait(every):
                try:
                    self.run(interval=every, full_every=full_every, stop=stop)
                except FwdbError as error:
                    logger.warning("sampling has ended: %s", error)

        thread = threading.Thread(target=work, name="fwdb-sampling", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            try:
                self.sample("full")
            except FwdbError as error:
                # The block's own result or error matters more than its last reading.
                logger.warning("the last reading was not stored: %s", error)

    def prune(self, days: float) -> int:
        """Remove readings older than `days`, and texts nobody refers to; readings removed."""
        self._history.require_writable()
        with self._history.store.transaction() as connection:
            return retention.expire(connection, days)


_POOL_FIELDS = tuple(
    column.name for column in tables.pool_samples.columns if hasattr(PoolStats, column.name)
)


def process_name(application: str) -> str:
    """Who takes the readings: application, host and pid."""
    return f"{application}@{socket.gethostname()}:{os.getpid()}"


def _locked(connection: Connection) -> bool:
    """Whether this sampler is the one, until the transaction ends."""
    found = connection.execute(
        sa.text(f"SELECT pg_try_advisory_xact_lock(:area, :key) {OWN}"),
        {"area": LOCK[0], "key": LOCK[1]},
    )
    return bool(found.scalar_one())


def _store_commands(connection: Connection, reading_id: int, checkpoint: Checkpoint) -> int:
    names = [c.name for c in tables.command_samples.columns if c.name != "reading_id"]
    rows = [
        {
            "reading_id": reading_id,
            **{name: getattr(command, name) for name in names},
            "histogram": list(command.histogram),
        }
        for command in checkpoint.commands
    ]
    return _insert(connection, tables.command_samples, rows)


def _insert(connection: Connection, table: sa.Table, rows: list[dict[str, Any]]) -> int:
    if rows:
        connection.execute(sa.insert(table).prefix_with(OWN), rows)
    return len(rows)
