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
    from fwdb.stores.base import Store

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


# -- as errors of fwdb ---------------------------------------------------------------------------

# A sentence for each word; for MongoDB one for codes and classes of which the word says too little.
_REFUSED = "{at} refused the user or password. {remedy}"
_NO_ANSWER = "no answer from {at} within {connecting:g} s ({said}). {remedy}"
_UNKNOWN = "whether a change under way was stored is not known. {remedy}"
_AGAIN = "postgres: {said}; the same work may succeed if tried again."
_NO_SET = "mongodb has transactions in a replica set only; this server is not in one."
_SENTENCES: dict[str | int | type[Exception], tuple[type[errors.FwdbError], str]] = {
    "authentication": (errors.AuthenticationFailed, _REFUSED),
    "connection": (errors.StoreUnavailable, "{at} ended the connection: {said}. {remedy}"),
    "foreign_key": (errors.ForeignKeyViolation, "{subject}: {said}."),
    "serialization": (errors.Transient, _AGAIN),
    "deadlock": (errors.Transient, _AGAIN),
    "lock_timeout": (errors.Transient, _AGAIN),
    "timeout": (errors.QueryTimeout, "postgres stopped the statement: {said}."),
    "permission": (errors.PermissionDenied, "{at}: {said}."),
    18: (errors.AuthenticationFailed, _REFUSED),
    13: (errors.PermissionDenied, "{at}: the user may not do this (code 13)."),
    8000: (errors.PermissionDenied, "{at}: the user may not do this (code 8000)."),
    50: (errors.QueryTimeout, "mongodb stopped the operation at its time limit."),
    112: (errors.Transient, "mongodb: another transaction wrote the same document; try again."),
    20: (errors.FeatureUnavailable, _NO_SET),
    263: (errors.FeatureUnavailable, _NO_SET),
    59: (errors.FeatureUnavailable, "{at}: {said}."),
    40324: (errors.FeatureUnavailable, "{at}: {said}."),
    driver.WaitQueueTimeoutError: (
        errors.PoolExhausted,
        "no connection to {at} became free in time. "
        "Return connections sooner, or raise FWDB_POOL_MAX_OVERFLOW.",
    ),
    driver.NetworkTimeout: (
        errors.StoreUnavailable,
        "no answer from {at} within {answering:g} s ({waits_for}); " + _UNKNOWN,
    ),
    driver.ConnectionFailure: (errors.StoreUnavailable, _NO_ANSWER),
    driver.ConfigurationError: (errors.ConfigError, "mongodb: {said}. {remedy}"),
    driver.DocumentTooLarge: (errors.InvalidData, "mongodb cannot store the document: {said}."),
    BSONError: (  # its text quotes the value
        errors.InvalidData,
        "mongodb cannot store the document: a key is no plain text, or a value is of a type that "
        "BSON does not have.",
    ),
}


def _error(
    store: Store, kind: type[errors.FwdbError], sentence: str, **words: str
) -> errors.FwdbError:
    text = sentence.format(
        at=f"{store.name} at {store.address}",
        remedy=store.remedy,
        waits_for=store.waits_for,
        answering=store.settings.timeout_seconds,
        connecting=store.settings.connect_timeout_seconds,
        **words,
    )
    if issubclass(kind, errors.StoreUnavailable):
        return kind(text, database=store.name)
    return kind(text)


