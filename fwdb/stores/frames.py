"""DataFrames in and out of PostgreSQL, in types that do not depend on the road taken; and as CSV.

| PostgreSQL | pandas |
|---|---|
| smallint, integer, bigint | Int64; int64 for a column that the model declares NOT NULL |
| boolean | boolean; bool for a column that the model declares NOT NULL |
| real, double precision, numeric | float64 |
| timestamp with time zone | datetime64[us, UTC] |
| timestamp, date | datetime64[us], date32[day][pyarrow] |
| uuid, json, jsonb, enums, text and all others | str |

The types follow from the statement and never from the rows, so that an empty answer and a full
one can be put together.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg import generators, sql
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus
from psycopg.waiting import Wait
from sqlalchemy import Column, Select
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from fwdb.errors import InvalidData, ParameterError, UnknownName
from fwdb.stores.session import Session, driver_of

# How a formula begins, with the wide signs of East Asian keyboards; spreadsheets skip spaces.
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
_THREADS_FROM_BYTES = 8 << 20  # below, threads cost more work than they save time
_BLOCK_BYTES = 1 << 20  # the reader's own choice
_BATCH_ROWS = 50_000  # bounds the memory of a load to one batch of text

# Type OIDs are fixed in PostgreSQL's catalog (src/include/catalog/pg_type.dat).
_ARROW_TYPES: dict[int, pa.DataType] = {
    16: pa.bool_(),
    20: pa.int64(),
    21: pa.int64(),
    23: pa.int64(),
    26: pa.int64(),
    700: pa.float64(),
    701: pa.float64(),
    1700: pa.float64(),
    1082: pa.date32(),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
}
_NULLABLE: dict[pa.DataType, Any] = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def from_copy(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any]
) -> pd.DataFrame:
    """The rows of `statement`, read by COPY on the connection's own transaction.

    Raises `InvalidData` for a value that a column of the frame cannot hold, such as the
    timestamp ``infinity``, and `ParameterError` for two columns of one name.
    """
    found: list[pa.Table] = []
    copy_tables(connection, statement, parameters, found.append)
    return _to_pandas(found[0], _never_null(statement))


def copy_tables(
    connection: Connection,
    statement: Executable,
    parameters: Mapping[str, Any],
    consume: Callable[[pa.Table], Any],
    *,
    batch_bytes: float = math.inf,
) -> None:
    """Hand the rows of `statement` to `consume`, in tables of about `batch_bytes` of text.

    At least one table comes, which tells columns and types when there are no rows. Raises as
    `from_copy`.
    """
    query = _literal(connection, statement, parameters)
    types = _types(connection, query)
    rows: list[memoryview] = []
    size, empty = 0, True

    def take(row: memoryview) -> None:
        nonlocal rows, size, empty
        rows.append(row)
        size += len(row)
        if size >= batch_bytes:
            consume(_parse(rows, types))
            rows, size, empty = [], 0, False

    _copy_out(connection, query, "csv", take)
    if rows or empty:
        consume(_parse(rows, types))


def each_line(
    connection: Connection,
    statement: Executable,
    parameters: Mapping[str, Any],
    feed: Callable[[bytes], Any],
) -> None:
    """Give `feed` each row of `statement` as a line of COPY's text format, in UTF-8."""
    query = _literal(connection, statement, parameters)
    # The line end is part of the server's message.
    _copy_out(connection, query, "text, ENCODING 'UTF8'", lambda row: feed(bytes(row)[:-1]))


def _copy_out(
    connection: Connection, query: sql.SQL, form: str, take: Callable[[memoryview], Any]
) -> None:
    driver = driver_of(connection)
    copy = sql.SQL("COPY ({}\n) TO STDOUT (FORMAT {})").format(query, sql.SQL(form))
    driver.wait(_receive(driver, copy.as_bytes(driver), take))


