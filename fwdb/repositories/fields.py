"""What a repository knows of each field: its kind, whether it may be empty, which values fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from numbers import Number
from typing import Any
from uuid import UUID

from bson import ObjectId

from fwdb import errors
from fwdb.errors import FwdbError, InvalidData, ParameterError
from fwdb.models import Field, Kind, is_id
from fwdb.timespan import moment

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

_JSON = partial(json.dumps, allow_nan=False)


def checked(
    field: Field, value: Any, *, label: str, refuse: type[FwdbError] = ParameterError
) -> Any:
    """`value` as the store takes it for `field`; `label` names it in the error `refuse`.

    Ids become lower-case text, times become UTC and may be written as in `fwdb.timespan`.
    """
    match field.kind, value:
        case "uuid", str() | UUID() if _takes(UUID, str(value)):
            return str(UUID(str(value)))
        case "entity id", str() | UUID() | ObjectId() if is_id(value):
            return str(value).lower()
        case "time", datetime() | str():
            return _time(value, label, refuse)
        case "text", str() if _takes(str.encode, value):  # no half of a surrogate pair
            return value
        case "integer", int() if not isinstance(value, bool) and abs(value) < 2**63:
            return value
        case ("boolean", bool()) | ("object", dict()) | ("list", list()):
            return value
        case "list", tuple():
            return list(value)
        case "json", dict() | list() if _takes(_JSON, value):
            return value
    raise refuse(f"'{label}' is {shown(value, field)}; it takes {_WANTED[field.kind]}.")


def written(field: Field, value: Any, where: str) -> Any:
    """`value` for writing into `field` of `where`. Raises `InvalidData`."""
    if value is not None:
        return checked(field, value, label=field.name, refuse=InvalidData)
    if not field.nullable:
        raise InvalidData(f"{field.name} of {where} must have a value.")
    return None


def shown(value: object, field: Field) -> str:
    """`value` for a message, hidden when it is a secret or a person's."""
    text = field.kind == "text" and not isinstance(value, Number)  # a name, a mail address …
    if field.secret or text:
        return f"a {type(value).__name__}"
    said = errors.shown(value)
    return f"{said} ({type(value).__name__})" if isinstance(value, Number) else said


def _takes(check: Callable[[Any], object], value: Any) -> bool:
    """Whether `check` goes through with `value`."""
    try:
        check(value)
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