def of_postgres(error: psycopg.Error, store: Store) -> errors.FwdbError:
    """The fwdb error for `error` of the server of `store`."""
    if isinstance(error, Silent):
        silent = (
            f"no answer from {{at}} within {error.seconds:g} s ({{waits_for}}), so the connection "
            "was closed; "
        )
        return _error(store, errors.StoreUnavailable, silent + _UNKNOWN)
    if not error.sqlstate:
        return _without_state(error, store)
    state, diag, word = error.sqlstate, error.diag, _of_sqlstate(error.sqlstate)
    subject = ".".join(part for part in (diag.schema_name, diag.table_name) if part)
    said = (diag.message_primary or type(error).__name__).rstrip(".")
    if word in _SENTENCES:
        return _error(store, *_SENTENCES[word], said=said, subject=subject)
    if word == "unique_violation":
        # The message is localised; its first (…) holds the names of the columns.
        found = re.search(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)=", diag.message_detail or "")
        fields = tuple(part.strip() for part in found[1].split(",")) if found else ()
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
    if state.startswith("53"):
        return errors.QueryError(f"postgres at {store.address} lacks room: {said}.")
    if state in {"42P01", "3F000"}:
        return errors.QueryError(f"postgres at {store.address}: {said}. Run 'fwdb migrate'.")
    if state == "42601":  # at or near "…": a word and a sign are no values, which COPY's text has
        said = re.sub(r'["„«“](?!(?:[^\W\d]\w*|\W).\Z).*["“»”]', "a value", said, flags=re.DOTALL)
    return errors.QueryError(f"postgres: {said} (SQLSTATE {state}).")


def _without_state(error: psycopg.Error, store: Store) -> errors.FwdbError:
    """A failure without SQLSTATE: the connection could not be made, or was lost."""
    if not isinstance(error, psycopg.OperationalError):
        kind = errors.InvalidData if isinstance(error, psycopg.DataError) else errors.QueryError
        return kind(f"postgres: {_without_value(str(error))}.")
    # The server's own words of libpq's message about a failed connection.
    line = (str(error).strip() or "connection lost").splitlines()[0]
    said = line.rpartition("failed: ")[2].replace("FATAL:  ", "").rstrip(".")
    pgconn = error.pgconn
    # A password also precedes other refusals; the one about the user names the user.
    if pgconn is not None and (
        pgconn.needs_password or (pgconn.used_password and f'"{pgconn.user.decode()}"' in said)
    ):
        refused = "{at} refused the connection ({said}). {remedy}"
        return _error(store, errors.AuthenticationFailed, refused, said=said)
    lost = pgconn is None and not isinstance(error, psycopg.errors.ConnectionTimeout)
    sentence = "{at} ended the connection ({said}). {remedy}" if lost else _NO_ANSWER
    return _error(store, errors.StoreUnavailable, sentence, said=said)


def _without_value(message: str) -> str:
    """`message` without what it quotes, which can be personal data, in any language's marks."""
    quoted = r'(?:^value )?["„«“].*["“»”]'
    return re.sub(quoted, "the value given", message, flags=re.DOTALL).rstrip(".")


_TRANSIENT = "TransientTransactionError"


def of_mongodb(error: Exception, store: Store) -> errors.FwdbError:
    """The fwdb error for `error` of pymongo or bson."""
    if isinstance(error, driver.PyMongoError) and error.has_error_label(_TRANSIENT):
        return errors.Transient(
            "mongodb: the transaction met another one; the same work may succeed if repeated."
        )
    # The first clause: the rest repeats timeouts, topology and values.
    text = re.split(r" \(configured timeouts|, full error| ?\{", str(error))[0]
    said = text.splitlines()[0].strip().rstrip(".") if text.strip() else type(error).__name__
    if isinstance(error, driver.DuplicateKeyError | driver.BulkWriteError):
        return _of_write(_first(error))
    known = (getattr(error, "code", None), *type(error).__mro__)
    if (found := next((one for one in known if one in _SENTENCES), None)) is not None:
        return _error(store, *_SENTENCES[found], said=said)
    if not isinstance(error, driver.OperationFailure):
        return errors.QueryError(f"mongodb: {said}.")
    if error.code == 121:
        broken = _violations(error) or "it breaks the validator"
        return errors.InvalidData(f"mongodb refused the document: {broken}.")
    said = re.sub(r"'[^']*'", "'…'", said)  # it may be a value of a document
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
