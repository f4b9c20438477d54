"""Tables and documents as they were at an earlier time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pandas as pd
import sqlalchemy as sa

from fwdb import queries
from fwdb.audit import arguments, values
from fwdb.audit.context import Context
from fwdb.audit.relation import KEY, Column, Relation, quoted, relation
from fwdb.models import (
    ENTITIES,
    DocumentEntity,
    Id,
    document_id,
    document_uuid,
    entity_id,
    entity_uuid,
)
from fwdb.stores import frames
from fwdb.timespan import Time

__all__ = ["as_of"]

Documents = dict[str, dict[str, Any]]  # by id, under the names of the entity's fields

_TYPES = {"integer": "Int64", "boolean": "boolean", "time": "timestamp"}


def as_of(self: Context, entity_type: str, at: Time, *, id: Id | None = None) -> pd.DataFrame:
    """All entities of a type as they were at `at`, or the one of `id`: one row per entity.

    The columns of the table in its order and in types that may have gaps (those of
    `db.users.frame()` otherwise), then `known_since` and `changed_at`. No row means that it
    did not exist. Soft-deleted rows are rows, with `deleted_at`.

    `changed_at` is the last change up to `at`; missing when the trail has none. `known_since`
    is from when on the trail tells of the entity: since its table is captured, or since it
    was made if that is earlier, or, without capture, since its first row in the trail. Where
    `known_since` is missing or after `at`, the values are the oldest known ones.

    What went to archives is not in the table, so that `known_since` is not before the end of
    the last archived month; with `with_archives` it is read as well.

    A captured table is read backwards: its present rows, less the later changes. Designs are
    read forwards from the trail, and what it does not know of those made before it began is
    taken from the document; ``attrs["problems"]`` says which values are of another type than
    a design has, and missing here. Redacted text is ``[redacted]``; other redacted columns and
    those that are not captured are missing. Raises `UnknownName` for a type without a table,
    `ParameterError` for a time in the future or without a zone.
    """
    moment = arguments.at(at)
    uuid = None if id is None else entity_uuid(id)
    entity = ENTITIES.get(entity_type)
    if isinstance(entity, DocumentEntity):
        return _documents_as_of(self, entity, moment, uuid)
    table = relation(self.postgres, entity_type)
    with self.source.past(entity_type, uuid) as past:
        frame = self.postgres.frame(
            sa.text(_backwards(table)),
            entity_type=entity_type,
            entity_id=uuid,
            moment=moment,
            captured_since=past.since(table.since),
            archived=past.archived,
        )
    for column in table.columns:
        if column.is_json:
            shown = [values.redact_json(text) for text in frame[column.name]]
            frame[column.name] = pd.Series(shown, index=frame.index, dtype="str")
    return frame


# -- documents, read forwards ---------------------------------------------------------------------


def _documents_as_of(
    self: Context, entity: DocumentEntity[Any], moment: datetime, id: UUID | None
) -> pd.DataFrame:
    told = self.source.frame("audit_replayed", entity_type=entity.name, entity_id=id, moment=moment)
    live = _documents(self, entity, id)
    rows: Documents = {}
    for row in told.to_dict("records"):
        key = entity_id(str(row["entity_id"]))
        document = live.pop(key, {})
        if row["existed"]:
            state = json.loads(row["state"])
            rows[key] = {
                **({} if row["complete"] else document),
                **{entity.names.get(name, name): value for name, value in state.items()},
                "id": document.get("id", key),
                "known_since": row["known_since"],
                "changed_at": row["changed_at"],
            }
    for key, document in live.items():
        made = document.get("created_at")
        if not isinstance(made, datetime) or made <= moment:
            rows[key] = document
    types = {name: _TYPES.get(field.kind, "string") for name, field in entity.fields.items()}
    types |= {"known_since": "timestamp", "changed_at": "timestamp"}
    cells, problems = [], []
    for key, state in sorted(rows.items()):
        cells.append([_cell(entity, name, state.get(name)) for name in types])
        for name, cell in zip(types, cells[-1], strict=True):
            if cell is None and state.get(name) not in (None, pd.NaT):
                problems.append(f"{key}: {name} is of another type")
    frame = frames.from_rows(list(types), cells, types)
    frame.attrs["problems"] = tuple(problems)
    return frame


def _documents(self: Context, entity: DocumentEntity[Any], id: UUID | None) -> Documents:
    """The documents there are now; none without a MongoDB."""
    if self.mongodb is None:
        return {}
    wanted = {} if id is None else {"_id": document_id(entity_id(id))}
    with self.mongodb.errors():
        found = list(self.mongodb.collection(entity.collection).find(wanted))
    return {
        entity_id(document_uuid(document["_id"])[0]): {
            entity.names[name]: value for name, value in document.items() if name in entity.names
        }
        for document in found
    }


def _cell(entity: DocumentEntity[Any], name: str, value: Any) -> Any:
    if value is None or value is pd.NaT:
        return None
    if name not in entity.fields or entity.fields[name].kind == "time":
        try:
            found = datetime.fromisoformat(value) if isinstance(value, str) else value
            return found.astimezone(UTC) if isinstance(found, datetime) else None
        except (ValueError, OverflowError):
            return None
    shown = entity.cell(name, value)
    held = isinstance(value, dict | list) and shown is not None
    return values.redact_json(shown, name) if held else shown


# -- tables, read backwards -----------------------------------------------------------------------


def _backwards(table: Relation) -> str:
    """The statement that gives the rows of `table` at a moment."""
    key = quoted(KEY)
    columns = ",\n".join(f"{_value(c)} AS {quoted(c.name)}" for c in table.columns)
    # Where the trail does not reach back, a row that says it was made later was not there.
    made = "true"
    if "created_at" in table and table["created_at"].type.startswith("timestamp"):
        made = f"(live.{quoted('created_at')} <= CAST(:moment AS timestamptz)) IS NOT FALSE"
    return f"""
