"""`Seeder`: puts in the seed data and synthetic volume, and takes all data out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from fwdb.arguments import Range, checks_arguments
from fwdb.errors import ParameterError, PermissionDenied
from fwdb.models import avatars, catalog_items, design_document, users
from fwdb.seeding import data, volume
from fwdb.stores import MongoStore, PostgresStore, actor, without_capture
from fwdb.stores.postgres import TRIGGERS

Progress = Callable[[str], None]

# Keys of advisory locks, which are plain numbers for the whole database: the ASCII codes of
# "fwd1" and "fwd2". Two seeders take turns; the volume has a lock of its own because it takes long.
_SEED_LOCK = 0x66776431
_SCALE_LOCK = 0x66776432

_TABLES = ("shared.users", "avatar.avatars", "catalog.catalog_items")
# Of these tables, those that this role neither owns nor, where they are not captured, may write.
_CLOSED = sa.text("""
    SELECT CAST(CAST(c.oid AS regclass) AS text) AS name
    FROM unnest(CAST(:tables AS text[])) AS named
    JOIN pg_class AS c ON c.oid = to_regclass(named)
    WHERE NOT pg_has_role(c.relowner, 'USAGE') AND (
        NOT has_table_privilege(c.oid, 'INSERT') OR NOT has_table_privilege(c.oid, 'DELETE')
        OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = ANY (:triggers)))
    ORDER BY name
