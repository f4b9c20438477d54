"""Errors of both databases in one closed set of words, for counting: by SQLSTATE and by code.

A label of a metric takes one of these and nothing else, so that an error message, which may quote
a value, never becomes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import sqlalchemy as sa
from bson.errors import BSONError
from pymongo import errors as driver

from fwdb import errors

OTHER = "other"
ERROR_TYPES = (
    "authentication",     # user or password refused
    "connection",         # no connection, or it was lost
    "deadlock",
    "foreign_key",
    "invalid_data",       # any other value that the database refuses
    "lock_timeout",
    "permission",
    "pool_timeout",       # all connections of this process were in use
    "resources",          # disk, memory or connections of the server are used up
    "serialization",      # the same work may succeed if tried again
    "syntax",             # the statement itself: a wrong word, an unknown table
    "timeout",            # ran longer than it was allowed to, or was cancelled
    "unique_violation",
    OTHER,
)  # fmt: skip

# The appendix "PostgreSQL Error Codes": whole codes first, then classes (two characters).
_SQLSTATES = {
    "23505": "unique_violation", "23503": "foreign_key",
    "40001": "serialization", "40P01": "deadlock", "55P03": "lock_timeout",
    "57014": "timeout", "25P03": "timeout", "25P04": "timeout",
    "42501": "permission", "25006": "permission",
    "53300": "connection", "3D000": "connection", "57P01": "connection", "57P02": "connection",
    "57P03": "connection", "57P05": "connection",
    "08": "connection", "22": "invalid_data", "23": "invalid_data", "28": "authentication",
    "42": "syntax", "53": "resources", "54": "resources", "58": "resources",
}  # fmt: skip

# src/mongo/base/error_codes.yml
_CODES = {
    11000: "unique_violation", 11001: "unique_violation", 12582: "unique_violation",
    18: "authentication", 11: "authentication",
    13: "permission", 8000: "permission",
    24: "lock_timeout",
    50: "timeout", 64: "timeout", 202: "timeout", 262: "timeout", 11601: "timeout",
    112: "serialization", 246: "serialization", 251: "serialization",
    2: "invalid_data", 14: "invalid_data", 52: "invalid_data", 54: "invalid_data",
    121: "invalid_data", 10334: "invalid_data",
    9: "syntax", 26: "syntax", 59: "syntax", 40323: "syntax", 40324: "syntax",
    6: "connection", 7: "connection", 89: "connection", 91: "connection", 189: "connection",
    9001: "connection", 10107: "connection", 11600: "connection", 11602: "connection",
    13435: "connection", 13436: "connection",
    146: "resources", 292: "resources", 14031: "resources",
}  # fmt: skip

# Errors without a code, of the drivers and of fwdb; the first that fits.
_CLASSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((sa.exc.TimeoutError, driver.WaitQueueTimeoutError, errors.PoolExhausted), "pool_timeout"),
    ((errors.AuthenticationFailed,), "authentication"),
    ((driver.NetworkTimeout, driver.ExecutionTimeout, errors.QueryTimeout), "timeout"),
    ((driver.ConnectionFailure, psycopg.OperationalError), "connection"),
    ((errors.StoreUnavailable,), "connection"),
    ((errors.PermissionDenied,), "permission"),
    ((errors.DuplicateKey, driver.DuplicateKeyError), "unique_violation"),
    ((errors.ForeignKeyViolation,), "foreign_key"),
    ((errors.Transient, errors.StaleVersion), "serialization"),
    ((errors.InvalidData, psycopg.DataError, driver.DocumentTooLarge), "invalid_data"),
    ((psycopg.ProgrammingError,), "syntax"),
)
_NAMES = {kind.__name__: word for kinds, word in _CLASSES for kind in kinds}


def error_type(error: BaseException) -> str:
    """The one of `ERROR_TYPES` that `error`, or what it came from, belongs to."""
    for one in _chain(error):
        found = OTHER
        if isinstance(one, psycopg.Error) and one.sqlstate:
            found = of_sqlstate(one.sqlstate)
        elif isinstance(one, driver.PyMongoError) and one.has_error_label(
            "TransientTransactionError"
        ):
            found = "serialization"
        elif isinstance(one, driver.BulkWriteError):
            found = of_reply(one.details)
        elif isinstance(one, driver.OperationFailure) and one.code is not None:
            found = of_code(one.code)
        if found == OTHER:
            found = next((word for kinds, word in _CLASSES if isinstance(one, kinds)), OTHER)
        if found != OTHER:
            return found
    return OTHER


def without_values(error: Exception) -> Exception:
    """`error` of a driver, its text and that of what it came from cut down to what names no value.

    DETAIL, the line of the statement, a document that was refused: they quote the row, and a
    traceback prints them. The attributes (``diag``, ``details``, ``code``) stay complete.
    """
    for one in _chain(error):
        if isinstance(one, psycopg.Error) and (
            one.sqlstate or not isinstance(one, psycopg.OperationalError)
        ):
            where = filter(None, (one.diag.table_name, one.diag.column_name))
            state = one.sqlstate and f"SQLSTATE {one.sqlstate}"
            names = (state, one.diag.constraint_name, ".".join(where))
            one.args = (" ".join(filter(None, names)),)
        elif isinstance(one, driver.OperationFailure):
            first: dict[str, Any] = next(iter((one.details or {}).get("writeErrors") or ()), {})
            one.args = (f"code {first.get('code', one.code)}",)
        elif isinstance(one, BSONError):
            one.args = ("the document is not shown",)
    return error


def of_sqlstate(state: str) -> str:
    """The word for an SQLSTATE of PostgreSQL."""
    return _SQLSTATES.get(state) or _SQLSTATES.get(state[:2], OTHER)


def of_code(code: int) -> str:
    """The word for an error code of MongoDB."""
    return _CODES.get(code, OTHER)


def of_reply(reply: Any) -> str:
    """The word for what a command of MongoDB failed with, as its reply or event tells."""
    failed = next(iter(reply.get("writeErrors") or ()), reply)
    code = failed.get("code")
    if isinstance(code, int):
        return of_code(code)
    return _NAMES.get(str(reply.get("errtype")), OTHER)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it was raised from; the driver's error knows most, so it comes first."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    yield from reversed(found)