def _receive(driver: Session, copy: bytes, take: Callable[[memoryview], Any]) -> PQGen[None]:
    """Run `copy` and give `take` each message of the server, which is one row.

    psycopg's own reader, `cursor.copy()`, goes through its event loop for every row, this one
    when none has arrived: `frame()` of 10,000 rows costs 1/6.9 of pandas.read_sql instead of
    1/4.4, in one interleaved run.
    """
    pgconn = driver.pgconn
    pgconn.send_query(copy)
    (answer,) = yield from generators.execute(pgconn)
    if answer.status == ExecStatus.COPY_OUT:
        size, row = pgconn.get_copy_data(1)
        while size >= 0:
            if size:
                take(row)
            else:
                while not (yield Wait.R):
                    continue
                pgconn.consume_input()
            size, row = pgconn.get_copy_data(1)
        (answer,) = yield from generators.fetch_many(pgconn)
    if answer.status != ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(answer, encoding=driver.info.encoding)


def _types(connection: Connection, query: sql.SQL) -> dict[str, pa.DataType]:
    none = sql.SQL("SELECT * FROM ({}\n) AS q LIMIT 0").format(query)
    described = driver_of(connection).execute(none).description or []
    types = {c.name: _ARROW_TYPES.get(c.type_code, pa.string()) for c in described}
    if len(types) < len(described):
        names = [c.name for c in described]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ParameterError(f"the statement has two columns '{twice[0]}'; name one of them AS.")
    return types


def from_rows(
    names: Sequence[str], rows: Sequence[Sequence[Any]], declared: Mapping[str, str]
) -> pd.DataFrame:
    """`rows` as a frame with the `declared` type of each column, also when there are none.

    Raises `InvalidData` that names the column for a value that is not of its type: nothing is
    rounded, cut or turned into a gap.
    """
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    arrays = {
        name: _column(name, values, declared.get(name))
        for name, values in zip(names, columns, strict=True)
    }
    return pd.DataFrame(arrays, index=pd.RangeIndex(len(rows)), copy=False)


def copy_into(connection: Connection, table: str, frame: pd.DataFrame) -> int:
    """COPY `frame` into `table`; the number of rows. Columns are matched by name."""
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    target = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    )
    options = pacsv.WriteOptions(include_header=False)
    with driver_of(connection).cursor() as cursor:
        with cursor.copy(target) as copy:
            for batch in arrow.to_batches(max_chunksize=_BATCH_ROWS):
                block = io.BytesIO()
                pacsv.write_csv(batch, block, options)
                copy.write(block.getvalue())
        return cursor.rowcount


def _literal(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any]
) -> sql.SQL:
    """`statement` with its parameters written into the text: COPY takes none beside it."""
    compiled = statement.compile(  # type: ignore[attr-defined]
        dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
    )
    bound = compiled.construct_params(dict(parameters) or None)
    processed = {
        name: compiled._bind_processors[name](value) if name in compiled._bind_processors else value
        for name, value in bound.items()
    }
    text = psycopg.ClientCursor(driver_of(connection)).mogrify(str(compiled), processed)
    return sql.SQL(text.rstrip().rstrip(";"))


