"""Errors of both drivers: as errors of fwdb, and in one closed set of words for counting.

They are told apart by SQLSTATE and by code, never by message. A message keeps the server's
primary sentence and not its DETAIL, which quotes the values of the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from bson.errors import BSONError
from pymongo import errors as driver

from fwdb import errors
from fwdb.stores.session import Silent

if TYPE_CHECKING:
    from fwdb.stores.mongodb import MongoStore
    from fwdb.stores.postgres import PostgresStore

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
    "42501": "permission", "25006": "permission",  # the latter: the session only reads
    "53300": "connection", "3D000": "connection", "57P01": "connection", "57P02": "connection",
    "57P03": "connection", "57P04": "connection", "57P05": "connection",
    "08": "connection", "22": "invalid_data", "23": "invalid_data", "28": "authentication",
    "42": "syntax", "53": "resources", "54": "resources", "58": "resources",
}  # fmt: skip

# src/mongo/base/error_codes.yml
_CODES = {
    "unique_violation": {11000, 11001, 12582},
    "authentication": {11, 18},
    "permission": {13, 8000},
    "lock_timeout": {24},
    "timeout": {50, 64, 202, 262, 11601},
    "serialization": {112, 246, 251},
    "invalid_data": {2, 14, 52, 54, 121, 10334},
    "syntax": {9, 26, 59, 40323, 40324},
    "connection": {
        *(6, 7, 89, 91, 189, 9001, 10107, 11600, 11602, 13435, 13436)
    },
    "resources": {146, 292, 14031},
}  # fmt: skip
_WORDS = {code: word for word, codes in _CODES.items() for code in codes}

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
            found = _of_sqlstate(one.sqlstate)
        elif isinstance(one, driver.PyMongoError) and one.has_error_label(_TRANSIENT):
            found = "serialization"
        elif isinstance(one, driver.BulkWriteError):
            found = of_reply(one.details)
        elif isinstance(one, driver.OperationFailure):
            found = _WORDS.get(one.code or 0, OTHER)
        if found == OTHER:
            found = next((word for kinds, word in _CLASSES if isinstance(one, kinds)), OTHER)
        if found != OTHER:
            return found
    return OTHER


def of_reply(reply: Any) -> str:
    """The word for what a command of MongoDB failed with, as its reply or event tells."""
    failed = next(iter(reply.get("writeErrors") or ()), reply)
    code = failed.get("code")
    if isinstance(code, int):
        return _WORDS.get(code, OTHER)
    return _NAMES.get(str(reply.get("errtype")), OTHER)


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
            one.args = (f"code {_first(one).get('code', one.code)}",)
        elif isinstance(one, BSONError):
            one.args = ("the document is not shown",)
    return error


def _of_sqlstate(state: str) -> str:
    return _SQLSTATES.get(state) or _SQLSTATES.get(state[:2], OTHER)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it was raised from; the driver's error knows most, so it comes first."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    yield from reversed(found)


# -- PostgreSQL -----------------------------------------------------------------------------------

_AGAIN = (errors.Transient, "postgres: {said}; the same work may succeed if tried again.")
_SENTENCES: dict[str, tuple[type[errors.FwdbError], str]] = {
    "foreign_key": (errors.ForeignKeyViolation, "{subject}: {said}."),
    "serialization": _AGAIN,
    "deadlock": _AGAIN,
    "lock_timeout": _AGAIN,
    "timeout": (errors.QueryTimeout, "postgres stopped the statement: {said}."),
    "permission": (errors.PermissionDenied, "postgres at {address}: {said}."),
}


def of_postgres(error: psycopg.Error, store: PostgresStore) -> errors.FwdbError:
    """The fwdb error for `error` of the server of `store`."""
    if isinstance(error, Silent):
        return _unavailable(
            store,
            f"no answer from {{}} within {error.seconds:g} s ({store.waits_for}), so the "
            "connection was closed; whether a change under way was stored is not known.",
        )
    if not error.sqlstate:
        return _without_state(error, store)
    state, diag, word = error.sqlstate, error.diag, _of_sqlstate(error.sqlstate)
    subject = ".".join(part for part in (diag.schema_name, diag.table_name) if part)
    said = (diag.message_primary or type(error).__name__).rstrip(".")
    if word in _SENTENCES:
        kind, sentence = _SENTENCES[word]
        return kind(sentence.format(said=said, subject=subject, address=store.address))
    if word == "unique_violation":
        fields = _key_fields(diag.message_detail or "")
        return errors.DuplicateKey(
            f"another row of {subject} has the same {', '.join(fields) or 'unique value'}.",
            constraint=diag.constraint_name,
            fields=fields,
        )
    if word == "invalid_data":
        column = f" column {diag.column_name}" if diag.column_name else ""
        found = re.search(r"line \d+(, column \w+)?", diag.context or "")  # of a COPY
        place = f" ({found[0]})" if found else ""
        text = said if state.startswith("23") else _without_value(said)
        return errors.InvalidData(f"{subject or 'postgres'}{column}: {text}{place}.")
    if word == "authentication":
        return _refused(store, "{} refused the user or password.")
    if word == "connection":
        return _unavailable(store, f"{{}} ended the connection: {said}.")
    if state.startswith("53"):
        return errors.QueryError(f"postgres at {store.address} lacks room: {said}.")
    if state in {"42P01", "3F000"}:
        return errors.QueryError(f"postgres at {store.address}: {said}. Run 'fwdb migrate'.")
    if state == "42601":  # at or near "…": a word and a sign are no values, which COPY's text has
        said = re.sub(r'["„«“](?!(?:[^\W\d]\w*|\W).\Z).*["“»”]', "a value", said, flags=re.DOTALL)
    return errors.QueryError(f"postgres: {said} (SQLSTATE {state}).")


def _without_state(error: psycopg.Error, store: PostgresStore) -> errors.FwdbError:
    """A failure without SQLSTATE: the connection could not be made, or was lost."""
    if not isinstance(error, psycopg.OperationalError):
        kind = errors.InvalidData if isinstance(error, psycopg.DataError) else errors.QueryError
        return kind(f"postgres: {_without_value(str(error))}.")
    # The server's own words of libpq's message about a failed connection.
    line = (str(error).strip() or "connection lost").splitlines()[0]
    reason = line.rpartition("failed: ")[2].replace("FATAL:  ", "").rstrip(".")
    pgconn = error.pgconn
    # A password also precedes other refusals; the one about the user names the user.
    if pgconn is not None and (
        pgconn.needs_password or (pgconn.used_password and f'"{pgconn.user.decode()}"' in reason)
    ):
        return _refused(store, f"{{}} refused the connection ({reason}).")
    if pgconn is None and not isinstance(error, psycopg.errors.ConnectionTimeout):
        return _unavailable(store, f"{{}} ended the connection ({reason}).")
    seconds = store.settings.connect_timeout_seconds
    return _unavailable(store, f"no answer from {{}} within {seconds:g} s ({reason}).")


def _key_fields(detail: str) -> tuple[str, ...]:
    """Column names of a unique violation; the message is localised, its first (…) is not."""
    found = re.search(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)=", detail)
    return tuple(part.strip() for part in found[1].split(",")) if found else ()


def _without_value(message: str) -> str:
    """`message` without what it quotes, which can be personal data, in any language's marks."""
    quoted = r'(?:^value )?["„«“].*["“»”]'
    return re.sub(quoted, "the value given", message, flags=re.DOTALL).rstrip(".")


