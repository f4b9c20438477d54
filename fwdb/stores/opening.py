"""What a transaction of PostgreSQL says first, and when it has to say who acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from fwdb.stores.actor import Actor, listening
from fwdb.stores.frames import driver_of
from fwdb.stores.timings import OWN

# With parameters and not SET LOCAL, whose every value would be a statement of its own in
# pg_stat_statements. Local to the transaction: nothing is left for who gets the connection next.
_SET = f"SELECT set_config($1, $2, true) {OWN}".encode()


def begin(
    connection: Connection,
    who: Actor | None,
    *,
    limits: Mapping[str, int] = MappingProxyType({}),
    read_only: bool = False,
) -> None:
    """BEGIN and what holds for the whole transaction, in one round trip.

    With nothing to say nothing is sent: the driver sends BEGIN before the first statement.
    `limits` are settings of the server in milliseconds, few enough for SET, which takes no
    snapshot: who locks first reads what was committed before.
    """
    if limits or read_only or who is not None:
        driver = driver_of(connection)
        driver.wait(_begin(driver, who, limits, read_only))


def hearing(
    connection: Connection, errors: Callable[[], AbstractContextManager[None]]
) -> AbstractContextManager[None]:
    """While the block, a transaction, runs, the server hears who begins or ends to act in it.

    A transaction that failed is left alone: its rollback, or that to a savepoint, brings back
    who acted before.
    """

    def tell(who: Actor | None) -> None:
        if connection.invalidated:
            return
        driver = driver_of(connection)
        with errors():
            match driver.info.transaction_status:
                case TransactionStatus.IDLE:  # nothing was done in it yet
                    driver.wait(_begin(driver, who, {}, False))
                case TransactionStatus.INTRANS:
                    driver.wait(_send(driver, [(_SET, _named(who))]))

    return listening(tell)


def _begin(
    driver: psycopg.Connection[Any],
    who: Actor | None,
    limits: Mapping[str, int],
    read_only: bool,
) -> PQGen[None]:
    words = ["BEGIN"]
    if driver.isolation_level is not None:
        words.append(f"ISOLATION LEVEL {driver.isolation_level.name.replace('_', ' ')}")
    if read_only:
        words.append("READ ONLY")
    statements: list[tuple[bytes, Sequence[str]]] = [(" ".join(words).encode(), ())]
    for name, milliseconds in limits.items():
        statements.append((f"SET LOCAL {name} = {milliseconds} {OWN}".encode(), ()))
    if who is not None:
        statements.append((_SET, _named(who)))
    yield from _send(driver, statements)


def _send(
    driver: psycopg.Connection[Any], statements: Sequence[tuple[bytes, Sequence[str]]]
) -> PQGen[None]:
    """Send `statements` with their parameters at once, then read all answers.

    psycopg's own pipeline waits for the answer to BEGIN before it sends the next statement.
    """
    pgconn = driver.pgconn
    pgconn.enter_pipeline_mode()
    for statement, values in statements:
        pgconn.send_query_params(statement, [value.encode() for value in values])
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    answers = []
    for _ in (*statements, "the answer to sync"):
        answers += yield from generators.fetch_many(pgconn)
    pgconn.exit_pipeline_mode()
    for answer in answers:
        if answer.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(answer, encoding=driver.info.encoding)


def _named(who: Actor | None) -> tuple[str, str]:
    return "fwdb.actor", "" if who is None else who.json


def only_reads(query: str | Executable) -> bool:
    """Whether a question is sure to change nothing, so that the server need not know who asks.

    A query file is a question. A selection of plain columns is one too; one that calls a
    function may be anything.
    """
    if isinstance(query, sa.Select):
        return all(isinstance(column, sa.Column) for column in query.selected_columns)
    return isinstance(query, str)
