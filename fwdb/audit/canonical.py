"""The form of an audit row that is sealed: a line as PostgreSQL's COPY writes it.

Columns in a fixed order, separated by tabs, a null as ``\\N``, backslash, tab and line ends
escaped: no two rows have the same line. JSON is the text that PostgreSQL has for it, so that 1.10
stays 1.10. Times are UTC in ISO form; the session's settings are set, not trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fwdb.errors import ArchiveError

__all__ = [
    "ACTOR",
    "DAMAGE",
    "FIELDS",
    "FIRST_MONTH",
    "HEADER",
    "LAST_MONTH",
    "NULL",
    "VALUES",
    "clamped",
    "from_parquet",
    "lines",
    "month_of",
    "split",
    "value",
]

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
_ESCAPES = (("\\", "\\\\"), ("\b", "\\b"), ("\f", "\\f"), ("\n", "\\n"))
_MORE_ESCAPES = (("\r", "\\r"), ("\t", "\\t"), ("\v", "\\v"))
_BATCH_ROWS = 10_000

# Months of Python's calendar. All that PostgreSQL has before and after, up to the infinities,
# counts as of the first and of the last.
FIRST_MONTH, LAST_MONTH = date.min, date(9999, 12, 1)
# What a file that is damaged, or was made by somebody else, makes pyarrow raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, OverflowError, pa.ArrowException)


def split(line: bytes) -> tuple[list[bytes], bytes, bytes, bytes]:
    """Fields of the header and of the actor, and the three parts that are hashed."""
    fields = line.split(b"\t", _ACTOR)
    header = b"\t".join(fields[:_HEADER])
    return fields, header, b"\t".join(fields[_HEADER:_ACTOR]), fields[_ACTOR]


_UNESCAPE = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def value(field: bytes) -> str | None:
    """A field of a line as it was."""
    if field == NULL:
        return None
    first, *rest = field.split(b"\\\\")
    pieces = [first, *rest]
    for letter, plain in _UNESCAPE.items():
        pieces = [piece.replace(b"\\" + letter, plain) for piece in pieces]
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


def lines(table: pa.Table | pa.RecordBatch) -> list[bytes]:
    """The rows of an exported month as the same lines; a column that it lacks is null."""
    columns = [_text(table, name) for name in FIELDS]
    joined = pc.binary_join_element_wise(*columns, "\t")
    return [line.encode() for line in joined.to_pylist()]


def _text(table: pa.Table | pa.RecordBatch, name: str) -> Any:
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
    for plain, escaped in _ESCAPES + _MORE_ESCAPES:
        if pc.any(pc.match_substring(text, plain)).as_py():
            text = pc.replace_substring(text, plain, escaped)
    return pc.fill_null(text, "\\N")


def from_parquet(path: Path) -> Iterator[tuple[tuple[int, str], bytes]]:
    """Rows of an exported month as key (transaction, id) and line, in the order of the file.

    Raises `ArchiveError` for a file that cannot be read to its end.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                keys = zip(_transactions(batch), _text(batch, "id").to_pylist(), strict=True)
                yield from zip(keys, lines(batch), strict=True)
    except DAMAGE as error:
        raise ArchiveError(f"{path} cannot be read to its end ({type(error).__name__}).") from error


def _transactions(table: pa.Table | pa.RecordBatch) -> list[int]:
    if "transaction_id" not in table.schema.names:
        return [0] * table.num_rows
    kept = pc.cast(table.column("transaction_id"), pa.int64())
    found: list[int] = pc.fill_null(kept, 0).to_pylist()
    return found
