"""`Seeder`: puts in the seed data and synthetic volume, and takes all data out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from fwdb.arguments import Range, checks_arguments
from fwdb.errors import ParameterError, PermissionDenied
from fwdb.models import (
    AUDIT_LOGS,
    COLLECTIONS,
    ENTITIES,
    TABLES,
    DocumentEntity,
    Entity,
    TableEntity,
    metadata,
    users,
)
from fwdb.seeding import data, volume
from fwdb.stores import MongoStore, PostgresStore, actor, without_capture
from fwdb.stores.postgres import TRIGGERS

Progress = Callable[[str], None]

# Keys of advisory locks, which are plain numbers for the whole database: the ASCII codes of
# "fwd1" and "fwd2". Two seeders take turns; the volume has a lock of its own because it takes long.
_SEED_LOCK = 0x66776431
_SCALE_LOCK = 0x66776432

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


class Counts(dict[str, int]):
    """Rows and documents added or removed, by kind: ``counts.users``, as `Database` calls them."""

    def __init__(self, **numbers: int) -> None:
        kinds = [entity.attribute for entity in (*ENTITIES.values(), AUDIT_LOGS)]
        super().__init__(dict.fromkeys(kinds, 0) | numbers)

    def __getattr__(self, kind: str) -> int:
        if kind not in self:
            raise AttributeError(kind)
        return self[kind]

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.values())

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{kind: number + other[kind] for kind, number in self.items()})


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
        return self._seed(*data.ROWS)

    def seed_users(self) -> Counts:
        """The three accounts, with the password "secret"."""
        return self._seed("User")

    def seed_avatars(self) -> Counts:
        """The two avatars, and their owners."""
        return self._seed("Avatar")

    def seed_catalog_items(self) -> Counts:
        """The four catalog items."""
        return self._seed("CatalogItem")

    def seed_designs(self) -> Counts:
        """The two designs, their owners, and the catalog items they are built from."""
        return self._seed("Design")

    def _seed(self, *names: str) -> Counts:
        wanted = {*names}
        for name in reversed([*data.ROWS]):
            if name in wanted:
                wanted |= {ref.entity for ref in _refs(data.ROWS[name])}
        entities = [ENTITIES[name] for name in data.ROWS if name in wanted]
        counts = Counts()
        with self._locked(_SEED_LOCK):
            for entity in entities:
                if isinstance(entity, TableEntity):
                    counts[entity.attribute] = sum(
                        self._add_row(entity, row) for row in self._rows(entity)
                    )
        # MongoDB is asked in a transaction of PostgreSQL for the sake of its lock: no index makes
        # owner and name of a design unique.
        with self._locked(_SEED_LOCK):
            for entity in entities:
                if isinstance(entity, DocumentEntity):
                    counts[entity.attribute] = sum(
                        self._add_document(entity, row) for row in self._rows(entity)
                    )
        return counts

    def _rows(self, entity: Entity[Any]) -> list[dict[str, Any]]:
        """The rows of `entity` with ids; without those that refer to what was removed."""
        rows = data.ROWS[entity.name]
        ids = {ref: self._id(ref) for ref in _refs(rows)}
        return [_filled(row, ids) for row in rows if None not in {ids[r] for r in _refs(row)}]

    def _id(self, ref: data.Ref) -> str | None:
        """The id of what `ref` names: live before deleted, oldest first."""
        entity = ENTITIES[ref.entity]
        values = (self._id(one) if isinstance(one, data.Ref) else one for one in ref.key)
        key = dict(zip(entity.key, values, strict=True))
        if isinstance(entity, DocumentEntity):
            return self._document_id(entity, key, live=ref.live)
        t = TABLES[entity.stored_in].table.c
        same = (t[name] == value for name, value in key.items())
        order = (t.deleted_at.is_not(None), t.created_at, t.id)
        found = self.postgres.rows(
            sa.select(t.id, t.deleted_at).where(*same).order_by(*order).limit(1)
        )
        if not found or (ref.live and found[0]["deleted_at"] is not None):
            return None
        return str(found[0]["id"])

    def _document_id(
        self, entity: DocumentEntity[Any], key: Mapping[str, Any], *, live: bool
    ) -> str | None:
        """The same of a document."""
        with self.mongodb.errors():
            found = self.mongodb.collection(entity.collection).find_one(
                entity.document({**key, "deleted_at": None} if live else key), {"_id": 1}
            )
        return None if found is None else str(found["_id"])

    def _add_row(self, entity: TableEntity[Any], row: dict[str, Any]) -> bool:
        """Insert `row` unless one has its key; whether it was inserted."""
        t = entity.table.c
        if self.postgres.rows(
            sa.select(t.id).where(*(t[name] == row[name] for name in entity.key))
        ):
            return False
        added = insert(entity.table).values(row).on_conflict_do_nothing()
        return bool(self.postgres.rows(added.returning(t.id)))

    def _add_document(self, entity: DocumentEntity[Any], row: dict[str, Any]) -> bool:
        now = datetime.now(UTC)
        given = entity.defaults() | {"created_at": now, "updated_at": now} | row
        key = entity.document({name: row[name] for name in entity.key})
        document = entity.document({n: v for n, v in given.items() if v is not None})
        rest = {name: value for name, value in document.items() if name not in key}
        with self.mongodb.errors():
            result = self.mongodb.collection(entity.collection).update_one(
                key,
                {"$setOnInsert": rest | actor.marked()},
                upsert=True,
                session=self.mongodb.session,
            )
        return result.upserted_id is not None

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
        return Counts(
            **{
                entity.attribute: self.postgres.copy(entity.stored_in, frame)
                for entity in (*TABLES.values(), AUDIT_LOGS)
                if (frame := getattr(part, entity.attribute, None)) is not None
            }
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
        """Remove every entity of both stores and every audit row, seeded or not.

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
            gone = Counts(audit_logs=logs)
            with self.mongodb.errors():
                for name in COLLECTIONS:
                    gone[name] = self.mongodb.collection(name).delete_many({}).deleted_count
            # All users go in one statement, so their references to each other hold nothing back.
            for table in reversed(metadata.sorted_tables):
                if table.fullname in TABLES:
                    gone[table.name] = self.postgres.execute(sa.delete(table)).rowcount
        return gone

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
        tables = [*TABLES, AUDIT_LOGS.stored_in]
        if closed := self.postgres.rows(_CLOSED, tables=tables, triggers=list(TRIGGERS)):
            raise PermissionDenied(
                f"{doing} writes the audit trail itself, and this role does not own "
                f"{closed[0]['name']}; "
                "connect with role='owner', or name the owner in FWDB_POSTGRES_URL."
            )
        with without_capture(self.postgres, [*TABLES]) as connection:
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
        for name in _BESIDE_TRAIL & {*names}:
            self.postgres.execute(sa.text(f"DELETE FROM audit.{name}"))
        return self.postgres.execute(sa.delete(AUDIT_LOGS.table)).rowcount


def _refs(value: Any) -> list[data.Ref]:
    """All references in `value`, however deep."""
    if isinstance(value, data.Ref):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [r for v in inner for r in _refs(v)] if isinstance(value, dict | list | tuple) else []


def _filled(value: Any, ids: Mapping[data.Ref, str | None]) -> Any:
    """`value` with ids in place of references."""
    if isinstance(value, data.Ref):
        return ids[value]
    if isinstance(value, dict):
        return {name: _filled(inner, ids) for name, inner in value.items()}
    return [_filled(inner, ids) for inner in value] if isinstance(value, list) else value
