"""A workload for a demonstration: readers, writers and a crowd, through the pools of the stores."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Protocol

import sqlalchemy as sa

from fwdb import errors
from fwdb.arguments import Range, checks_arguments
from fwdb.models import DESIGNS, avatars, catalog_items, users
from fwdb.seeding.volume import ADDRESSES, COLORS, MOODS, OCCASIONS, USER_AGENTS
from fwdb.stores import MongoStore, PostgresStore, actor

# Settings for the stores of a workload: a pool that a handful of threads can fill.
POOL = MappingProxyType({"pool_size": 8, "pool_max_overflow": 4})

_SAMPLE = 200  # rows of each kind that the workload works on
_SLOW_LIMIT_MS = 2000  # a slow statement ends by then, so that a stop does not wait for it
_DESIGN_THREADS = 2  # more of them would stall the built-in MongoDB
_MOST_THREADS = 24  # and so the largest pool that is filled
_PAUSE_SECONDS = 0.04  # between two operations of a thread, on average
# Parts of the run, from 0 to 1: a crowd that fills nine tenths of the pool, and in the middle of
# it a few more than the pool has connections.
_CROWDED = (0.30, 0.70)
_OVERCROWDED = (0.45, 0.60)
_TOO_MANY = 3
# Any operation may meet these when much goes on at once.
_CONTENTION = (errors.Transient, errors.PoolExhausted, errors.QueryTimeout)

# Questions to PostgreSQL, with how common they are.
_QUICK = {
    "get_user": (40, "SELECT id, created_at FROM shared.users WHERE id = CAST(:user AS uuid)"),
    "page_catalog": (
        25,
        "SELECT id, name, price FROM catalog.catalog_items"
        " WHERE deleted_at IS NULL AND category = :category ORDER BY price, id LIMIT 20",
    ),
    "recent_audit": (
        15,
        "SELECT id, action, created_at FROM audit.audit_logs ORDER BY created_at DESC LIMIT 50",
    ),
    "trail_of_user": (
        15,
        "SELECT id, entity_type, action FROM audit.audit_logs"
        " WHERE user_id = CAST(:user AS uuid) ORDER BY created_at DESC LIMIT 50",
    ),
}
# Slow on purpose: each reads much of the audit log, because no index can serve it.
_SLOW = {
    "search_audit": (
        2,
        "SELECT count(*) FROM audit.audit_logs AS log"
        " WHERE CAST(to_jsonb(log) AS text) ~* :pattern",
    ),
    "sort_audit": (
        1,
        "SELECT count(*) FILTER (WHERE n % 1000 = 0) FROM (SELECT row_number()"
        " OVER (ORDER BY user_agent, ip_address, new_values, id) AS n FROM audit.audit_logs) AS t",
    ),
    "count_by_hour": (
        2,
        "SELECT extract(hour FROM created_at) AS hour, entity_type,"
        " count(DISTINCT user_id) AS users, count(DISTINCT entity_id) AS entities"
        " FROM audit.audit_logs GROUP BY 1, 2 ORDER BY 1, 2",
    ),
}
# So large that no server finishes it within the few milliseconds it gets.
_ENDLESS = sa.text("SELECT count(*) FROM generate_series(1, 100000000) AS n WHERE n % 7 = 3")


class Trail(Protocol):
    """The part of `fwdb.audit.Audit` that the workload needs; changes are captured without it."""

    @property
    def log_read(self) -> Callable[..., object]: ...


@dataclass(frozen=True)
class Operation:
    """One thing to do: how often relative to others, and the error it is meant to meet."""

    name: str
    share: float
    act: Callable[[random.Random], object]
    fails: type[errors.FwdbError] | None = None


@dataclass(frozen=True)
class WorkloadResult:
    """What a workload did: operations by name, errors by class, and how long it took.

    An operation that failed as it was meant to counts in both.
    """

    operations: dict[str, int]
    errors: dict[str, int]
    seconds: float


@checks_arguments
def run_workload(
    postgres: PostgresStore,
    mongodb: MongoStore,
    audit: Trail,
    *,
    seconds: Annotated[float, Range(0, 86_400, above=True)] = 20,
    readers: Annotated[int, Range(0, 64)] = 4,
    writers: Annotated[int, Range(0, 64)] = 2,
    most_operations: Annotated[int, Range(1, 10_000_000)] = 100_000,
    seed: int = 1,
    stop: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
) -> WorkloadResult:
    """Read, write and fail for `seconds`, with at most `most_operations`; what was done.

    `readers` and `writers` work on PostgreSQL and two more threads on designs. Every worker does
    each of its operations once and then chooses by how common they are; `seed` decides which, the
    threads' race the order. Between three and seven tenths of the time a crowd holds connections
    until the pool of `postgres` is nearly full, for a while more than full, provided that it has
    at most 24 connections: make the store with the settings of `POOL`. Who changes what is said
    to both stores, and readings of profiles are recorded. Refused operations are part of it and
    counted.

    Setting `stop`, or Ctrl-C, ends it after the statements that are running, two seconds at
    most; no transaction stays open. An error that was not meant to happen ends it too and is
    raised. Raises `ParameterError` for a number out of range or when there is no data.
    """
    operations = Operations(postgres, mongodb, audit)
    run = _Run(seconds, most_operations, stop or threading.Event())
    jobs = [
        partial(run.work, random.Random(f"{seed} {kind} {number}"), choices)  # noqa: S311
        for kind, threads, choices in (
            ("reader", readers, operations.reading()),
            ("writer", writers, operations.writing()),
            ("designer", _DESIGN_THREADS, operations.designing()),
        )
        for number in range(threads)
    ]
    hold = Operation("hold_connection", 1, partial(operations.dawdle, wait=run.ended.wait))
    crowd = _crowd(postgres.pool().capacity, readers + writers + _DESIGN_THREADS)
    for number in range(crowd):
        part = _CROWDED if number < crowd - _TOO_MANY else _OVERCROWDED
        rng = random.Random(f"{seed} crowd {number}")  # noqa: S311  # nothing secret is drawn
        jobs.append(partial(run.work, rng, [hold], part=part, pause=0.01))
    return run.go(jobs, postgres, progress or (lambda sentence: None))


class _Run:
    """The shared state of one workload's threads."""

    def __init__(self, seconds: float, most_operations: int, stop: threading.Event) -> None:
        self.ended = threading.Event()
        self._seconds, self._stop = seconds, stop
        self._left = threading.Semaphore(most_operations)
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._done: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def go(
        self,
        jobs: Sequence[Callable[[], None]],
        postgres: PostgresStore,
        tell: Callable[[str], None],
    ) -> WorkloadResult:
        quarter = 1
        with ThreadPoolExecutor(len(jobs), "workload") as executor:
            futures = [executor.submit(job) for job in jobs]
            try:
                while not (
                    self._elapsed() >= self._seconds or self.ended.is_set() or self._stop.is_set()
                ):
                    self.ended.wait(0.05)
                    if self._elapsed() * 4 >= quarter * self._seconds:
                        quarter += 1
                        tell(self._sentence(postgres))
            finally:
                self.ended.set()  # leaving the executor joins the threads
        for future in futures:
            future.result()
        return WorkloadResult(dict(self._done), dict(self._errors), round(self._elapsed(), 3))

    def work(
        self,
        rng: random.Random,
        choices: Sequence[Operation],
        *,
        part: tuple[float, float] = (0, 1),
        pause: float = _PAUSE_SECONDS,
    ) -> None:
        """Do each of `choices` once and go on by their shares, in `part` of the run."""
        first, shares = rng.sample(choices, len(choices)), [one.share for one in choices]
        self.ended.wait(part[0] * self._seconds)
        try:
            while not self.ended.is_set() and self._elapsed() < part[1] * self._seconds:
                if not self._left.acquire(blocking=False):
                    self.ended.set()
                    return
                self._do(first.pop() if first else rng.choices(choices, shares)[0], rng)
                self.ended.wait(rng.expovariate(1 / pause))
        except BaseException:
            self.ended.set()
            raise

    def _do(self, operation: Operation, rng: random.Random) -> None:
        error: errors.FwdbError | None = None
        try:
            operation.act(rng)
        except errors.FwdbError as met:
            if not isinstance(met, (*_CONTENTION, operation.fails or errors.Transient)):
                raise
            error = met
        if error is None and operation.fails is not None:
            raise errors.FwdbError(
                f"'{operation.name}' was to meet {operation.fails.__name__}, but it succeeded."
            )
        with self._lock:
            self._done[operation.name] += 1
            if error is not None:
                self._errors[type(error).__name__] += 1

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def _sentence(self, postgres: PostgresStore) -> str:
        pool = postgres.pool()
        return (
            f"{self._elapsed():.0f} of {self._seconds:g} s: {self._done.total():,} operations, "
            f"{self._errors.total():,} refused; {pool.in_use} of {pool.capacity} connections in "
            f"use, {pool.waiting} waiting"
        )


class Operations:
    """The operations over rows that were there when the workload began: quick, slow and refused.

    Raises `ParameterError` when there are no users, catalog items or designs to work on.
    """

    def __init__(self, postgres: PostgresStore, mongodb: MongoStore, audit: Trail) -> None:
        self._postgres, self._mongodb, self._audit = postgres, mongodb, audit
        self._made: list[tuple[str, str]] = []  # (id, owner) of avatars made here
        self._users, self._items = self._ids(users), self._ids(catalog_items)
        with mongodb.errors():
            found = mongodb.collection("designs").find({}, {"_id": 1}).limit(_SAMPLE)
            self._designs = [document["_id"] for document in found]
        known = {"users": self._users, "catalog items": self._items, "designs": self._designs}
        for name in (name for name, ids in known.items() if not ids):
            raise errors.ParameterError(f"there are no {name} to work on; run 'fwdb seed' first.")

    def reading(self) -> list[Operation]:
        """Questions to PostgreSQL; about one in twenty is slow."""
        return [
            Operation(name, share, partial(self._read, sa.text(statement), limit))
            for questions, limit in ((_QUICK, None), (_SLOW, _SLOW_LIMIT_MS))
            for name, (share, statement) in questions.items()
        ]

    def writing(self) -> list[Operation]:
        """Changes in PostgreSQL, each by somebody, and some that are refused."""
        return [
            Operation("change_price", 40, self._change_price),
            Operation("create_avatar", 10, lambda rng: self._made.append(self._new_avatar(rng))),
            # Rare: a burst of deletes is what the audit report warns of.
            Operation("delete_avatar", 0.5, self._delete_avatar),
            Operation("read_profile", 20, self._read_profile),
            Operation("take_email_twice", 2, self._take_email_twice, errors.DuplicateKey),
            Operation("lock_item_twice", 1.5, self._lock_item_twice, errors.Transient),
            Operation("count_for_too_long", 1.5, self._count_for_too_long, errors.QueryTimeout),
        ]

    def designing(self) -> list[Operation]:
        """Reading and changing designs; the slow search is rare, for it stalls SecantusDB."""
        return [
            Operation(name, share, partial(self._in_mongodb, act), fails)
            for name, share, act, fails in (
                ("get_design", 45, self._get_design, None),
                ("designs_of_user", 20, self._designs_of_user, None),
                ("edit_design", 25, self._edit_design, None),
                ("create_design", 5, self._create_design, None),
                ("search_designs", 2, self._search_designs, None),
                ("store_design_twice", 2, self._store_design_twice, errors.DuplicateKey),
            )
        ]

    def dawdle(self, rng: random.Random, wait: Callable[[float], object]) -> None:
        """Hold a connection in a transaction while `wait`ing, as for the answer of a service."""
        with self._postgres.transaction() as connection:
            connection.execute(sa.select(users.c.id).where(users.c.id == rng.choice(self._users)))
            wait(rng.uniform(0.2, 0.6))

    # -- PostgreSQL ---------------------------------------------------------------------------

    def _read(self, question: sa.TextClause, timeout_ms: int | None, rng: random.Random) -> None:
        values = {
            "user": rng.choice(self._users),
            "category": rng.choice(["top", "dress"]),
            "pattern": f"({rng.choice(MOODS)}|gala).*{rng.choice(COLORS)}",
        }
        if timeout_ms is None:
            self._postgres.rows(question, **values)
            return
        with self._postgres.transaction(timeout_ms=timeout_ms, read_only=True):
            self._postgres.rows(question, **values)

    def _change_price(self, rng: random.Random) -> None:
        one = catalog_items.c.id == rng.choice(self._items)
        change = sa.update(catalog_items).where(one).values(price=rng.randrange(0, 5000, 10))
        with self._somebody(rng):
            self._postgres.run(lambda: self._postgres.execute(change))

    def _new_avatar(self, rng: random.Random) -> tuple[str, str]:
        """Id and owner of an avatar made now."""
        with self._somebody(rng) as who:
            values = {"user_id": who.user_id, "name": "Trying on", "gender": "unisex"}
            made = sa.insert(avatars).values(**values, measurements={"height": 170})
            (row,) = self._postgres.rows(made.returning(avatars.c.id))
        return row["id"], str(who.user_id)

    def _delete_avatar(self, rng: random.Random) -> None:
        try:
            id, owner = self._made.pop()
        except IndexError:  # none is left
            id, owner = self._new_avatar(rng)
        gone = sa.update(avatars).where(avatars.c.id == id).values(deleted_at=sa.func.now())
        with self._somebody(rng, user_id=owner):
            self._postgres.execute(gone)

    def _read_profile(self, rng: random.Random) -> None:
        id = rng.choice(self._users)
        with self._somebody(rng), self._postgres.transaction():
            self._postgres.rows(sa.select(users.c.id).where(users.c.id == id))
            self._audit.log_read("User", id)

    def _take_email_twice(self, rng: random.Random) -> None:
        columns = ["email", "password_hash", "first_name", "last_name"]
        again = sa.select(users.c.email, *map(sa.literal, ("-", "Second", "Account")))
        one = again.where(users.c.id == rng.choice(self._users))
        self._postgres.execute(sa.insert(users).from_select(columns, one))

    def _lock_item_twice(self, rng: random.Random) -> None:
        # One row for all, which the others leave alone mostly: it is the last of the sample.
        one = sa.update(catalog_items).where(catalog_items.c.id == self._items[-1])
        touch = one.values(is_active=catalog_items.c.is_active)

        def briefly() -> None:
            with self._postgres.transaction() as connection:
                connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
                connection.execute(touch)

        with self._postgres.transaction() as connection, ThreadPoolExecutor(1) as other:
            connection.execute(touch)
            other.submit(briefly).result()

    def _count_for_too_long(self, rng: random.Random) -> None:
        with self._postgres.transaction(timeout_ms=150, read_only=True) as connection:
            connection.execute(_ENDLESS)

    # -- MongoDB ------------------------------------------------------------------------------

    def _in_mongodb(self, act: Callable[[Any, random.Random], object], rng: random.Random) -> None:
        with self._somebody(rng), self._mongodb.errors():
            act(self._mongodb.collection("designs"), rng)

    def _get_design(self, designs: Any, rng: random.Random) -> None:
        designs.find_one({"_id": rng.choice(self._designs)})

    def _designs_of_user(self, designs: Any, rng: random.Random) -> None:
        wanted = DESIGNS.document({"user_id": rng.choice(self._users), "status": "published"})
        list(designs.find(wanted).limit(20))

    def _search_designs(self, designs: Any, rng: random.Random) -> None:
        wanted = {"name": {"$regex": f"{rng.choice(OCCASIONS)}$", "$options": "i"}}
        counted = {"$group": {"_id": "$status", "designs": {"$sum": 1}}}
        list(designs.aggregate([{"$match": wanted}, counted], maxTimeMS=_SLOW_LIMIT_MS))

    def _edit_design(self, designs: Any, rng: random.Random) -> None:
        status = rng.choice(["draft", "published", "archived"])
        changed = DESIGNS.document({"status": status, "updated_at": datetime.now(UTC)})
        change = {"$set": changed | actor.marked(), "$inc": {"version": 1}}
        designs.update_one({"_id": rng.choice(self._designs)}, change)

    def _create_design(self, designs: Any, rng: random.Random) -> None:
        now, who = datetime.now(UTC), actor.current()
        fields = DESIGNS.defaults() | {
            "user_id": who.user_id if who else None,
            "name": f"{rng.choice(MOODS)} {rng.choice(OCCASIONS)}",
            "created_at": now,
            "updated_at": now,
        }
        found = DESIGNS.document({n: value for n, value in fields.items() if value is not None})
        designs.insert_one(found | actor.marked())

    def _store_design_twice(self, designs: Any, rng: random.Random) -> None:
        again = DESIGNS.document({"user_id": self._users[0], "name": "Again", "status": "draft"})
        designs.insert_one({"_id": self._designs[0], **again})

    # -- parts of the above -------------------------------------------------------------------

    def _ids(self, table: sa.Table) -> list[str]:
        first = sa.select(table.c.id).where(table.c.deleted_at.is_(None))
        rows = self._postgres.rows(first.order_by(table.c.created_at, table.c.id).limit(_SAMPLE))
        return [str(row["id"]) for row in rows]

    def _somebody(
        self, rng: random.Random, *, user_id: str | None = None
    ) -> AbstractContextManager[actor.Actor]:
        """Somebody, or `user_id`, acts in this thread."""
        who = user_id or rng.choice(self._users)
        return actor.acting(actor.Actor(who, rng.choice(ADDRESSES), rng.choice(USER_AGENTS)))


def _crowd(capacity: int | None, workers: int) -> int:
    """How many dawdlers fill the pool beside `workers`, most of whom hold nothing at a time."""
    if capacity is None or capacity > _MOST_THREADS:
        return 0
    return max(0, math.ceil(0.9 * capacity) - workers // 4) + _TOO_MANY
