"""The tables and collections that a revert reads and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.audit import arguments, values
from fwdb.audit.context import Context
from fwdb.audit.relation import KEY, Relation, exists, quoted, relation
from fwdb.audit.revert.plan import Blocked, Step, Values, image
from fwdb.errors import Conflict, DuplicateKey, FeatureUnavailable, InvalidData
from fwdb.models import ENTITIES, DocumentEntity, document_id
from fwdb.stores import MongoStore, PostgresStore, actor

__all__ = ["Documents", "Rows", "Writer", "target"]

_SHOWN = 5  # rows that refer to another, of each table


def target(
    context: Context, connection: Connection, entity_type: str, what: str
) -> Rows | Documents:
    """Where entities of this type are, for the revert that is named `what`."""
    entity = ENTITIES.get(entity_type)
    if isinstance(entity, DocumentEntity):
        return Documents(context, entity, what)
    return Rows(connection, relation(context.postgres, entity_type))


class Rows:
    """The rows of one table, in the transaction of `connection`.

    The trail does not have the values of `hidden` fields; `captured`: triggers record what is
    written.
    """

    def __init__(self, connection: Connection, table: Relation) -> None:
        self._connection = connection
        self.table = table
        self.hidden = [c.name for c in table.columns if c.secret or c.untold]
        self.captured = table.captured

    def stored(self, name: str) -> str:
        """The name that a field of the trail has here."""
        other = str(arguments.other_spelling(name))
        return other if name not in self.table and other in self.table else name

    def lock(self, ids: list[str]) -> None:
        """Keep others from changing these rows up to the end of the transaction."""
        self._connection.execute(
            sa.text(
                f"SELECT 1 FROM {self.table.quoted} WHERE {KEY} = ANY (CAST(:ids AS uuid[]))"
                f" ORDER BY {KEY} FOR UPDATE"
            ),
            {"ids": ids},
        )

    def live(self, id: str) -> Values | None:
        """The row as the trail would have it, None where it is not there."""
        row = f"CAST(to_jsonb(live) AS text) FROM {self.table.quoted} AS live WHERE {KEY} = :id"
        return image(self._connection.scalar(sa.text(f"SELECT {row}"), {"id": UUID(id)}))

    def storable(self, step: Step) -> Step | None:
        """`step` without computed columns and those that the table does not have."""
        if step.then is None:
            return step
        then = {
            name: value
            for name, value in step.then.items()
            if name in self.table
            and not self.table[name].generated
            and (step.now is None or name != KEY)
        }
        if step.now is not None and not then:
            return None
        now = None if step.now is None else {name: step.now.get(name) for name in then}
        return replace(step, now=now, then=then)

    def write(self, step: Step) -> None:
        """Insert, update or delete; what a constraint refuses is raised."""
        name = self.table.quoted
        if step.then is None:
            statement = f"DELETE FROM {name} WHERE {KEY} = :id"
            self._connection.execute(sa.text(statement), {"id": UUID(step.entity_id)})
            return
        columns = ", ".join(map(quoted, step.then))
        row = (
            f"SELECT {columns} FROM jsonb_populate_record(CAST(NULL AS {name}),"
            " CAST(:row AS jsonb))"
        )
        if step.now is None:
            statement = f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE {row}"
        else:
            # Also where a trigger does it: not every existing table has one.
            touched = "updated_at" in self.table and "updated_at" not in step.then
            touch = ", updated_at = clock_timestamp()" if touched else ""
            statement = f"UPDATE {name} SET ({columns}) = ({row}){touch} WHERE {KEY} = :id"
        # As JSON; a column takes a fraction as text too, and so to the last digit.
        exact = {
            name: str(value)
            if isinstance(value, Decimal) and not self.table[name].is_json
            else value
            for name, value in step.then.items()
        }
        given = {"row": json.dumps(exact, default=float), "id": UUID(step.entity_id)}
        if step.now is None:
            del given["id"]
        self._connection.execute(sa.text(statement), given)


class Writer:
    """Writes steps in an order in which every constraint holds."""

    def __init__(
        self, store: PostgresStore, connection: Connection, tables: Mapping[str, Rows]
    ) -> None:
        self._store = store
        self._connection = connection
        self._tables = tables
        self._keys = store.rows("audit_references")
        self._types: dict[str, dict[str, str]] = {}

    def write(self, steps: list[Step]) -> list[Blocked]:
        """Write all of `steps`; what is in the way of those that cannot be written.

        In the order given, and what a constraint refuses again after the others: a parent that
        took its children along is put back before them.
        """
        left = list(steps)
        while left:
            refused = [(step, blocked) for step in left if (blocked := self._attempt(step))]
            if len(refused) == len(left):
                return [each for _, blocked in refused for each in blocked]
            left = [step for step, _ in refused]
        return []

    def _attempt(self, step: Step) -> list[Blocked]:
        rows = self._tables[step.entity_type]
        blocked = self._referring(step) if step.then is None else self._missing(step, step.then)
        if blocked:
            return blocked
        try:
            with self._store.transaction():
                rows.write(step)
        except DuplicateKey as error:
            return self._same(step, error)
        except (Conflict, InvalidData) as error:
            return [step.blocked(f"cannot be written: {str(error).rstrip('.')}")]
        return []

    def _missing(self, step: Step, then: Values) -> list[Blocked]:
        """Rows that `step` would refer to and that are not there."""
        name = self._tables[step.entity_type].table.name
        return [
            step.blocked(f"would refer to a row of {to} that is not there", field=key["field"])
            for key in self._keys
            if key["relation"] == name and (value := then.get(key["field"])) is not None
            for to in [key["to_relation"]]
            if not (to == name and str(value) == step.entity_id)
            and not self._ids(to, key["to_field"], value, limit=1)
        ]

    def _referring(self, step: Step) -> list[Blocked]:
        """Rows that refer to what `step` removes; some keys would remove or change them too."""
        name = self._tables[step.entity_type].table.name
        return [
            step.blocked(f"is referred to by {key['relation']} {id}", field=key["field"])
            for key in self._keys
            if key["to_relation"] == name
            for id in self._ids(key["relation"], key["field"], step.entity_id, limit=_SHOWN)
            if (key["relation"], id) != (name, step.entity_id)
        ]

    def _same(self, step: Step, error: DuplicateKey) -> list[Blocked]:
        """The rows that hold the unique values that `step` needs."""
        name, then = self._tables[step.entity_type].table.name, step.then or {}
        fields = [field for field in error.fields if field in then]
        if len(fields) != 1 or fields == [KEY]:
            return [step.blocked(f"cannot be written: {str(error).rstrip('.')}")]
        return [
            step.blocked(f"has its value in {name} {id} now", field=fields[0])
            for id in self._ids(name, fields[0], then[fields[0]], limit=_SHOWN)
        ]

    def _ids(self, relation: str, field: str, value: Any, *, limit: int) -> list[str]:
        """Ids of rows of `relation` that have `value`; as text, as constraints compare."""
        if relation not in self._types:
            columns = self._store.rows("audit_columns", relation=relation)
            self._types[relation] = {column["name"]: column["type"] for column in columns}
        name = ".".join(map(quoted, relation.split(".")))
        found = self._connection.execute(
            sa.text(
                f"SELECT CAST(to_jsonb(live) ->> '{KEY}' AS text) FROM {name} AS live"
                f" WHERE {quoted(field)} = CAST(CAST(:value AS text) AS"
                f" {self._types[relation][field]}) LIMIT {limit}"
            ),
            {"value": str(value)},
        )
        return [str(id) for (id,) in found]


class Documents:
    """The documents of one collection, for the revert that is named `what`."""

    hidden = ()

    def __init__(self, context: Context, entity: DocumentEntity[Any], what: str) -> None:
        self._postgres, self._mongodb = context.postgres, context.mongodb
        self._entity = entity
        self._what = what
        self._versions: dict[str, Any] = {}
        self._times = {f.stored for f in entity.fields.values() if f.kind == "time"}

    @property
    def captured(self) -> bool:
        if not exists(self._postgres, "audit.followers"):
            return False
        known = sa.text("SELECT 1 FROM audit.followers WHERE name = :name /* fwdb */")
        return bool(self._postgres.rows(known, name=self._entity.collection))

    def stored(self, name: str) -> str:
        return self._entity.stored.get(name, name)

    def lock(self, ids: list[str]) -> None:
        """Nothing: a document that was changed meanwhile has another version."""

    def live(self, id: str) -> Values | None:
        with self._store.errors():
            found = self._collection.find_one({"_id": document_id(id)}, session=self._store.session)
        if found is None:
            return None
        self._versions[id] = found.get("version")
        return values.image(found)

    def storable(self, step: Step) -> Step | None:
        return step

    def write(self, step: Step) -> list[Blocked]:
        """Write `step` if the document still has the version that was read."""
        here: dict[str, Any] = {"_id": document_id(step.entity_id)}
        held = here | {"version": self._versions.get(step.entity_id)}
        document = {name: self._bson(name, value) for name, value in (step.then or {}).items()}
        if step.does == "insert":
            written = self._insert(here, document)
        elif step.does == "update":
            written = self._update(held, document)
        else:
            written = self._delete(held)
        return [] if written else [step.blocked("was changed meanwhile; ask again")]

    def _insert(self, here: Values, document: Values) -> bool:
        present = {name: value for name, value in document.items() if value is not None}
        version = {"version": int(document.get("version") or 0) + 1}
        try:
            with self._store.errors():
                self._collection.insert_one(
                    present | here | version | _marks(), session=self._store.session
                )
        except DuplicateKey:
            return False
        return True

    def _update(self, held: Values, document: Values) -> bool:
        change: Values = {
            "$set": _marks() | {n: v for n, v in document.items() if v is not None},
            "$inc": {"version": 1},
        }
        if unset := {name: "" for name, value in document.items() if value is None}:
            change["$unset"] = unset
        with self._store.errors():
            found = self._collection.update_one(held, change, session=self._store.session)
        return bool(found.matched_count == 1)

    def _delete(self, held: Values) -> bool:
        """Remove after a mark of who does it; both in one transaction where the server has any."""

        def work() -> bool:
            documents, session = self._collection, self._store.session
            with self._store.errors():
                mark = {"$set": actor.marked(deleting=True)}
                if not documents.update_one(held, mark, session=session).matched_count:
                    return False
                return bool(documents.delete_one(held, session=session).deleted_count == 1)

        try:
            with self._store.transaction():
                return work()
        except FeatureUnavailable:
            return work()

    def _bson(self, name: str, value: Any) -> Any:
        if name in self._times and isinstance(value, str):
            return datetime.fromisoformat(value)
        return document_id(value) if name == "_id" else value

    @property
    def _store(self) -> MongoStore:
        if self._mongodb is None:
            raise FeatureUnavailable(
                f"{self._what} needs MongoDB, which this Audit was not given; use db.audit of "
                "fwdb.connect()."
            )
        return self._mongodb

    @property
    def _collection(self) -> Any:
        return self._store.collection(self._entity.collection)


def _marks() -> dict[str, Any]:
    # A date of MongoDB has milliseconds.
    now = datetime.now(UTC)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    return {"updatedAt": now, **actor.marked()}
