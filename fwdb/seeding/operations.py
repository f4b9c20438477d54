"""What the workload does: single operations on both stores, quick, slow and refused ones."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import sqlalchemy as sa

from fwdb.errors import DuplicateKey, FwdbError, ParameterError, QueryTimeout, Transient
from fwdb.models import audit_logs, avatars, catalog_items, design_document, users
from fwdb.seeding import words
from fwdb.stores import MongoStore, PostgresStore, actor

_SAMPLE = 200  # rows of each kind that the workload works on
_SLOW_LIMIT_MS = 2000  # a slow statement ends by then, so that a stop does not wait for it

# Slow on purpose: each reads much of the audit log, because no index can serve it.
_SEARCH = sa.text("""
    SELECT count(*) FROM audit.audit_logs AS log
    WHERE CAST(to_jsonb(log) AS text) ~* :pattern
""")
_SHARED = sa.text("""
    WITH latest AS (
        SELECT user_id, ip_address, created_at FROM audit.audit_logs
        ORDER BY created_at DESC LIMIT 10000
    )
    SELECT a.ip_address, count(DISTINCT b.user_id) AS others
    FROM latest AS a
    JOIN latest AS b ON b.ip_address = a.ip_address AND b.user_id <> a.user_id
        AND b.created_at BETWEEN a.created_at AND a.created_at + INTERVAL '1 day'
    GROUP BY a.ip_address ORDER BY others DESC LIMIT 10
""")
_SORT = sa.text("""
    SELECT count(*) FILTER (WHERE n % 1000 = 0)
    FROM (SELECT row_number() OVER (ORDER BY user_agent, ip_address, new_values, id) AS n
          FROM audit.audit_logs) AS numbered
""")
_HOURS = sa.text("""
    SELECT extract(hour FROM created_at) AS hour, entity_type,
           count(DISTINCT user_id) AS users, count(DISTINCT entity_id) AS entities
    FROM audit.audit_logs
    GROUP BY 1, 2 ORDER BY 1, 2
