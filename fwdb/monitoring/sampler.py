"""Takes readings and stores them in the schema `monitoring`."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.arguments import Days, Seconds
from fwdb.errors import FeatureUnavailable, FwdbError, ParameterError, PermissionDenied
from fwdb.models import monitoring as tables
from fwdb.monitoring import readings, relations, servers, statements
from fwdb.monitoring.context import Context
from fwdb.stores import MongoStore, PoolStats
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


# -- questions ------------------------------------------------------------------------------------


def sample(self: Context, kind: Kind = "light") -> Sample:
    """Store one reading: the pools and commands of this process, and of the servers
    sessions and counters (``light``), and every statement's counters too (``full``).

    While another sampler reads the servers, only this process's part is stored. Raises
    `FeatureUnavailable` when the database has no schema for it or takes no writes,
    `PermissionDenied` when the role may not.
    """
    return _take(self, kind, {"light": 0.0, "full": 0.0})


@contextmanager
def sampling(self: Context, *, every: Seconds = 30, full_every: Seconds = 300) -> Iterator[None]:
    """Store readings in the background while the block runs.

    A full reading first and last, a light one every `every` seconds and a full one every
    `full_every`. Samplers of several processes take turns with the servers' part.
    """
    sample(self, "full")
    stop = threading.Event()

    def work() -> None:
        if not stop.wait(every):
            try:
                run(self, every, full_every=full_every, stop=stop)
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
            sample(self, "full")
        except FwdbError as error:
            # The block's own result or error matters more than its last reading.
            logger.warning("the last reading was not stored: %s", error)


def run(
    self: Context,
    interval: Seconds = 30,
    *,
    full_every: Seconds | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[Sample], object] | None = None,
) -> None:
    """Store readings every `interval` seconds until `stop` is set, or for ever.

    Full ones every 5 minutes, or every `full_every` seconds. A store that does not answer is
    tried again at the next turn.
    """
    full_every = max(300.0, interval) if full_every is None else full_every
    stop = stop or threading.Event()
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
            taken = _take(self, "full", spacing)
            if progress is not None:
                progress(taken)
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


def prune(self: Context, days: Days = 30) -> int:
    """Remove readings older than `days` now; how many. Sampling does so by itself."""
    self.history.require_writable()
    with self.history.store.transaction() as connection:
        return expire(connection, days)


# -- one reading ----------------------------------------------------------------------------------


def _take(self: Context, kind: Kind, spacing: Mapping[str, float]) -> Sample:
    """Store one reading.

    The servers are left out while another sampler reads them, and when the last reading of
    this kind is younger than `spacing` has for it, in seconds.
    """
    self.history.require_writable()
    checkpoint = self.ledger.checkpoint()
    rows: dict[str, int] = {}
    missing: dict[str, str] = {}
    details: dict[str, Any] = {"commands_since": checkpoint.since.isoformat()}
    # Before the transaction, in which a MongoDB that does not answer would hold it open. Another
    # sampler may still be first, and then it is asked in vain.
    with self.history.store.connection() as connection:
        full = _due(connection, kind, spacing) == "full"
    counters = _mongodb(self.mongodb, missing, full=full)
    with self.history.store.transaction() as connection:
        reading_id, read_at = connection.execute(
            sa.insert(tables.readings)
            .values(kind="process", process=self.process, details=details)
            .returning(tables.readings.c.reading_id, tables.readings.c.read_at)
            .prefix_with(OWN)
        ).one()

        def insert(table: str, found: Iterable[Mapping[str, Any]]) -> int:
            kept = [{"reading_id": reading_id, **row} for row in found]
            return readings.insert(connection, table, kept)

        # A pool that was never used tells nothing about the work of this process.
        pools = [pool for pool in (store.pool() for store in self.watched) if pool.opened]
        rows["pools"] = insert("pool_samples", map(_pool, pools))
        rows["commands"] = insert("command_samples", map(asdict, checkpoint.commands))
        stored = _due(connection, kind, spacing, read_at) if _locked(connection) else "process"
        if stored != "process":
            rows["sessions"] = insert("session_samples", self.postgres.rows("sessions"))
            counters = [*_postgres(self, missing, full=stored == "full"), *counters]
            rows["counters"] = insert("counter_samples", counters)
        if stored == "full":
            # A server that records no statements still gives a light reading.
            try:
                with self.postgres.transaction(), self.history.store.transaction() as savepoint:
                    details["statements"] = statements.kept(statements.recorder(self.postgres))
                    count = statements.store_reading(self.postgres, savepoint, reading_id)
            except (FeatureUnavailable, PermissionDenied) as error:
                details.pop("statements", None)
                missing["statements"] = str(error)
                stored, count = "light", 0
            rows["statements"] = count
        connection.execute(
            sa.update(tables.readings)
            .where(tables.readings.c.reading_id == reading_id)
            .values(kind=stored, details=details | {"missing": missing})
            .prefix_with(OWN)
        )
    self.ledger.settle(checkpoint)
    if stored != "process" and time.monotonic() >= self.tidy_at:
        tidy(self)
    return Sample(int(reading_id), read_at, stored, rows, missing)


def _postgres(self: Context, missing: dict[str, str], *, full: bool) -> list[dict[str, Any]]:
    """Counters of PostgreSQL by subject; `missing` gets why one could not be read."""
    store = self.postgres
    asked: dict[str, Callable[[], dict[str, Any]]] = {}
    if store.server_version >= readings.IO_MINIMUM:
        asked["io"] = lambda: readings.io_counters(store)
    if full:
        asked["server"] = lambda: readings.server_facts(store)
        asked["settings"] = lambda: servers.settings_reading(store, self.history)
        asked["tables"] = lambda: relations.sizes(store.rows("table_states"))
    found = [_counters("postgres", "database", readings.database_counters(store))]
    for subject, ask in asked.items():
        try:
            with store.transaction():  # a refusal ends the savepoint and not the reading
                found.append(_counters("postgres", subject, ask()))
        except FwdbError as error:
            missing[subject] = str(error)
    return found


def _mongodb(store: MongoStore, missing: dict[str, str], *, full: bool) -> list[dict[str, Any]]:
    """Those of MongoDB; none when it does not answer. Sizes of collections only where telling
    them reads no document."""
    try:
        found = [_counters("mongodb", "server", readings.mongodb_counters(store))]
        if full and not store.is_secantus:
            sizes = relations.sizes(relations.mongodb_tables(store))
            found.append(_counters("mongodb", "tables", sizes))
    except FwdbError as error:
        missing["mongodb"] = str(error)
        return []
    return found


def _counters(database: str, subject: str, counters: dict[str, Any]) -> dict[str, Any]:
    return {"database": database, "subject": subject, "counters": counters}


_POOL_FIELDS = tuple(
    column.name for column in tables.pool_samples.columns if hasattr(PoolStats, column.name)
)


def _pool(pool: PoolStats) -> dict[str, Any]:
    durations = {name: getattr(pool, name) for name in ("wait", "hold", "dial")}
    return {
        **{name: getattr(pool, name) for name in _POOL_FIELDS},
        **{f"{name}_counts": list(one.counts) for name, one in durations.items()},
        **{f"{name}_ms": one.total_ms for name, one in durations.items()},
    }


def _due(
    connection: Connection, kind: Kind, spacing: Mapping[str, float], at: datetime | None = None
) -> str:
    """What a reading of `at`, or of now, has of the servers: ``full``, ``light``, ``process``.

    By the times of the readings alone: between the time of one and this question lies the
    time that the server took for what came between.
    """
    last = "extract(epoch FROM n.at - (SELECT max(read_at) FROM monitoring.readings WHERE kind = "
    ages = connection.execute(
        sa.text(
            f"SELECT {last} 'full')), {last} 'light')) "
            f"FROM (SELECT coalesce(CAST(:at AS timestamptz), clock_timestamp()) AS at) AS n {OWN}"
        ),
        {"at": at},
    ).one()
    full, light = (math.inf if age is None else float(age) for age in ages)
    if kind == "full" and (not spacing["full"] or full >= spacing["full"]):
        return "full"
    return "light" if not spacing["light"] or min(full, light) >= spacing["light"] else "process"


def _locked(connection: Connection) -> bool:
    """Whether this sampler is the one, until the transaction ends."""
    found = connection.execute(
        sa.text(f"SELECT pg_try_advisory_xact_lock(:area, :key) {OWN}"),
        {"area": LOCK[0], "key": LOCK[1]},
    )
    return bool(found.scalar_one())


def tidy(self: Context) -> None:
    """Thin and remove old readings, a part of them each time, unless another sampler does."""
    try:
        with self.history.store.transaction() as connection:
            if not _locked(connection):
                return
            removed = expire(connection, self.history.days, most=MOST)
            removed += thin(connection, self.detail_days, most=MOST)
    except FwdbError as error:
        # The reading is stored; what is old can be dealt with in an hour.
        logger.warning("old readings were not thinned out: %s", error)
        removed = 0
    pause = 0 if removed >= MOST else _TIDY_SECONDS
    self.tidy_at = time.monotonic() + pause


# Readings that one turn deals with: some seconds of work at most, on a history that was left
# alone for months. What is left waits for the next turn.
MOST = 1000

_EXPIRED = f"""
    DELETE FROM monitoring.readings WHERE reading_id IN (
        SELECT reading_id FROM monitoring.readings
        WHERE read_at < clock_timestamp() - make_interval(secs => :age)
        ORDER BY reading_id LIMIT :most
    ) {OWN}
