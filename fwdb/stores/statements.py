"""Times every statement of an engine, whoever runs it.

SQLAlchemy's events around a statement cost 7 µs each time; its dialect is called for every
statement too, so the dialect's three methods are replaced, on this engine only.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Connection, Engine

from fwdb.stores.failures import OTHER, error_type
from fwdb.stores.timings import CONNECT, GATHERED, OWN, Gathering, QueryTimes

_VERBS = {
    "select": "select", "values": "select", "table": "select", "fetch": "select",
    "insert": "insert", "update": "update", "delete": "delete", "merge": "merge",
    "copy": "copy", "call": "call", "do": "call", "explain": "explain",
    "create": "ddl", "alter": "ddl", "drop": "ddl", "truncate": "ddl", "comment": "ddl",
    "grant": "ddl", "revoke": "ddl", "reindex": "ddl",
    "savepoint": "transaction", "release": "transaction", "rollback": "transaction",
    "begin": "transaction", "commit": "transaction",
    "set": "set", "reset": "set", "show": "set",
}  # fmt: skip
OPERATIONS = tuple(sorted({*_VERBS.values(), OTHER, CONNECT}))

_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(\w+)", re.DOTALL)
# After its WITH queries, the verb of a statement is the first one outside of all parentheses.
_PARTS = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\""
    r"|(?P<part>[()]|\b(?:select|insert|update|delete|merge)\b)",
    re.DOTALL | re.IGNORECASE,
)

# Texts whose operation is remembered; a program that writes values into its statements would
# add texts for ever. Longer texts are looked at each time.
_MOST_TEXTS = 1000
_LONGEST_TEXT = 10_000


def operation(statement: str) -> str:
    """What `statement` does, one of `OPERATIONS`.

    >>> operation("WITH gone AS (DELETE FROM a RETURNING id) SELECT count(*) FROM gone")
    'select'
    """
    found = _FIRST_WORD.match(statement)
    word = found[1].lower() if found else ""
    if word != "with":
        return _VERBS.get(word, OTHER)
    depth = 0
    for match in _PARTS.finditer(statement):
        part = (match["part"] or "").lower()
        depth += (part == "(") - (part == ")")
        if depth == 0 and part in _VERBS:
            return _VERBS[part]
    return OTHER


def time_statements(engine: Engine, times: QueryTimes) -> None:
    """Count every statement of `engine` in `times`, from the call of the driver to its answer.

    The driver has all rows by then; turning them into Python objects is not part of the time. A
    statement with many sets of parameters counts once. What SQLAlchemy asks a server at the
    first connection, and what bears the mark of fwdb's own questions, is left out.
    """
    dialect: Any = engine.dialect
    known: dict[str, Gathering] = {}
    for method in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, method, _timed(getattr(dialect, method), known, times))
    initialize = dialect.initialize

    def initialize_unseen(connection: Connection) -> None:
        with times.unseen():
            initialize(connection)

    dialect.initialize = initialize_unseen


def _timed(
    execute: Callable[..., None], known: dict[str, Gathering], times: QueryTimes
) -> Callable[..., None]:
    # Every name of the function below is local to it or to this one: it runs for each statement.
    clock, thread, inside, get = time.perf_counter, threading.get_ident, times.inside, known.get

    def timed(cursor: Any, statement: str, *rest: Any) -> None:
        started = clock()
        try:
            execute(cursor, statement, *rest)
        except BaseException as error:
            if OWN not in statement:
                times.add(operation(statement), clock() - started, error_type(error))
            raise
        seconds = clock() - started
        if inside and thread() in inside:
            return
        gathered = get(statement)
        if gathered is None:
            gathered = _learn(statement, known, times)
        gathered.append(seconds)
        if len(gathered) >= GATHERED:
            times.count(gathered)

    return timed


def _learn(statement: str, known: dict[str, Gathering], times: QueryTimes) -> Gathering:
    """Where the times of `statement` go; nowhere for fwdb's own."""
    gathered = Gathering(maxlen=0) if OWN in statement else times.series(operation(statement))
    if len(statement) <= _LONGEST_TEXT:
        if len(known) >= _MOST_TEXTS:
            known.clear()  # looking at them again costs less than knowing which are used
        known[statement] = gathered
    return gathered
