"""The form of an audit row that is sealed: a line as PostgreSQL's COPY writes it.

Columns in a fixed order, separated by tabs, a null as ``\\N``, backslash, tab and line ends
escaped: no two rows have the same line. JSON is the text that PostgreSQL has for it, so that 1.10
stays 1.10. Times are UTC in ISO form; the session's settings are set, not trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# What stays when personal data is erased; who did it, as far as it can be erased; what it held.
HEADER = (
    "id",
    "created_at",
    "entity_type",
    "entity_id",
    "action",
    "transaction_id",
    "origin",
    "db_user",
)
ACTOR = ("user_id", "ip_address", "user_agent", "application_name", "client_address", "reason")
VALUES = ("old_values", "new_values", "metadata")
FIELDS = (*HEADER, *ACTOR, *VALUES)

NULL = b"\\N"
_HEADER, _ACTOR = len(HEADER), len(HEADER) + len(ACTOR)
_ESCAPED = {letter: f"\\{as_}" for letter, as_ in zip("\b\f\n\r\t\v", "bfnrtv", strict=True)}

# Months of Python's calendar. All that PostgreSQL has before and after, up to the infinities,
# counts as of the first and of the last.
FIRST_MONTH, LAST_MONTH = date.min, date(9999, 12, 1)


def split(line: bytes) -> tuple[list[bytes], bytes, bytes, bytes]:
    """Fields of the header and of the actor, and the three parts that are hashed."""
    fields = line.split(b"\t", _ACTOR)
    header = b"\t".join(fields[:_HEADER])
    return fields, header, b"\t".join(fields[_HEADER:_ACTOR]), fields[_ACTOR]


def value(field: bytes) -> str | None:
    """A field of a line as it was."""
    if field == NULL:
        return None
    pieces = field.split(b"\\\\")
    for plain, escaped in _ESCAPED.items():
        pieces = [piece.replace(escaped.encode(), plain.encode()) for piece in pieces]
    return b"\\".join(pieces).decode()


def clamped(field: bytes) -> datetime:
    """A time in a line, or the end of Python's calendar that is nearer to it."""
    try:
        return datetime.fromisoformat(field.decode())
    except ValueError:
        early = field.startswith(b"-") or field.endswith(b" BC")
        return (datetime.min if early else datetime.max).replace(tzinfo=UTC)


def month_of(field: bytes) -> date:
    """The month, in UTC, of a time in a line."""
    return clamped(field).date().replace(day=1)


def lines(table: pa.RecordBatch) -> list[bytes]:
    """The rows of an exported month as the same lines; a column that it lacks is null."""
    columns = [_text(table, name) for name in FIELDS]
    joined = pc.binary_join_element_wise(*columns, "\t")
    return [line.encode() for line in joined.to_pylist()]


def _text(table: pa.RecordBatch, name: str) -> Any:
    if name not in table.schema.names:
        return pa.array(["\\N"] * table.num_rows)
    column = table.column(name)
    kind = column.type
    if pa.types.is_timestamp(kind):
        # A cast to text gives six digits of a second; PostgreSQL leaves zeros at the end out.
        plain = pc.strftime(pc.cast(column, pa.timestamp("us")), "%Y-%m-%d %H:%M:%S")
        text = pc.utf8_rtrim(pc.utf8_rtrim(plain, "0"), ".")
        # Whole seconds such as :30.000000 keep their zero, which stands before the point.
        return pc.fill_null(pc.binary_join_element_wise(text, "+00", ""), "\\N")
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
    text = pc.cast(column, pa.string())
    for plain, escaped in {"\\": "\\\\", **_ESCAPED}.items():
        if pc.any(pc.match_substring(text, plain)).as_py():
            text = pc.replace_substring(text, plain, escaped)
    return pc.fill_null(text, "\\N")


def keyed(table: pa.RecordBatch) -> Iterator[tuple[tuple[int, str], bytes]]:
    """The rows of an exported month as their keys (transaction, id) and lines."""
    transactions = [0] * table.num_rows
    if "transaction_id" in table.schema.names:
        known = pc.cast(table.column("transaction_id"), pa.int64())
        transactions = pc.fill_null(known, 0).to_pylist()
    ids = _text(table, "id").to_pylist()
    return zip(zip(transactions, ids, strict=True), lines(table), strict=True)
