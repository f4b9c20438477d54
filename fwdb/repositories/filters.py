"""Filters: ``find(role="designer", created_at__ge="7d")`` as a list of conditions.

- ``role="user"``, ``role__ne="user"``: equal, not equal; None is a value like any other.
- ``price__gt``, ``__ge``, ``__lt``, ``__le``: greater, at least, less, at most; never true of an
  empty field.
- ``role__in=["user", "admin"]``: one of these.
- ``email__like="%@x.com"``: the whole text fits a pattern, in which ``%`` is any text and ``_``
  any sign; upper and lower case are alike.
- ``deleted_at__null=True``: empty, or with False not empty.
- ``properties__contains={"tags": ["casual"]}``: an object or a list that holds this part.

Objects and lists are asked by equality, ``__null`` and ``__contains`` only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fwdb.errors import ParameterError, UnknownName
from fwdb.models import Field
from fwdb.repositories.fields import checked

OPERATORS = ("eq", "ne", "gt", "ge", "lt", "le", "in", "like", "null", "contains")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold: `field` `operator` `value`, the value checked."""

    field: Field
    operator: str
    value: Any


def conditions(
    filters: Mapping[str, Any], fields: Mapping[str, Field], where: str
) -> list[Condition]:
    """The conditions that `filters` ask for; all must hold.

    Raises `UnknownName` for a field or an operator that does not exist in `where` and
    `ParameterError` for a value that does not fit.
    """
    return [_condition(key, value, fields, where) for key, value in filters.items()]


def _condition(key: str, value: Any, fields: Mapping[str, Field], where: str) -> Condition:
    name, _, operator = key.partition("__")
    if name not in fields:
        raise UnknownName("field", name, fields, where=where)
    if operator and operator not in OPERATORS:
        raise UnknownName("operator", operator, OPERATORS, where=f"the filter '{key}'")
    field, operator = fields[name], operator or "eq"
    _applies(field, operator, key)
    match operator:
        case "eq" | "ne":
            return Condition(field, operator, _plain(field, value, key))
        case "null":
            if not isinstance(value, bool):
                raise ParameterError(f"'{key}' takes True or False.", name=key)
            return Condition(field, operator, value)
        case "in":
            if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
                raise ParameterError(f"'{key}' takes a list of values.", name=key)
            return Condition(field, operator, [_plain(field, item, key) for item in value])
        case "like":
            like_pattern(checked(field, value, label=key), key)
            return Condition(field, operator, value)
        case "contains":
            return Condition(field, operator, _part(value, key))
        case _:
            return Condition(field, operator, checked(field, value, label=key))


def _applies(field: Field, operator: str, key: str) -> None:
    if operator == "like" and field.kind != "text":
        raise ParameterError(f"'{key}' cannot be asked: only text has a pattern.", name=key)
    if operator == "contains" and field.ordered:
        raise ParameterError(
            f"'{key}' cannot be asked: only an object or list has parts.", name=key
        )
    if operator in {"gt", "ge", "lt", "le", "in"} and not field.ordered:
        raise ParameterError(
            f"'{key}' cannot be asked of an object or list; use '{field.name}__contains'.", name=key
        )


def _plain(field: Field, value: Any, key: str) -> Any:
    if value is None:
        return None
    if not field.ordered:
        _no_operator_keys(value, key)
    return checked(field, value, label=key)


def _part(value: Any, key: str) -> Any:
    if value is None or isinstance(value, (bytes, set)):
        raise ParameterError(f"'{key}' takes text, a number, a list or a dictionary.", name=key)
    _no_operator_keys(value, key)
    return value


def _no_operator_keys(value: Any, key: str) -> None:
    """A key like ``$gt`` would be an operator to MongoDB, and a dot a path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str) or name.startswith("$") or "." in name:
                raise ParameterError(
                    f"'{key}' holds the key '{name}'; keys are text without '$' in front or dots.",
                    name=key,
                )
            _no_operator_keys(inner, key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _no_operator_keys(inner, key)


def like_pattern(pattern: str, key: str = "like") -> str:
    r"""`pattern` of ``__like`` as a regular expression for the whole text.

    >>> like_pattern("50\\% _ff%")
    '^50%\\ .ff.*$'
    """
    found = ["^"]
    for part in re.findall(r"\\.|[^\\]|\\", pattern, re.DOTALL):
        if part == "\\":
            raise ParameterError(f"'{key}' ends in a lone backslash; write \\\\ for one.", name=key)
        found.append({"%": ".*", "_": "."}.get(part) or re.escape(part[-1]))
    return "".join([*found, "$"])
