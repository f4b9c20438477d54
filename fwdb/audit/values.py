"""Entities as the JSON values that the audit trail keeps: plain, without secrets, only changes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from enum import Enum
from numbers import Integral, Real
from typing import Any

from fwdb.errors import ParameterError, is_secret
from fwdb.models import BOOKKEEPING

__all__ = [
    *("REDACTED", "REDACTED_CHANGED", "Values", "changes", "image", "is_secret"),
    *("may_hold_secret", "redact_json", "text"),
]

REDACTED = "[redacted]"
REDACTED_CHANGED = "[redacted: changed]"  # differs from REDACTED, so that the change itself shows

# Hashes of passwords in modular crypt format are secrets under any name.
_SECRET_VALUE = re.compile(r"\$(2[abxy]|argon2(id|i|d)|scrypt|5|6|y|pbkdf2[\w-]*)\$\S{16,}")

# One of these is in every text that either finds, and looking for them is ten times quicker.
_HINTS = (
    "pass", "pwd", "secret", "token", "key", "credential", "bearer", "auth", "cookie", "mnemonic",
    "session", "card", "recover", "backup", "security", "verif", "otp", "mfa", "jw", "pin", "puk",
    "cv", "csc", "ssn", "$",
)  # fmt: skip

Values = dict[str, Any]


def image(entity: object) -> Values:
    """All fields of `entity` (a dataclass or a mapping) as JSON values, secrets redacted.

    uuids, ids and numbers without a JSON form become text, times ISO text in UTC. Raises
    `ParameterError` for anything else than a dataclass or a mapping.
    """
    return {name: _redacted(name, value) for name, value in _plain_fields(entity).items()}


def changes(
    old: object, new: object, *, bookkeeping: frozenset[str] = BOOKKEEPING
) -> tuple[Values, Values] | None:
    """The fields that differ, as they were and as they are, or None when nothing changed.

    A field that one side lacks is null there. `bookkeeping`, by default `updated_at` and
    `version`, is kept beside other changes and is none by itself. A secret that changed is
    ``[redacted]`` before and ``[redacted: changed]`` after.
    """
    before, after = _plain_fields(old), _plain_fields(new)
    names = [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]
    if not set(names) - bookkeeping:
        return None
    return (
        {name: _redacted(name, before.get(name)) for name in names},
        {name: _redacted(name, after.get(name), before.get(name)) for name in names},
    )


def may_hold_secret(text: str) -> bool:
    """False when nothing in `text` can be a secret; True says nothing yet."""
    folded = text.casefold()
    return any(hint in folded for hint in _HINTS)


def redact_json(text: Any, name: str = "", before: Any = None) -> Any:
    """`text`, which is JSON, with its secrets redacted: for rows that others wrote.

    `name` is that of the field whose value it is, `before` the JSON that stood there, so that a
    changed secret shows. What names no secret, or is no JSON, comes back as it is.
    """
    if not isinstance(text, str) or not (is_secret(name) or may_hold_secret(text)):
        return text
    try:
        old, new = json.loads(before) if isinstance(before, str) else None, json.loads(text)
    except ValueError:
        return text
    shown = _redacted(name, new, old)
    return text if shown == new else json.dumps(shown, ensure_ascii=False)


def _plain_fields(entity: object) -> Values:
    if isinstance(entity, type) or not (
        dataclasses.is_dataclass(entity) or isinstance(entity, Mapping)
    ):
        raise ParameterError(
            f"values of the audit trail are an entity or a mapping, not {type(entity).__name__}."
        )
    fields: Values = _plain(entity)
    return fields


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Integral):  # numpy's integers are no int
        return int(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)  # JSON has no NaN and no infinity
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {_text(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner) for inner in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: _plain(getattr(value, name)) for name in names}
    return _text(value)  # UUID, Decimal, ObjectId, Decimal128, …


def text(value: str | None) -> str | None:
    """`value` as PostgreSQL can hold it."""
    return None if value is None else _text(value)


def _text(value: object) -> str:
    # PostgreSQL refuses NUL and half a surrogate pair, MongoDB takes the first; a design must not
    # be unable to be recorded.
    text = str(value).replace("\x00", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but true is not 1 as it is in Python."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _redacted(name: str, value: Any, before: Any = None) -> Any:
    """`value` without secrets; `before` is what stood there, to tell whether a secret changed."""
    if value is None or isinstance(value, bool) or value in (REDACTED, REDACTED_CHANGED):
        return value
    if is_secret(name) or (isinstance(value, str) and _SECRET_VALUE.search(value)):
        return REDACTED if before is None or before == value else REDACTED_CHANGED
    if isinstance(value, dict):
        old = before if isinstance(before, dict) else {}
        return {key: _redacted(key, inner, old.get(key)) for key, inner in value.items()}
    if isinstance(value, list):
        old_items = before if isinstance(before, list) else []
        return [
            _redacted("", inner, old_items[n] if n < len(old_items) else None)
            for n, inner in enumerate(value)
        ]
    return value