# -- MongoDB --------------------------------------------------------------------------------------

_TRANSIENT = "TransientTransactionError"


def of_mongodb(error: Exception, store: MongoStore) -> errors.FwdbError:
    """The fwdb error for `error` of pymongo or bson."""
    if isinstance(error, driver.PyMongoError) and error.has_error_label(_TRANSIENT):
        return errors.Transient(
            "mongodb: the transaction met another one; the same work may succeed if repeated."
        )
    match error:
        case driver.DuplicateKeyError() | driver.BulkWriteError():
            return _of_write(_first(error))
        case driver.WaitQueueTimeoutError():
            return errors.PoolExhausted(
                f"no connection to mongodb at {store.address} became free in time. "
                "Return connections sooner, or raise FWDB_POOL_MAX_OVERFLOW.",
                database=store.name,
            )
        case driver.OperationFailure():
            return _of_code(error, store)
        case driver.ExecutionTimeout():
            return errors.QueryTimeout("mongodb did not finish the operation in time.")
        case driver.NetworkTimeout():
            return _unavailable(
                store,
                f"no answer from {{}} within {store.settings.timeout_seconds:g} s "
                f"({store.waits_for}); whether a change under way was stored is not known.",
            )
        case driver.ConnectionFailure():
            seconds = store.settings.connect_timeout_seconds
            return _unavailable(
                store, f"no answer from {{}} within {seconds:g} s ({_reason(error)})."
            )
        case driver.ConfigurationError():
            return errors.ConfigError(f"mongodb: {_reason(error)}. {store.remedy}")
        case driver.DocumentTooLarge():
            return errors.InvalidData(f"mongodb cannot store the document: {_reason(error)}.")
        case BSONError():  # its text quotes the value
            return errors.InvalidData(
                "mongodb cannot store the document: a key is no plain text, or a value is of "
                "a type that BSON does not have."
            )
        case _:
            return errors.QueryError(f"mongodb: {_reason(error)}.")