""")
# So large that no server finishes it within the few milliseconds it gets.
_ENDLESS = sa.text("SELECT count(*) FROM generate_series(1, 100000000) AS n WHERE n % 7 = 3")


class Trail(Protocol):
    """The part of `fwdb.audit.Audit` that the workload needs; changes are captured without it."""

    @property
    def context(self) -> Callable[..., AbstractContextManager[None]]: ...
    @property
    def log_read(self) -> Callable[..., object]: ...


@dataclass(frozen=True)
class Operation:
    """One thing to do: how often relative to others, and the error it is meant to meet."""

    name: str
    share: float
    act: Callable[[random.Random], object]
    fails: type[FwdbError] | None = None


class Operations:
    """The operations over rows that were there when the workload began.

    Raises `ParameterError` when there are no users, catalog items or designs to work on.
    """

    def __init__(self, postgres: PostgresStore, mongodb: MongoStore, audit: Trail) -> None:
        self._postgres = postgres
        self._mongodb = mongodb
        self._audit = audit
        self._made: list[tuple[str, str]] = []  # (id, owner) of avatars made here
        self._lock = threading.Lock()
        self._users = self._ids(users)
        self._items = self._ids(catalog_items)
        with mongodb.errors():
            found = mongodb.collection("designs").find({}, {"_id": 1}).limit(_SAMPLE)
            self._designs = [document["_id"] for document in found]
        for name, known in (
            ("users", self._users),
            ("catalog items", self._items),
            ("designs", self._designs),
        ):
            if not known:
                raise ParameterError(f"there are no {name} to work on; run 'fwdb seed' first.")

    def reading(self) -> tuple[Operation, ...]:
        """Questions to PostgreSQL; about one in twenty is slow."""
        return (
            Operation("get_user", 40, self._get_user),
            Operation("page_catalog", 25, self._page_catalog),
            Operation("recent_audit", 15, self._recent_audit),
            Operation("trail_of_user", 15, self._trail_of_user),
            Operation("search_audit", 2, self._search_audit),
            Operation("shared_addresses", 1, lambda rng: self._slow(_SHARED)),
            Operation("sort_audit", 1, lambda rng: self._slow(_SORT)),
            Operation("count_by_hour", 2, lambda rng: self._slow(_HOURS)),
        )

    def writing(self) -> tuple[Operation, ...]:
        """Changes in PostgreSQL, each by somebody, and some that are refused."""
        return (
            Operation("change_price", 40, self._change_price),
            Operation("create_avatar", 10, self._create_avatar),
            # Rare: a burst of deletes is what the audit report warns of.
            Operation("delete_avatar", 0.5, self._delete_avatar),
            Operation("read_profile", 20, self._read_profile),
            Operation("take_email_twice", 2, self._take_email_twice, DuplicateKey),
            Operation("lock_item_twice", 1.5, self._lock_item_twice, Transient),
            Operation("count_for_too_long", 1.5, self._count_for_too_long, QueryTimeout),
        )

    def designing(self) -> tuple[Operation, ...]:
        """Reading and changing designs; the slow search is rare, for it stalls SecantusDB."""
        return (
            Operation("get_design", 45, self._get_design),
            Operation("designs_of_user", 20, self._designs_of_user),
            Operation("edit_design", 25, self._edit_design),
            Operation("create_design", 5, self._create_design),
            Operation("search_designs", 2, self._search_designs),
            Operation("popular_items", 1, self._popular_items),
            Operation("store_design_twice", 2, self._store_design_twice, DuplicateKey),
        )

    def dawdle(self, rng: random.Random, wait: Callable[[float], object]) -> None:
        """Hold a connection in a transaction while `wait`ing, as for the answer of a service."""
        with self._postgres.transaction() as connection:
            connection.execute(self._one(users, rng.choice(self._users)))
            wait(rng.uniform(0.2, 0.6))

    # -- reading ------------------------------------------------------------------------------

    def _get_user(self, rng: random.Random) -> None:
        self._postgres.rows(self._one(users, rng.choice(self._users)))

    def _page_catalog(self, rng: random.Random) -> None:
        table = catalog_items
        self._postgres.rows(
            sa.select(table.c.id, table.c.name, table.c.price)
            .where(table.c.deleted_at.is_(None), table.c.category == rng.choice(["top", "dress"]))
            .order_by(table.c.price, table.c.id)
            .limit(20)
        )

    def _recent_audit(self, rng: random.Random) -> None:
        table = audit_logs
        self._postgres.rows(
            sa.select(table.c.id, table.c.action, table.c.created_at)
            .order_by(table.c.created_at.desc())
            .limit(50)
        )

    def _trail_of_user(self, rng: random.Random) -> None:
        table = audit_logs
        self._postgres.rows(
            sa.select(table.c.id, table.c.entity_type, table.c.action)
            .where(table.c.user_id == rng.choice(self._users))
            .order_by(table.c.created_at.desc())
            .limit(50)
        )

    def _search_audit(self, rng: random.Random) -> None:
        self._slow(_SEARCH, pattern=f"({rng.choice(words.MOODS)}|gala).*{rng.choice(words.COLORS)}")

    def _slow(self, statement: sa.TextClause, **parameters: Any) -> None:
        with self._postgres.transaction(timeout_ms=_SLOW_LIMIT_MS, read_only=True):
            self._postgres.rows(statement, **parameters)

    # -- writing ------------------------------------------------------------------------------

    def _change_price(self, rng: random.Random) -> None:
        id, price = rng.choice(self._items), rng.randrange(0, 5000, 10)
        change = sa.update(catalog_items).where(catalog_items.c.id == id).values(price=price)
        with self._audit.context(**self._who(rng)):
            self._postgres.run(lambda: self._postgres.execute(change))

    def _create_avatar(self, rng: random.Random) -> None:
        made = self._new_avatar(rng)
        with self._lock:
            self._made.append(made)

    def _new_avatar(self, rng: random.Random) -> tuple[str, str]:
        """Id and owner of an avatar made now."""
        who = self._who(rng)
        values = {"user_id": who["user_id"], "name": "Trying on", "gender": "unisex"}
        inserted = sa.insert(avatars).values(**values, measurements={"height": 170})
        with self._audit.context(**who):
            id = str(self._postgres.rows(inserted.returning(avatars.c.id))[0]["id"])
        return id, who["user_id"]

    def _delete_avatar(self, rng: random.Random) -> None:
        with self._lock:
            made = self._made.pop() if self._made else None
        id, owner = made or self._new_avatar(rng)
        gone = sa.update(avatars).where(avatars.c.id == id).values(deleted_at=sa.func.now())
        with self._audit.context(**self._who(rng) | {"user_id": owner}):
            self._postgres.execute(gone)

    def _read_profile(self, rng: random.Random) -> None:
        id = rng.choice(self._users)
        with self._audit.context(**self._who(rng)), self._postgres.transaction():
            self._postgres.rows(self._one(users, id))
            self._audit.log_read("User", id)

    # -- refused ------------------------------------------------------------------------------

    def _take_email_twice(self, rng: random.Random) -> None:
        taken = sa.select(users.c.email).where(users.c.id == rng.choice(self._users))
        columns = ["email", "password_hash", "first_name", "last_name"]
        again = taken.add_columns(sa.literal("-"), sa.literal("Second"), sa.literal("Account"))
        self._postgres.execute(sa.insert(users).from_select(columns, again))

    def _lock_item_twice(self, rng: random.Random) -> None:
        # One row for all, which the others leave alone mostly: it is the last of the sample.
        id = self._items[-1]
        with self._postgres.transaction() as connection, ThreadPoolExecutor(1) as other:
            connection.execute(self._touch(id))
            other.submit(self._lock_briefly, id).result()

    def _lock_briefly(self, id: str) -> None:
        with self._postgres.transaction() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            connection.execute(self._touch(id))

    def _count_for_too_long(self, rng: random.Random) -> None:
        with self._postgres.transaction(timeout_ms=150, read_only=True) as connection:
            connection.execute(_ENDLESS)

    # -- designs ------------------------------------------------------------------------------

    def _get_design(self, rng: random.Random) -> None:
        with self._mongodb.errors():
            self._mongodb.collection("designs").find_one({"_id": rng.choice(self._designs)})

    def _designs_of_user(self, rng: random.Random) -> None:
        wanted = design_document({"user_id": rng.choice(self._users), "status": "published"})
        with self._mongodb.errors():
            list(self._mongodb.collection("designs").find(wanted).limit(20))

    def _search_designs(self, rng: random.Random) -> None:
        wanted = {"name": {"$regex": f"{rng.choice(words.OCCASIONS)}$", "$options": "i"}}
        self._aggregate({"$match": wanted}, {"$group": {"_id": "$status", "designs": {"$sum": 1}}})

    def _popular_items(self, rng: random.Random) -> None:
        users = {"$addToSet": "$userId"}
        self._aggregate(
            {"$unwind": "$layers"},
            {"$group": {"_id": "$layers.itemId", "layers": {"$sum": 1}, "users": users}},
            {"$sort": {"layers": -1}},
            {"$limit": 10},
        )

    def _aggregate(self, *stages: dict[str, Any]) -> None:
        with self._mongodb.errors():
            list(
                self._mongodb.collection("designs").aggregate(
                    list(stages), maxTimeMS=_SLOW_LIMIT_MS
                )
            )

    def _edit_design(self, rng: random.Random) -> None:
        status = design_document({"status": rng.choice(["draft", "published", "archived"])})
        now = design_document({"updated_at": datetime.now(UTC)})
        with self._audit.context(**self._who(rng)), self._mongodb.errors():
            self._mongodb.collection("designs").update_one(
                {"_id": rng.choice(self._designs)},
                {"$set": status | now | actor.marked(), "$inc": {"version": 1}},
            )

    def _create_design(self, rng: random.Random) -> None:
        who, now = self._who(rng), datetime.now(UTC)
        name = f"{rng.choice(words.MOODS)} {rng.choice(words.OCCASIONS)}"
        values: dict[str, Any] = {"user_id": who["user_id"], "name": name, "status": "draft"}
        rest = {"layers": [], "catalog_item_ids": [], "version": 1}
        document = design_document(values | rest | {"created_at": now, "updated_at": now})
        with self._audit.context(**who), self._mongodb.errors():
            self._mongodb.collection("designs").insert_one(document | actor.marked())

    def _store_design_twice(self, rng: random.Random) -> None:
        again = design_document({"user_id": self._users[0], "name": "Again", "status": "draft"})
        with self._mongodb.errors():
            self._mongodb.collection("designs").insert_one({"_id": self._designs[0], **again})

    # -- parts of the above -------------------------------------------------------------------

    def _ids(self, table: sa.Table) -> list[str]:
        statement = (
            sa.select(table.c.id)
            .where(table.c.deleted_at.is_(None))
            .order_by(table.c.created_at, table.c.id)
            .limit(_SAMPLE)
        )
        return [str(row["id"]) for row in self._postgres.rows(statement)]

    @staticmethod
    def _one(table: sa.Table, id: str) -> sa.Select[Any]:
        return sa.select(table.c.id, table.c.created_at).where(table.c.id == id)

    @staticmethod
    def _touch(id: str) -> sa.Update:
        table = catalog_items
        return sa.update(table).where(table.c.id == id).values(is_active=table.c.is_active)

    def _who(self, rng: random.Random) -> dict[str, Any]:
        return {
            "user_id": rng.choice(self._users),
            "ip_address": rng.choice(words.HOME_ADDRESSES),
            "user_agent": rng.choice(words.USER_AGENTS),
        }
