"""Whether the stores answer: up, degraded or down, within a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import sqlalchemy as sa

from fwdb import queries
from fwdb.arguments import Seconds
from fwdb.config import Thresholds
from fwdb.errors import (
    AuthenticationFailed,
    FeatureUnavailable,
    FwdbError,
    PermissionDenied,
    PoolExhausted,
    QueryTimeout,
    StoreUnavailable,
)
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.timing import OWN

if TYPE_CHECKING:
    from fwdb.monitoring.context import Context

T = TypeVar("T")

State = Literal["up", "degraded", "down"]

Cause = Literal[
    "no_answer",
    "unreachable",
    "login_refused",
    "not_allowed",
    "too_old",
    "error",
    "slow",
    "read_only",
    "schema_behind",
    "pool_full",
]

_ORDER: tuple[State, ...] = ("up", "degraded", "down")

# The first that fits. The pool here is that of the kept connection: it is taken by a question
# that is still open.
_CAUSES: tuple[tuple[type[FwdbError], Cause], ...] = (
    (PoolExhausted, "no_answer"),
    (QueryTimeout, "no_answer"),
    (AuthenticationFailed, "login_refused"),
    (StoreUnavailable, "unreachable"),
    (PermissionDenied, "not_allowed"),
    (FeatureUnavailable, "too_old"),
    (FwdbError, "error"),
)

# Longer than a busy server needs to answer the least question, and short enough that callers
# who allow a second and a half for both stores get their answer.
DEADLINE_SECONDS = 1.0

# Why the schema of a store is not the one that this release wants; empty when it is.
Behind = Callable[[PostgresStore | MongoStore], str]


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """One store now. `latency_ms` is the time of one small question, None when it failed.

    `reason` is for people who may know the address; `causes` are words out of a fixed set, for
    those who may not.
    """

    database: str
    status: State
    latency_ms: float | None
    reason: str
    version: str | None
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """All stores; `status` is that of the worst."""

    status: State
    stores: tuple[StoreHealth, ...]

    def __str__(self) -> str:
        return "; ".join(
            f"{store.database} is {store.status}" + (f": {store.reason}" if store.reason else "")
            for store in self.stores
        )


# Milliseconds, version, and remarks by their cause when a server is not fully well.
Answer = tuple[float, str, dict[Cause, str]]


class Question(Future[T]):
    """One question on its way; its outcome is that of `ask`, which `thread` runs.

    `seconds` is how long it took, or takes so far.
    """

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        super().__init__()
        self._started = time.monotonic()
        self._took: float | None = None
        self.thread = threading.Thread(target=self._run, args=(ask,), name=name, daemon=True)
        self.thread.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started if self._took is None else self._took

    def _run(self, ask: Callable[[], T]) -> None:
        try:
            answer = ask()
        except BaseException as error:  # noqa: BLE001  raised for who asks for the result
            self._took = self.seconds
            self.set_exception(error)
        else:
            self._took = self.seconds
            self.set_result(answer)


class Probe(Generic[T]):
    """Asks in a thread of its own, so that a silent server costs only the deadline.

    A question that is still open when the next one is due is waited for instead: a frozen server
    holds one thread, however often it is asked.
    """

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        self._name = f"fwdb-{name}"
        self._ask = ask
        self._lock = threading.Lock()
        self._open: Question[T] | None = None

    def start(self) -> Question[T]:
        """The question, on its way."""
        with self._lock:
            question = self._open
            # After a fork its thread is the parent's.
            if question is None or question.done() or not question.thread.is_alive():
                question = self._open = Question(self._name, self._ask)
            return question


def probes(
    postgres: PostgresStore, mongodb: MongoStore, behind: Behind
) -> dict[str, Probe[Answer]]:
    """One small question to each store, and whether its schema fits."""
    return {
        "postgres": Probe("health-postgres", lambda: _ask_postgres(postgres, behind)),
        "mongodb": Probe("health-mongodb", lambda: _ask_mongodb(mongodb, behind)),
    }


def _ask_postgres(store: PostgresStore, behind: Behind) -> Answer:
    body = queries.load("server_state").statement
    question = sa.text(f"{body}\n{OWN}")
    # A transaction, so that all of it takes one connection out of the pool and tests it once.
    with store.transaction() as connection:
        connection.execute(sa.text(f"SELECT 1 {OWN}"))  # begins it: what follows is one round trip
        started = time.perf_counter()
        version, in_recovery, read_only = connection.execute(question).one()
        latency = 1000 * (time.perf_counter() - started)
        remark = ""
        if in_recovery:
            remark = "it is a replica or still recovers, and takes no writes"
        elif read_only:
            remark = (
                "its database takes no writes unless a session asks for them "
                "(default_transaction_read_only is on)"
            )
        return _answer(latency, str(version), remark, store, behind)


def _ask_mongodb(store: MongoStore, behind: Behind) -> Answer:
    version = str(store.build_info["version"])
    with store.errors():
        started = time.perf_counter()
        hello = store.client.admin.command("hello")
        latency = 1000 * (time.perf_counter() - started)
    remark = "" if hello.get("isWritablePrimary") else "it is not the primary, and takes no writes"
    return _answer(latency, version, remark, store, behind)


def _answer(
    latency: float, version: str, remark: str, store: PostgresStore | MongoStore, behind: Behind
) -> Answer:
    try:
        schema = behind(store).rstrip(".")
    except PermissionDenied:
        schema = ""  # a role that may not see the revision can still do its own work
    remarks: dict[Cause, str] = {"read_only": remark, "schema_behind": schema}
    return latency, version, {cause: text for cause, text in remarks.items() if text}


def health(self: Context, *, timeout_seconds: Seconds = DEADLINE_SECONDS) -> Health:
    """Whether each store is up, degraded or down, with the reason; never raises for a store.

    Each is asked on a connection kept for this, so that a full pool shows as ``degraded``
    and not as a dead server; one that does not answer within `timeout_seconds` is ``down``.
    ``degraded`` is also a server that answers slowly, takes no writes, or has a schema that
    'fwdb migrate' was not run on.
    """
    watched: tuple[PostgresStore | MongoStore, ...] = self.watched
    questions = [probe.start() for probe in self.probes.values()]
    wait(questions, timeout=timeout_seconds)
    stores = tuple(
        _judge(store, question, self.thresholds, timeout_seconds)
        for store, question in zip(watched, questions, strict=True)
    )
    return Health(max((s.status for s in stores), key=_ORDER.index), stores)


def _judge(
    store: PostgresStore | MongoStore,
    question: Question[Answer],
    thresholds: Thresholds,
    seconds: float,
) -> StoreHealth:
    database = store.name
    if not question.done():
        reason = f"no answer from {database} at {store.address} within {seconds:g} s"
        return StoreHealth(database, "down", None, reason, None, ("no_answer",))
    error = question.exception()
    if isinstance(error, FwdbError):
        cause = next(cause for kind, cause in _CAUSES if isinstance(error, kind))
        return StoreHealth(database, "down", None, str(error), None, (cause,))
    latency, version, remarks = question.result()
    found, pool, limit = dict(remarks), store.pool(), thresholds.health_timeout_ms
    if latency > limit:
        found["slow"] = f"it took {latency:.0f} ms to answer, more than {limit:g} ms"
    if pool.capacity is not None and pool.in_use >= pool.capacity:
        waiting = f" and {pool.waiting} callers wait" if pool.waiting else ""
        found["pool_full"] = (
            f"the server answers, but all {pool.capacity} connections of this process's pool "
            f"are in use{waiting}"
        )
    status: State = "degraded" if found else "up"
    reason = "; ".join(found.values())
    return StoreHealth(database, status, latency, reason, version, tuple(found))