SELECT
{columns},
least(known.known_since, CAST(:captured_since AS timestamptz)) AS known_since,
known.changed_at
FROM (
    SELECT * FROM {table.quoted}
    WHERE CAST(:entity_id AS uuid) IS NULL OR {key} = CAST(:entity_id AS uuid)
) AS live
FULL JOIN (
    SELECT undone.*, before
    FROM (
{queries.load("audit_undone").statement}
    ) AS undone
    CROSS JOIN LATERAL jsonb_populate_record(
        CAST(NULL AS {table.quoted}), undone.values_before
    ) AS before
) AS undone ON undone.entity_id = live.{key}
LEFT JOIN (
{queries.load("audit_known").statement}
) AS known ON known.entity_id = coalesce(live.{key}, undone.entity_id)
WHERE coalesce(
    undone.existed,
    live.{key} IS NOT NULL AND (
        CAST(:captured_since AS timestamptz) <= CAST(:moment AS timestamptz)
        OR known.changed_at IS NOT NULL
        OR {made}
    )
)
ORDER BY coalesce(live.{key}, undone.entity_id)"""


def _value(column: Column) -> str:
    """The value of `column` at the moment, in the column's own type."""
    name, told = quoted(column.name), "'" + column.name.replace("'", "''") + "'"
    if column.name == KEY:
        return f"coalesce(live.{name}, undone.entity_id)"
    if column.secret and column.is_text:
        return f"CAST('{values.REDACTED}' AS text)"
    if column.secret or column.untold:
        return f"CASE WHEN false THEN live.{name} END"
    # A computed value follows others of its row, which may have changed.
    present = "undone.entity_id IS NULL" if column.generated else "undone.replaced IS NOT TRUE"
    return (
        f"CASE WHEN undone.values_before ? {told} THEN (undone.before).{name}"
        f" WHEN {present} THEN live.{name} END"
    )
