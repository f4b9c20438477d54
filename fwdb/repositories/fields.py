"""What a repository knows of each field: its kind, whether it may be empty, which values fit."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from numbers import Number
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from bson import ObjectId
from sqlalchemy.dialects.postgresql import JSONB

from fwdb import errors
from fwdb.errors import FwdbError, InvalidData, ParameterError
from fwdb.models import EntityId, Id, Label, entity_uuid
from fwdb.timespan import moment

Kind = Literal["uuid", "entity id", "text", "integer", "boolean", "time", "json", "object", "list"]

_SQL_KINDS: tuple[tuple[type[Any], Kind], ...] = (
    (EntityId, "entity id"),
    (sa.Uuid, "uuid"),
    (Label, "text"),
    (sa.String, "text"),
    (sa.Integer, "integer"),
    (sa.Boolean, "boolean"),
    (sa.DateTime, "time"),
    (JSONB, "json"),
)
_PYTHON_KINDS: dict[Any, Kind] = {
    str: "text",
    int: "integer",
    bool: "boolean",
    datetime: "time",
    dict: "object",
    list: "list",
}
_WANTED: dict[Kind, str] = {
    "uuid": "a UUID",
    "entity id": "a UUID or the 24 hexadecimal digits of an ObjectId",
    "text": "text",
    "integer": "a whole number",
    "boolean": "True or False",
    "time": "a time with a zone",
    "json": "a dictionary or list of JSON values",
    "object": "a dictionary",
    "list": "a list",
}
_DTYPES: dict[Kind, tuple[str, str]] = {  # never empty, maybe empty
    "integer": ("int64", "Int64"),
    "boolean": ("bool", "boolean"),
    "time": ("datetime64[us, UTC]", "datetime64[us, UTC]"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an entity.

    `nullable` is what the model allows; `may_be_empty` also covers rows that something older or
    other than fwdb wrote. A `secret` field is in no frame and no sort order unless it is named.
    """

    name: str
    kind: Kind
    nullable: bool
    may_be_empty: bool
    secret: bool = False

    @property
    def ordered(self) -> bool:
        """Whether one value comes before another, so that rows can be sorted by it."""
        return self.kind not in {"json", "object", "list"}

    @property
    def dtype(self) -> str:
        """The type of its column in a frame, the same with and without empty values."""
        return _DTYPES[self.kind][self.nullable] if self.kind in _DTYPES else "string"


def table_fields(table: sa.Table) -> dict[str, Field]:
    """The fields of a PostgreSQL table by name."""
    fields: dict[str, Field] = {}
    for column in table.columns:
        kind = next(kind for known, kind in _SQL_KINDS if isinstance(column.type, known))
        # In tables that the existing service made, most columns with a default may be null.
        doubtful = column.server_default is not None and kind not in {"uuid", "time"}
        fields[column.name] = Field(
            name=column.name,
            kind=kind,
            nullable=bool(column.nullable),
            may_be_empty=bool(column.nullable) or doubtful,
            secret=bool(column.info.get("secret")),
        )
    return fields


def entity_fields(entity: type[Any]) -> dict[str, Field]:
    """The fields of a document entity by name; any but the id may be missing in a document."""
    hints = typing.get_type_hints(entity)
    fields: dict[str, Field] = {}
    for field in dataclasses.fields(entity):
        hint, nullable = hints[field.name], False
        if isinstance(hint, types.UnionType):
            nullable = True
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        is_id = field.name == "id"
        kind = "entity id" if is_id else _PYTHON_KINDS[typing.get_origin(hint) or hint]
        fields[field.name] = Field(field.name, kind, nullable, may_be_empty=not is_id)
    return fields


def checked(
    field: Field, value: Any, *, label: str, refuse: type[FwdbError] = ParameterError
) -> Any:
    """`value` as the store takes it for `field`; `label` names it in the error `refuse`.

    Ids become lower-case text, times become UTC and may be written as in `fwdb.timespan`.
    """
    match field.kind, value:
        case "uuid", str() | UUID() if _is_uuid(value):
            return str(UUID(str(value)))
        case "entity id", str() | UUID() | ObjectId() if _is_entity_id(value):
            return str(value).lower()
        case "time", datetime() | str():
            return _time(value, label, refuse)
        case "text", str() if _is_unicode(value):
            return value
        case "integer", int() if not isinstance(value, bool) and abs(value) < 2**63:
            return value
        case ("boolean", bool()) | ("object", dict()) | ("list", list()):
            return value
        case "list", tuple():
            return list(value)
        case "json", dict() | list() if _is_json(value):
            return value
    raise refuse(f"'{label}' is {shown(value, field)}; it takes {_WANTED[field.kind]}.")


def written(fields: Mapping[str, Field], name: str, value: Any, where: str) -> Any:
    """`value` for writing into the field `name` of `where`. Raises `InvalidData`."""
    field = fields[name]
    if value is not None:
        return checked(field, value, label=name, refuse=InvalidData)
    if not field.nullable:
        raise InvalidData(f"{name} of {where} must have a value.")
    return None


def shown(value: object, field: Field) -> str:
    """`value` for a message, hidden when it is a secret or a person's."""
    text = field.kind == "text" and not isinstance(value, Number)  # a name, a mail address …
    if field.secret or text:
        return f"a {type(value).__name__}"
    said = errors.shown(value)
    return f"{said} ({type(value).__name__})" if isinstance(value, Number) else said


def _is_uuid(value: str | UUID) -> bool:
    try:
        UUID(str(value))
    except ValueError:
        return False
    return True


def _is_entity_id(value: Id) -> bool:
    try:
        entity_uuid(value)
    except ParameterError:
        return False
    return True


def _is_unicode(value: str) -> bool:
    """Whether the text has no half of a surrogate pair, which no database takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _time(value: datetime | str, label: str, refuse: type[FwdbError]) -> datetime:
    try:
        return moment(value, name=label)
    except ParameterError as error:
        if refuse is ParameterError:
            raise
        raise refuse(str(error)) from None