def _parse(rows: list[memoryview], types: dict[str, pa.DataType]) -> pa.Table:
    if not rows:
        return pa.schema(types).empty_table()
    text = b"".join(rows)
    try:
        return pacsv.read_csv(
            pa.BufferReader(text),
            # An empty line is the NULL of a one-column answer.
            parse_options=pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            read_options=pacsv.ReadOptions(
                column_names=list(types),
                block_size=max(_BLOCK_BYTES, max(map(len, rows))),
                use_threads=len(text) > _THREADS_FROM_BYTES,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                null_values=[""],
                true_values=["t"],
                false_values=["f"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        # The text of the error quotes the value, so it is not chained.
        failed = str(error)
    column = next((name for name in types if f"'{name}'" in failed), "")
    index = failed.partition("column #")[2].partition(":")[0]
    if not column and index.isdigit():
        column = list(types)[int(index)]
    raise InvalidData(
        f"column {column or '(unknown)'} holds a value that a frame of type "
        f"{types.get(column, 'unknown')} cannot hold; cast it to text in the query."
    )


def _never_null(statement: Executable) -> frozenset[str]:
    """Names of the columns that stand in `statement` as a NOT NULL column of a model."""
    if not isinstance(statement, Select):
        return frozenset()
    columns = statement.selected_columns
    return frozenset(c.name for c in columns if isinstance(c, Column) and not c.nullable)


def _to_pandas(table: pa.Table, never_null: frozenset[str]) -> pd.DataFrame:
    series: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        # An outer join can leave a gap in a column that has none in its table.
        firm = name in never_null and not column.null_count
        if pa.types.is_string(column.type):
            series[name] = pd.Series(pd.array(column, dtype="str"))
        elif pa.types.is_date32(column.type):
            series[name] = pd.Series(column, dtype=pd.ArrowDtype(pa.date32()))
        elif column.type in _NULLABLE and not firm:
            series[name] = column.to_pandas(types_mapper=_NULLABLE.get)
        else:
            series[name] = column.to_pandas()
    return pd.DataFrame(series, copy=False)


def _column(name: str, values: Sequence[Any], declared: str | None) -> Any:
    if declared is None:
        return pd.Series(values, dtype=object).infer_objects()
    if declared not in _CONVERT:
        raise UnknownName("column type", declared, _CONVERT, where=f"column {name}")
    dtype, each = _CONVERT[declared]
    try:
        if dtype == "str":
            # By way of Arrow, and plain strings first: three times as fast as a Series of each.
            texts = [v if type(v) is str else None if _is_gap(v) else _text(v) for v in values]
            return pd.array(pa.array(texts, pa.large_string()), dtype="str")
        found = [None if _is_gap(value) else each(value) for value in values]
        if dtype in {"int64", "bool"} and None in found:
            raise ValueError("a gap in a column that is declared to have none")
        return pd.array(found, dtype=dtype)
    except (TypeError, ValueError, OverflowError):
        # The text of the error quotes the value, so it is not chained.
        raise InvalidData(
            f"column {name} holds a value that is no {declared}; leave the column out, "
            "or mend the value."
        ) from None


def as_csv(frame: pd.DataFrame) -> str:
    """`frame` without its index as CSV (RFC 4180), a line end after each row.

    Every text is quoted; numbers, truth values and times (ISO, in UTC where they have a zone) are
    bare, and a gap is an empty field without quotes, so that it is told from an empty text. A
    text that a spreadsheet would take for a formula gets an apostrophe in front. Lists and
    objects are JSON.
    """
    columns = [[_field(str(name)), *map(_field, values)] for name, values in frame.items()]
    rows = (",".join(row) for row in zip(*columns, strict=True))
    return "".join((row or '""') + "\n" for row in rows)  # readers skip an empty line


def _field(value: Any) -> str:
    if value is pd.NA or _is_gap(value):
        return ""
    if isinstance(value, datetime):  # a Timestamp too
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat().replace("+00:00", "Z")
    if isinstance(value, (Number, np.bool_, date)):  # bool and Decimal are numbers
        return str(value)
    text = _text(value)
    guard = "'" if _FORMULA.match(text) else ""
    return '"' + guard + text.replace('"', '""') + '"'


def _is_gap(value: Any) -> bool:
    return value is None or value is pd.NaT or (isinstance(value, float) and value != value)


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("a fraction in a column of whole numbers")
    return int(value)


def _truth(value: Any) -> bool:
    if value is not True and value is not False:
        raise ValueError("neither true nor false")
    return value


def _moment(value: Any) -> Any:
    if not isinstance(value, datetime):
        raise ValueError("no time")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_CONVERT: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "string": ("str", _text),
    "category": ("category", _text),
    "int64": ("int64", _whole),
    "Int64": ("Int64", _whole),
    "float64": ("float64", float),
    "bool": ("bool", _truth),
    "boolean": ("boolean", _truth),
    "timestamp": ("datetime64[us, UTC]", _moment),
    "datetime64[us, UTC]": ("datetime64[us, UTC]", _moment),
}
