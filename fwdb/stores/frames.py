"""DataFrames in and out of PostgreSQL, in types that do not depend on the road taken.

| PostgreSQL | pandas |
|---|---|
| smallint, integer, bigint | int64, or Int64 when a value is missing |
| boolean | bool, or boolean when a value is missing |
| real, double precision, numeric | float64 |
| timestamp with time zone | datetime64[us, UTC] |
| timestamp, date | datetime64[us], date32[day][pyarrow] |
| uuid, json, jsonb, enums, text and all others | str |
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg import sql
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from fwdb.errors import InvalidData

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


def from_copy(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any]
) -> pd.DataFrame:
    """The rows of `statement`, read by COPY on the connection's own transaction.

    Raises `InvalidData` for a value that a column of the frame cannot hold, such as the
    timestamp ``infinity``.
    """
    driver = _driver(connection)
    query = _literal(connection, driver, statement, parameters)
    with driver.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT * FROM ({}) AS q LIMIT 0").format(query))
        described = cursor.description or []
        types = {c.name: _ARROW_TYPES.get(c.type_code, pa.string()) for c in described}
        buffer = io.BytesIO()
        with cursor.copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(query)) as copy:
            for block in copy:
                buffer.write(block)
    if buffer.tell() == 0:
        table = pa.schema(types).empty_table()
    else:
        table = _parse(buffer, types)
    return _to_pandas(table)


def from_rows(
    names: Sequence[str], rows: Sequence[Sequence[Any]], declared: Mapping[str, str]
) -> pd.DataFrame:
    """`rows` as a frame with the `declared` type of each column, also when there are none."""
    frame = pd.DataFrame([tuple(row) for row in rows], columns=list(names), dtype=object)
    return frame.assign(**{name: _column(frame[name], declared.get(name)) for name in names})


def copy_into(connection: Connection, table: str, frame: pd.DataFrame) -> int:
    """COPY `frame` into `table`; the number of rows. Columns are matched by name."""
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    target = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    )
    options = pacsv.WriteOptions(include_header=False)
    with _driver(connection).cursor() as cursor:
        with cursor.copy(target) as copy:
            for batch in arrow.to_batches(max_chunksize=_BATCH_ROWS):
                block = io.BytesIO()
                pacsv.write_csv(batch, block, options)
                copy.write(block.getvalue())
        return cursor.rowcount


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _literal(
    connection: Connection,
    driver: psycopg.Connection[Any],
    statement: Executable,
    parameters: Mapping[str, Any],
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
    mogrified = psycopg.ClientCursor(driver).mogrify(str(compiled), processed)
    return sql.SQL(mogrified.replace("{", "{{").replace("}", "}}"))  # type: ignore[arg-type]


def _parse(buffer: io.BytesIO, types: dict[str, pa.DataType]) -> pa.Table:
    buffer.seek(0)
    try:
        return pacsv.read_csv(
            buffer,
            # An empty line is the NULL of a one-column answer.
            parse_options=pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            read_options=pacsv.ReadOptions(column_names=list(types)),
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
        # The text of the error quotes the value.
        column = next((name for name in types if f"'{name}'" in str(error)), None)
        index = str(error).partition("column #")[2].partition(":")[0]
        if column is None and index.isdigit():
            column = list(types)[int(index)]
        raise InvalidData(
            f"column {column or '(unknown)'} holds a value that a frame of type "
            f"{types.get(column or '', 'unknown')} cannot hold; cast it to text in the query."
        ) from error


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    series: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_string(column.type):
            series[name] = pd.Series(pd.array(column, dtype="str"))
        elif pa.types.is_date32(column.type):
            series[name] = pd.Series(column, dtype=pd.ArrowDtype(pa.date32()))
        elif column.null_count and pa.types.is_int64(column.type):
            series[name] = pd.Series(pd.Int64Dtype().__from_arrow__(column))
        elif column.null_count and pa.types.is_boolean(column.type):
            series[name] = pd.Series(pd.BooleanDtype().__from_arrow__(column))
        else:
            series[name] = column.to_pandas()
    return pd.DataFrame(series, copy=False)


def _column(values: pd.Series[Any], declared: str | None) -> Any:
    if declared is None:
        return values.infer_objects()
    if declared == "string":
        return pd.Series(_texts(values), index=values.index, dtype="str")
    if declared.startswith(("datetime", "timestamp")):
        return pd.to_datetime(values, utc=True).astype("datetime64[us, UTC]")
    if declared == "float64":
        return pd.Series([None if v is None else float(v) for v in values], dtype="float64")
    return values.astype(declared)  # type: ignore[call-overload]


def _texts(values: Iterable[Any]) -> list[Any]:
    return [str(v) if isinstance(v, UUID) else v for v in values]
