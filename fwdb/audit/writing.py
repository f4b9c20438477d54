"""Writing rows back, in an order in which every constraint holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.audit.relations import KEY, Relation, quoted
from fwdb.audit.undoing import Blocked, Step
from fwdb.errors import Conflict, DuplicateKey, InvalidData
from fwdb.stores import PostgresStore

__all__ = ["Writer"]

_SHOWN = 5  # rows that refer to another, of each table


class Writer:
    """Writes steps in the transaction of `connection`."""

    def __init__(
        self, store: PostgresStore, connection: Connection, tables: dict[str, Relation]
    ) -> None:
        self._store = store
        self._connection = connection
        self._tables = tables
        self._keys = store.rows("audit_references")
        self._kinds: dict[str, dict[str, str]] = {}

    def write(self, steps: list[Step]) -> list[Blocked]:
        """Write all of `steps`; what is in the way of those that cannot be written.

        In the order given, and what a constraint refuses again after the others: a parent that
        took its children along is put back before them.
        """
        left = list(steps)
        while left:
            refused: list[tuple[Step, list[Blocked]]] = []
            for step in left:
                blocked = self._attempt(step)
                if blocked:
                    refused.append((step, blocked))
            if len(refused) == len(left):
                return [each for _, blocked in refused for each in blocked]
            left = [step for step, _ in refused]
        return []

    def _attempt(self, step: Step) -> list[Blocked]:
        blocked = self._missing(step) if step.does != "delete" else self._referring(step)
        if blocked:
            return blocked
        try:
            with self._store.transaction():
                self._write(step)
        except DuplicateKey as error:
            return self._same(step, error)
        except (Conflict, InvalidData) as error:
            return [_blocked(step, f"cannot be written: {str(error).rstrip('.')}")]
        return []

    def _write(self, step: Step) -> None:
        table = self._tables[step.entity_type]
        name = table.quoted
        parameters: dict[str, Any] = {"id": UUID(step.entity_id)}
        if step.then is None:
            statement = f"DELETE FROM {name} WHERE {KEY} = :id"
        else:
            columns = ", ".join(map(quoted, step.then))
            row = (
                f"SELECT {columns} FROM jsonb_populate_record("
                f"CAST(NULL AS {name}), CAST(:row AS jsonb))"
            )
            parameters |= {"row": _row(step.then, table)}
            if step.now is None:
                statement = f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE {row}"
                del parameters["id"]
            else:
                # Also where a trigger does it: not every existing table has one.
                touch = ""
                if "updated_at" in table and "updated_at" not in step.then:
                    touch = ", updated_at = clock_timestamp()"
                statement = f"UPDATE {name} SET ({columns}) = ({row}){touch} WHERE {KEY} = :id"
        self._connection.execute(sa.text(statement), parameters)

    def _missing(self, step: Step) -> list[Blocked]:
        """Rows that `step` would refer to and that are not there."""
        assert step.then is not None
        name = self._tables[step.entity_type].name
        found = []
        for key in self._keys:
            value = step.then.get(key["field"])
            if key["relation"] != name or value is None:
                continue
            itself = key["to_relation"] == name and str(value) == step.entity_id
            if not itself and not self._ids(key["to_relation"], key["to_field"], value, limit=1):
                why = f"would refer to a row of {key['to_relation']} that is not there"
                found.append(_blocked(step, why, field=key["field"]))
        return found

    def _referring(self, step: Step) -> list[Blocked]:
        """Rows that refer to what `step` removes; some keys would remove or change them too."""
        name = self._tables[step.entity_type].name
        return [
            _blocked(step, f"is referred to by {key['relation']} {id}", field=key["field"])
            for key in self._keys
            if key["to_relation"] == name
            for id in self._ids(key["relation"], key["field"], step.entity_id, limit=_SHOWN)
            if (key["relation"], id) != (name, step.entity_id)
        ]

    def _same(self, step: Step, error: DuplicateKey) -> list[Blocked]:
        """The rows that hold the unique values that `step` needs."""
        table = self._tables[step.entity_type]
        fields = [field for field in error.fields if field in (step.then or {})]
        if len(fields) != 1 or fields == [KEY]:
            return [_blocked(step, f"cannot be written: {str(error).rstrip('.')}")]
        assert step.then is not None
        return [
            _blocked(step, f"has its value in {table.name} {id} now", field=fields[0])
            for id in self._ids(table.name, fields[0], step.then[fields[0]], limit=_SHOWN)
        ]

    def _ids(self, relation: str, field: str, value: Any, *, limit: int) -> list[str]:
        """Ids of rows of `relation` that have `value`; as text, as constraints compare."""
        name = ".".join(map(quoted, relation.split(".")))
        kind = self._kind(relation, field)
        found = self._connection.execute(
            sa.text(
                f"SELECT CAST(to_jsonb(live) ->> '{KEY}' AS text) FROM {name} AS live"
                f" WHERE {quoted(field)} = CAST(CAST(:value AS text) AS {kind}) LIMIT {limit}"
            ),
            {"value": str(value)},
        )
        return [str(id) for (id,) in found]

    def _kind(self, relation: str, field: str) -> str:
        if relation not in self._kinds:
            columns = self._store.rows("audit_columns", relation=relation)
            self._kinds[relation] = {column["name"]: column["type"] for column in columns}
        return self._kinds[relation][field]


def _row(then: Mapping[str, Any], table: Relation) -> str:
    """`then` as JSON; a column takes a fraction as text too, and so to the last digit."""
    exact = {
        name: str(value) if isinstance(value, Decimal) and not table[name].is_json else value
        for name, value in then.items()
    }
    return json.dumps(exact, default=float)


def _blocked(step: Step, why: str, *, field: str | None = None) -> Blocked:
    return Blocked(entity_type=step.entity_type, entity_id=step.entity_id, why=why, field=field)