""")
# What holds the trail; `captured`, which says how, stays.
_BESIDE_TRAIL = {"seals", "erasures", "gaps", "followers", "archives"}

_INSERT_BATCH = 1000
# SecantusDB takes 0.1 s for a hundred values of an $in and 3 s for a thousand.
_DELETE_BATCH = 100


@dataclass(frozen=True)
class Counts:
    """Rows and documents added or removed, by kind."""

    users: int = 0
    avatars: int = 0
    catalog_items: int = 0
    designs: int = 0
    audit_logs: int = 0

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(astuple(self))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@checks_arguments
class Seeder:
    """Seed data and synthetic volume of both stores.

    The seed functions add what is missing and change nothing that is there, so any of them can
    be run again, also by several processes at once. A row is there when its natural key is: the
    e-mail of a user, owner and name of an avatar or a design, name and type of a catalog item.
    That holds for rows that were changed or soft-deleted too: what somebody removed does not
    come back, and a removed user gets no new avatar or design. A row that was deleted for good
    is made anew. Each function first calls those whose rows it refers to, and returns the number
    of rows it added, by kind.
    """

    def __init__(self, postgres: PostgresStore, mongodb: MongoStore) -> None:
        self.postgres = postgres
        self.mongodb = mongodb

    # -- seed data ----------------------------------------------------------------------------

    def seed_all(self) -> Counts:
        """All the seed data. PostgreSQL has its rows in full or not at all, and before MongoDB.

        Raises `StoreUnavailable` when MongoDB does not answer; the rows of PostgreSQL stay, and
        running it again adds the rest.
        """
        with self._locked(_SEED_LOCK):
            rows = self.seed_avatars() + self.seed_catalog_items()
        return rows + self.seed_designs()

    def seed_users(self) -> Counts:
        """The three accounts, with the password "secret"."""
        with self._locked(_SEED_LOCK):
            added = insert(users).values(list(data.USERS)).on_conflict_do_nothing()
            return Counts(users=len(self.postgres.rows(added.returning(users.c.id))))

    def seed_avatars(self) -> Counts:
        """The two avatars, and their owners."""
        with self._locked(_SEED_LOCK):
            counts = self.seed_users()
            owners = self._owners()
            rows = [
                {"user_id": owners[email], **avatar}
                for email, avatar in data.AVATARS.items()
                if email in owners
            ]
            return counts + Counts(avatars=self._add(avatars, rows, ("user_id", "name")))

    def seed_catalog_items(self) -> Counts:
        """The four catalog items."""
        with self._locked(_SEED_LOCK):
            added = self._add(catalog_items, data.CATALOG_ITEMS, ("name", "type"))
            return Counts(catalog_items=added)

    def seed_designs(self) -> Counts:
        """The two designs, their owners, and the catalog items they are built from."""
        with self._locked(_SEED_LOCK):
            counts = self.seed_users() + self.seed_catalog_items()
        # MongoDB is asked in a transaction of PostgreSQL for the sake of its lock: no index makes
        # owner and name of a design unique.
        with self._locked(_SEED_LOCK):
            items, owners = self._items(), self._owners()
            added = [
                self._add_design(owners[email], design, items)
                for email, design in data.DESIGNS.items()
                if email in owners
            ]
        return counts + Counts(designs=sum(added))

    # -- volume -------------------------------------------------------------------------------

    def seed_scale(
        self,
        scale: Annotated[int, Range(1, volume.MAX_SCALE)] = 1000,
        *,
        seed: Annotated[int, Range(0, 2**31 - 1)] = 1,
        audit_rows: Annotated[int, Range(0, volume.MAX_AUDIT_ROWS)] | None = None,
        until: datetime | None = None,
        progress: Progress | None = None,
    ) -> Counts:
        """Add `scale` users with avatars, catalog items, designs and a year of audit history.

        The same `seed`, `scale`, `audit_rows` and `until` make the same rows, ids included. A
        `seed` that is already in the database adds nothing, whatever the other numbers are, and
        another one adds other users. `audit_rows` is 100 for each user and at most 5,000,000 unless
        given; when it is too small for the year, the newest rows are kept. There are two designs
        for each user and at most 5,000, because the built-in MongoDB reads the whole collection
        for most questions. The history ends at `until`, by default the start of today in UTC.

        PostgreSQL gets all rows or none; when it gets none, the designs are removed again. The
        rows bring their history along, so they are not captured: this wants the role of the
        owner, and others who write these tables wait. `progress` is called with a sentence now
        and then. Raises `ParameterError` for a number out of range, `PermissionDenied`.
        """
        plan = volume.Plan.of(scale, seed=seed, audit_rows=audit_rows, until=until)
        tell = progress or (lambda sentence: None)
        counts = Counts()
        documents: list[dict[str, Any]] = []
        try:
            with self._locked(_SCALE_LOCK, timeout_ms=0):  # 0: as long as it takes
                first = sa.select(users.c.id).where(users.c.id == volume.first_user_id(seed))
                if self.postgres.rows(first):
                    tell(f"the users of seed {seed} are there already; another --seed adds others")
                    return counts
                with self._uncaptured("seed_scale"):
                    if self.postgres.has_function("audit.add_partitions"):
                        # A year of history: 366 days and what two time zones may differ in.
                        months = (plan.until - timedelta(days=367)).date(), plan.until.date()
                        self.postgres.rows(sa.select(sa.func.audit.add_partitions(*months)))
                    designs: list[dict[str, Any]] = []
                    for part in volume.parts(plan):
                        rows = f"{len(part.users):,} users and {len(part.audit_logs):,} audit rows"
                        tell(f"adding {rows}")
                        counts += self._copy(part)
                        designs += part.designs
                    documents = designs  # from here on some may be there
                    self._insert(documents)
        except BaseException:
            # Also on Ctrl-C: the rows of PostgreSQL go by rollback, the documents here.
            self._remove("_id", [document["_id"] for document in documents])
            raise
        return counts + Counts(designs=len(documents))

    def _copy(self, part: volume.Part) -> Counts:
        tables = {
            "users": "shared.users",
            "avatars": "avatar.avatars",
            "catalog_items": "catalog.catalog_items",
            "audit_logs": "audit.audit_logs",
        }
        return Counts(
            **{name: self.postgres.copy(t, getattr(part, name)) for name, t in tables.items()}
        )

    def _insert(self, documents: list[dict[str, Any]]) -> None:
        designs = self.mongodb.collection("designs")
        with self.mongodb.errors():
            # A run that was killed may have left documents, whose users do not exist. They were
            # inserted in this order, so if there are any, the first is among them.
            if designs.find_one({"userId": documents[0]["userId"]}, {"_id": 1}):
                self._remove("userId", sorted({d["userId"] for d in documents}))
            for i in range(0, len(documents), _INSERT_BATCH):
                designs.insert_many(documents[i : i + _INSERT_BATCH])

    def _remove(self, field: str, values: Sequence[Any]) -> None:
        designs = self.mongodb.collection("designs")
        with self.mongodb.errors():
            for i in range(0, len(values), _DELETE_BATCH):
                designs.delete_many({field: {"$in": values[i : i + _DELETE_BATCH]}})

    # -- clearing -----------------------------------------------------------------------------

    def clear_all(self, *, confirm: bool = False) -> Counts:
        """Remove every user, avatar, catalog item, audit row and design, seeded or not.

        The trail goes with its seals, gaps and archive list, and the removal leaves no trace in
        it; the history of monitoring and the schema stay. PostgreSQL is emptied in one
        transaction, after MongoDB, by the role of the owner. Raises `ParameterError` unless
        `confirm` is true or while a month of the trail is held, `PermissionDenied`.
        """
        if not confirm:
            raise ParameterError(
                f"clear_all removes all data of {self.postgres.address} and "
                f"{self.mongodb.address}; pass confirm=True (on the command line --yes) "
                "to mean it.",
                name="confirm",
            )
        with (
            self._locked(_SEED_LOCK, timeout_ms=0),
            self._locked(_SCALE_LOCK),
            self._uncaptured("clear_all"),
        ):
            logs = self._empty_trail()
            with self.mongodb.errors():
                designs = self.mongodb.collection("designs").delete_many({}).deleted_count
            # All users go in one statement, so their references to each other hold nothing back.
            rows = {
                table.name: self.postgres.execute(sa.delete(table)).rowcount
                for table in (avatars, catalog_items, users)
            }
        return Counts(**rows, audit_logs=logs, designs=designs)

    # -- parts of the above -------------------------------------------------------------------

    @contextmanager
    def _locked(self, key: int, *, timeout_ms: int | None = None) -> Iterator[None]:
        """A transaction in which no other seeder is at work; joins one that is open.

        What is captured in it has the reason ``seed data``.
        """
        with (
            actor.acting(actor.Actor(reason="seed data")),
            self.postgres.transaction(timeout_ms=timeout_ms) as connection,
        ):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield

    @contextmanager
    def _uncaptured(self, doing: str) -> Iterator[None]:
        """A part of the open transaction in which no change is captured.

        For what brings its own history, or takes history away. Others who write these tables wait
        for the end of the transaction. Raises `PermissionDenied` for a role that may not, before
        anything is done; `doing` begins the sentence.
        """
        tables = [*_TABLES, "audit.audit_logs"]
        if closed := self.postgres.rows(_CLOSED, tables=tables, triggers=list(TRIGGERS)):
            raise PermissionDenied(
                f"{doing} writes the audit trail itself, and this role does not own "
                f"{closed[0]['name']}; "
                "connect with role='owner', or name the owner in FWDB_POSTGRES_URL."
            )
        with without_capture(self.postgres, _TABLES) as connection:
            yield
            # Deferred constraints would keep their tables from being altered.
            connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))

    def _empty_trail(self) -> int:
        """Remove the whole trail in the open transaction; how many rows it had."""
        tables = sa.text(
            "SELECT CAST(tablename AS text) AS name FROM pg_tables WHERE schemaname = 'audit'"
        )
        names = [row["name"] for row in self.postgres.rows(tables)]
        if "holds" in names:
            held = sa.text("SELECT count(*) AS n FROM audit.holds WHERE released_at IS NULL")
            if n := self.postgres.rows(held)[0]["n"]:
                raise ParameterError(
                    f"{n} month{'s' if n > 1 else ''} of the audit trail must be kept; release "
                    "what is held first."
                )
        rows = [name for name in names if name == "audit_logs" or name.startswith("journal_")]
        gone = {
            name: self.postgres.execute(sa.text(f"DELETE FROM audit.{name}")).rowcount
            for name in (*rows, *(_BESIDE_TRAIL & {*names}))
        }
        return sum(gone[name] for name in rows)

    def _add(self, table: sa.Table, rows: Iterable[dict[str, Any]], key: tuple[str, ...]) -> int:
        """Insert those of `rows` whose `key` no row of `table` has; the number inserted."""
        added = 0
        for row in rows:
            same = sa.select(table.c.id).where(*(table.c[name] == row[name] for name in key))
            if not self.postgres.rows(same):
                self.postgres.execute(sa.insert(table).values(row))
                added += 1
        return added

    def _owners(self) -> dict[str, str]:
        """E-mail -> id of the seed users that are live."""
        emails = [user["email"] for user in data.USERS]
        statement = sa.select(users.c.email, users.c.id).where(
            users.c.email.in_(emails), users.c.deleted_at.is_(None)
        )
        return {row["email"]: str(row["id"]) for row in self.postgres.rows(statement)}

    def _items(self) -> dict[tuple[str, str], str]:
        """(name, type) -> id of the seed catalog items, live ones before deleted, oldest first."""
        t = catalog_items.c
        statement = (
            sa.select(t.name, t.type, t.id)
            .where(t.name.in_([item["name"] for item in data.CATALOG_ITEMS]))
            .order_by(t.deleted_at.is_(None), t.created_at.desc(), t.id.desc())
        )
        # The last row of a key wins.
        return {(row["name"], row["type"]): str(row["id"]) for row in self.postgres.rows(statement)}

    def _add_design(
        self, owner: str, design: dict[str, Any], items: dict[tuple[str, str], str]
    ) -> bool:
        now = datetime.now(UTC)
        document = design_document(
            {
                "status": design["status"],
                "layers": [
                    data.layer(number, key[1], items[key])
                    for number, key in enumerate(design["layers"], start=1)
                ],
                "metadata": {"tags": design["tags"], "description": design["description"]},
                "catalog_item_ids": [items[key] for key in design["catalog_items"]],
                "version": 1,
                "created_at": now,
                "updated_at": now,
            }
        )
        key = design_document({"user_id": owner, "name": design["name"]})
        with self.mongodb.errors():
            result = self.mongodb.collection("designs").update_one(
                key,
                {"$setOnInsert": document | actor.marked()},
                upsert=True,
                session=self.mongodb.session,
            )
        return result.upserted_id is not None