"""

_UNUSED_TEXTS = f"""
    DELETE FROM monitoring.statement_texts AS t WHERE NOT EXISTS (
        SELECT FROM monitoring.statement_samples AS s
        WHERE s.query_id = t.query_id AND s.database_id = t.database_id
    ) {OWN}
"""

# Of each process and kind the last reading of an hour stays: counters are since their beginning,
# so differences across the removed ones stay what they were.
_SUPERFLUOUS = f"""
    SELECT reading_id, kept FROM (
        SELECT reading_id, last_value(reading_id) OVER (
            PARTITION BY process, kind, date_trunc('hour', read_at, 'UTC')
            ORDER BY read_at, reading_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS kept
        FROM monitoring.readings
        WHERE read_at < date_trunc(
            'hour', clock_timestamp() - make_interval(secs => :age), 'UTC'
        )
    ) AS r
    WHERE reading_id <> kept
    ORDER BY reading_id LIMIT :most {OWN}
"""

_REMOVED = "unnest(CAST(:removed AS bigint[]), CAST(:kept AS bigint[])) AS r (reading_id, kept)"

# A pool's state is that of a moment: the kept one gets the fullest moment of the hour.
_PEAKS = f"""
    UPDATE monitoring.pool_samples AS p SET
        in_use = greatest(p.in_use, m.in_use),
        overflow = greatest(p.overflow, m.overflow),
        waiting = greatest(p.waiting, m.waiting)
    FROM (
        SELECT r.kept, s.database, max(s.in_use) AS in_use, max(s.overflow) AS overflow,
            max(s.waiting) AS waiting
        FROM {_REMOVED} JOIN monitoring.pool_samples AS s USING (reading_id)
        GROUP BY r.kept, s.database
    ) AS m
    WHERE p.reading_id = m.kept AND p.database = m.database {OWN}
"""


# The kept reading stands for the time of all of them.
_BEGINNINGS = f"""
    UPDATE monitoring.readings AS k SET
        details = k.details || jsonb_build_object('commands_since', m.commands_since)
    FROM (
        SELECT r.kept, min(s.details ->> 'commands_since') AS commands_since
        FROM {_REMOVED} JOIN monitoring.readings AS s USING (reading_id)
        GROUP BY r.kept
    ) AS m
    WHERE k.reading_id = m.kept AND m.commands_since < k.details ->> 'commands_since' {OWN}
"""


# Commands are stored as what came since the reading before: those of removed ones are added.
_COMMANDS = f"""
    WITH moved AS (
        DELETE FROM monitoring.command_samples AS s
        USING (SELECT * FROM {_REMOVED} UNION SELECT kept, kept FROM {_REMOVED}) AS r
        WHERE s.reading_id = r.reading_id
        RETURNING r.kept, s.*
    )
    INSERT INTO monitoring.command_samples (
        reading_id, command, namespace, shape, calls, errors, total_ms, squares_ms2, max_ms,
        documents, histogram
    )
    SELECT kept, command, namespace, shape, calls, errors, total_ms, squares_ms2, max_ms,
        documents, ARRAY(
            SELECT sum(n) FROM unnest(histograms) WITH ORDINALITY AS cell (n, place)
            GROUP BY (place - 1) % width ORDER BY (place - 1) % width
        )
    FROM (
        SELECT kept, command, namespace, shape, sum(calls) AS calls, sum(errors) AS errors,
            sum(total_ms) AS total_ms, sum(squares_ms2) AS squares_ms2, max(max_ms) AS max_ms,
            sum(documents) AS documents, array_agg(histogram) AS histograms,
            min(cardinality(histogram)) AS width
        FROM moved GROUP BY kept, command, namespace, shape
    ) AS summed {OWN}
"""


def expire(connection: Connection, days: float, *, most: int | None = None) -> int:
    """Remove readings older than `days`, and texts nobody refers to; readings removed."""
    removed = connection.execute(sa.text(_EXPIRED), {"age": 86400 * days, "most": most}).rowcount
    if removed:
        connection.execute(sa.text(_UNUSED_TEXTS))
    return int(removed)


def thin(connection: Connection, days: float, *, most: int | None = None) -> int:
    """Leave one reading per hour, process and kind of those older than `days`; readings removed.

    Counters since a beginning lose nothing. Commands, which are stored as what came since the
    reading before, are added to those of the kept reading.
    """
    found = connection.execute(sa.text(_SUPERFLUOUS), {"age": 86400 * days, "most": most}).all()
    if not found:
        return 0
    pairs = {"removed": [row.reading_id for row in found], "kept": [row.kept for row in found]}
    for statement in (_PEAKS, _BEGINNINGS, _COMMANDS):
        connection.execute(sa.text(statement), pairs)
    connection.execute(
        sa.text(f"DELETE FROM monitoring.readings WHERE reading_id = ANY(:removed) {OWN}"), pairs
    )
    return len(found)
