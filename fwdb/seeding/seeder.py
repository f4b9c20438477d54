"""`Seeder`: puts in the seed data and synthetic volume, and takes all data out again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from fwdb.arguments import Range, checks_arguments
from fwdb.errors import ParameterError
from fwdb.models import avatars, catalog_items, design_document, users
from fwdb.seeding import data, trail, volume
from fwdb.stores import MongoStore, PostgresStore, actor

Progress = Callable[[str], None]

# Keys of advisory locks, which are plain numbers for the whole database: the ASCII codes of
# "fwd1" and "fwd2". Two seeders take turns; the volume has a lock of its own because it takes long.
_SEED_LOCK = 0x66776431
_SCALE_LOCK = 0x66776432

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
        return self.users + self.avatars + self.catalog_items + self.designs + self.audit_logs

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            users=self.users + other.users,
            avatars=self.avatars + other.avatars,
            catalog_items=self.catalog_items + other.catalog_items,
            designs=self.designs + other.designs,
            audit_logs=self.audit_logs + other.audit_logs,
        )


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
            statement = insert(users).values(list(data.USERS)).on_conflict_do_nothing()
            return Counts(users=len(self.postgres.rows(statement.returning(users.c.id))))

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
            return Counts(
                catalog_items=self._add(catalog_items, data.CATALOG_ITEMS, ("name", "type"))
            )

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
        with self._locked(_SCALE_LOCK, timeout_ms=0):  # 0: as long as it takes
            first = sa.select(users.c.id).where(users.c.id == volume.first_user_id(seed))
            if self.postgres.rows(first):
                tell(f"the users of seed {seed} are there already; another --seed adds others")
                return counts
            inserted: list[Any] = []
            try:
                with trail.uncaptured(self.postgres, "seed_scale"):
                    # A year of history: 366 days and what two time zones may differ in.
                    since = plan.until - timedelta(days=367)
                    trail.add_months(self.postgres, since, plan.until)
                    for part in volume.parts(plan):
                        tell(
                            f"adding {len(part.users):,} users and "
                            f"{len(part.audit_logs):,} audit rows"
                        )
                        counts += self._load(part, inserted)
            except BaseException:
                # Also on Ctrl-C: the rows of PostgreSQL go by rollback, the documents here.
                self._remove_designs("_id", inserted)
                raise
        return counts

    def _load(self, part: volume.Part, inserted: list[Any]) -> Counts:
        """Add the rows and documents of `part`, and the ids of the documents to `inserted`."""
        postgres = self.postgres
        rows = {
            "users": postgres.copy("shared.users", part.users),
            "avatars": postgres.copy("avatar.avatars", part.avatars),
            "catalog_items": postgres.copy("catalog.catalog_items", part.catalog_items),
            "audit_logs": postgres.copy("audit.audit_logs", part.audit_logs),
        }
        designs = self.mongodb.collection("designs")
        with self.mongodb.errors():
            # A run that was killed may have left documents, whose users do not exist. They were
            # inserted in this order, so if there are any, the first is among them.
            first = part.designs[:1]
            if first and designs.find_one({"userId": first[0]["userId"]}, {"_id": 1}):
                self._remove_designs("userId", sorted({d["userId"] for d in part.designs}))
            for batch in _batches(part.designs, _INSERT_BATCH):
                inserted += [document["_id"] for document in batch]
                designs.insert_many(batch)
        return Counts(**rows, designs=len(part.designs))

    def _remove_designs(self, field: str, values: Sequence[Any]) -> None:
        designs = self.mongodb.collection("designs")
        with self.mongodb.errors():
            for batch in _batches(values, _DELETE_BATCH):
                designs.delete_many({field: {"$in": batch}})

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
            trail.uncaptured(self.postgres, "clear_all"),
        ):
            logs = trail.empty(self.postgres)
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

    def _add(self, table: sa.Table, rows: Sequence[dict[str, Any]], key: tuple[str, ...]) -> int:
        """Insert those of `rows` whose `key` no row of `table` has; the number inserted."""
        columns = [table.c[name] for name in key]
        known = (
            {
                tuple(str(value) for value in row.values())
                for row in self.postgres.rows(
                    sa.select(*columns).where(
                        sa.or_(*(sa.and_(*(table.c[n] == row[n] for n in key)) for row in rows))
                    )
                )
            }
            if rows
            else set()
        )
        new = [row for row in rows if tuple(str(row[name]) for name in key) not in known]
        if new:
            self.postgres.execute(sa.insert(table).values(new))
        return len(new)

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


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch
