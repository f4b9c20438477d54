"""The plan of a statement whose values nobody kept."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import pq

from fwdb import errors
from fwdb.stores.postgres import PostgresStore

# Planning takes milliseconds, a join of very many tables more; longer, something is locked.
TIMEOUT_MS = 2000
# EXPLAIN takes these, and also some that would be run or changed: those are not asked for.
_PLANNED = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(select|with|insert|update|delete|merge|values|table)\b",
    re.IGNORECASE | re.DOTALL,
)


def generic_plan(store: PostgresStore, statement: str) -> str:
    """The plan for any values of ``$1``, ``$2``, … as text; the statement is not executed.

    It is the plan of all values alike, so that a value that is rare or frequent may be planned
    another way. Needs PostgreSQL 16. Raises `FeatureUnavailable` before, `InvalidData` for what
    is not one statement that has a plan, or that the server cannot plan without its values.
    """
    if store.server_version < 160000:
        raise errors.FeatureUnavailable(
            f"postgres at {store.address} is version {store.server_version // 10000}; a plan "
            "without the values of a statement needs 16 or newer."
        )
    if not _PLANNED.match(statement):
        raise errors.InvalidData("only SELECT, INSERT, UPDATE, DELETE and MERGE have a plan.")
    with store.transaction(read_only=True, timeout_ms=TIMEOUT_MS) as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        try:
            _require_one_statement(driver, statement)
            # The extended protocol would want values for the parameters.
            with psycopg.ClientCursor(driver) as cursor:
                query: Any = f"EXPLAIN (GENERIC_PLAN)\n{statement}\n/* fwdb */"
                return "\n".join(row[0] for row in cursor.execute(query))
        except (psycopg.errors.SyntaxError, psycopg.errors.ProgrammingError) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise
            said = error.diag.message_primary or type(error).__name__
            raise errors.InvalidData(
                f"the server cannot plan it without its values: {said}."
            ) from None


def _require_one_statement(driver: psycopg.Connection[Any], statement: str) -> None:
    """Parse refuses more than one command, and executes none.

    Without it a text like ``SELECT 1; COMMIT; DROP …`` would leave the read-only transaction.
    """
    answer = driver.pgconn.prepare(b"", statement.encode())
    if answer.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(answer, encoding="utf-8")
