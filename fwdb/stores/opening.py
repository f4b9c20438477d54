"""What a transaction of PostgreSQL says first, and when it has to say who acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from fwdb.stores.actor import Actor, listening
from fwdb.stores.frames import driver_of
from fwdb.stores.timings import OWN

# With parameters and not SET LOCAL, whose every value would be a statement of its own in
# pg_stat_statements. Local to the transaction: nothing is left for who gets the connection next.
_SET = f"SELECT set_config(%s, %s, true) {OWN}"
_READ_ONLY = f"SET TRANSACTION READ ONLY {OWN}"


def begin(
    connection: Connection,
    who: Actor | None,
    *,
    timeout_ms: int | None = None,
    read_only: bool = False,
) -> None:
    """BEGIN and what holds for the whole transaction, in one round trip.

    With nothing to say nothing is sent: the driver sends BEGIN before the first statement.
    """
    first: list[tuple[str, Sequence[str]]] = []
    if read_only:
        first.append((_READ_ONLY, ()))
    if timeout_ms is not None:
        first.append((_SET, ("statement_timeout", str(timeout_ms))))
    if who is not None:
        first.append((_SET, _named(who)))
    if first:
        driver = driver_of(connection)
        with driver.pipeline():
            for statement, values in first:
                driver.execute(statement, values)


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
        if driver.info.transaction_status in {TransactionStatus.IDLE, TransactionStatus.INTRANS}:
            # The BEGIN of a transaction that has done nothing yet goes along.
            with errors(), driver.pipeline():
                driver.execute(_SET, _named(who))

    return listening(tell)


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