def _of_code(error: driver.OperationFailure, store: MongoStore) -> errors.FwdbError:
    match error.code:
        case 18:
            return _refused(store, "{} refused the user or password.")
        case 13 | 8000:
            return errors.PermissionDenied(
                f"mongodb at {store.address}: the user may not do this (code {error.code})."
            )
        case 50:
            return errors.QueryTimeout("mongodb stopped the operation at its time limit.")
        case 112:
            return errors.Transient(
                "mongodb: another transaction wrote the same document; try again."
            )
        case 121:
            broken = _violations(error) or "it breaks the validator"
            return errors.InvalidData(f"mongodb refused the document: {broken}.")
        case 20 | 263:
            return errors.FeatureUnavailable(
                "mongodb has transactions in a replica set only; this server is not in one."
            )
        case 59 | 40324:
            return errors.FeatureUnavailable(f"mongodb at {store.address}: {_reason(error)}.")
    said = re.sub(r"'[^']*'", "'…'", _reason(error))  # it may be a value of a document
    return errors.QueryError(f"mongodb: {said} (code {error.code}).")


def _of_write(refused: dict[str, Any]) -> errors.FwdbError:
    if refused.get("code") == 121:
        return errors.InvalidData("mongodb refused a document: it breaks the validator.")
    if refused.get("code") != 11000:
        return errors.QueryError(f"mongodb refused a write (code {refused.get('code')}).")
    fields = tuple(refused.get("keyPattern") or {})
    return errors.DuplicateKey(
        f"another document has the same {', '.join(fields) or 'unique value'}.", fields=fields
    )


def _first(error: driver.OperationFailure) -> dict[str, Any]:
    """What the server said of the first write that it refused, else of the whole command."""
    details: dict[str, Any] = dict(error.details or {})
    first: dict[str, Any] = (details.get("writeErrors") or [details])[0]
    return first


def _violations(error: driver.OperationFailure) -> str:
    """Names of the fields that a $jsonSchema validator refused, never their values."""
    info = (error.details or {}).get("errInfo", {}).get("details", {})
    names: list[str] = []
    for rule in info.get("schemaRulesNotSatisfied", []):
        names += rule.get("missingProperties", [])
        names += [p["propertyName"] for p in rule.get("propertiesNotSatisfied", [])]
    return f"{', '.join(names)} missing or not as the validator wants" if names else ""


def _reason(error: Exception) -> str:
    """The first clause of the driver's message: the rest repeats timeouts, topology and values."""
    text = re.split(r" \(configured timeouts|, full error| ?\{", str(error))[0]
    return text.splitlines()[0].strip().rstrip(".") if text.strip() else type(error).__name__


def _unavailable(store: PostgresStore | MongoStore, sentence: str) -> errors.StoreUnavailable:
    """`sentence` with the server in place of ``{}``, and what to do."""
    return errors.StoreUnavailable(_with_remedy(sentence, store), database=store.name)


def _refused(store: PostgresStore | MongoStore, sentence: str) -> errors.AuthenticationFailed:
    return errors.AuthenticationFailed(_with_remedy(sentence, store), database=store.name)


def _with_remedy(sentence: str, store: PostgresStore | MongoStore) -> str:
    return f"{sentence.replace('{}', f'{store.name} at {store.address}', 1)} {store.remedy}"
