"""Errors of PostgreSQL and psycopg as errors of fwdb, told apart by SQLSTATE.

The codes are those of the manual's appendix "PostgreSQL Error Codes". Messages keep the server's
primary sentence and never its DETAIL, which quotes the values of the row.
"""

from __future__ import annotations

import re

import psycopg

from fwdb import errors
from fwdb.stores.dialling import Silent

_DATABASE = "postgres"


def translate(
    error: psycopg.Error, address: str, *, connect_seconds: float, waits_for: str, remedy: str
) -> errors.FwdbError:
    """The fwdb error for `error` of the server at `address`; `remedy` ends a sentence about it.

    `connect_seconds` is the time that a connection may take, `waits_for` the setting that says how
    long a server may be silent.
    """
    state = error.sqlstate or ""
    if isinstance(error, Silent):
        return errors.StoreUnavailable(
            f"no answer from postgres at {address} within {error.seconds:g} s ({waits_for}), so "
            "the connection was closed; whether a change under way was stored is not known. "
            f"{remedy}",
            database=_DATABASE,
        )
    if not state:
        return _without_state(error, address, connect_seconds, remedy)
    diag = error.diag
    subject = ".".join(part for part in (diag.schema_name, diag.table_name) if part)
    # Only the primary message: DETAIL quotes the values of the row.
    said = (diag.message_primary or type(error).__name__).rstrip(".")
    if state == "23505":
        fields = _key_fields(diag.message_detail or "")
        return errors.DuplicateKey(
            f"another row of {subject} has the same {', '.join(fields) or 'unique value'}.",
            constraint=diag.constraint_name,
            fields=fields,
        )
    if state == "23503":
        return errors.ForeignKeyViolation(f"{subject}: {said}.")
    if state.startswith(("22", "23")):
        column = f" column {diag.column_name}" if diag.column_name else ""
        place = f" ({_copy_place(diag.context)})" if _copy_place(diag.context) else ""
        text = said if state.startswith("23") else _without_value(said)
        return errors.InvalidData(f"{subject or 'postgres'}{column}: {text}{place}.")
    if state in {"40001", "40P01", "55P03"}:
        return errors.Transient(f"postgres: {said}; the same work may succeed if tried again.")
    if state in {"57014", "25P03", "25P04"}:
        return errors.QueryTimeout(f"postgres stopped the statement: {said}.")
    if state in {"42501", "25006"}:  # the latter: the session only reads
        return errors.PermissionDenied(f"postgres at {address}: {said}.")
    if state in {"42P01", "3F000"}:
        return errors.QueryError(f"postgres at {address}: {said}. Run 'fwdb migrate'.")
    if state in {"28P01", "28000"}:
        return errors.AuthenticationFailed(
            f"postgres at {address} refused the user or password. {remedy}",
            database=_DATABASE,
        )
    if state.startswith(("08", "57P", "53300", "3D000")):
        return errors.StoreUnavailable(
            f"postgres at {address} ended the connection: {said}. {remedy}",
            database=_DATABASE,
        )
    if state.startswith("53"):
        return errors.QueryError(f"postgres at {address} lacks room: {said}.")
    if (
        state == "42601"
    ):  # at or near "…": a word and a sign are no values, which COPY has in its text
        said = re.sub(r'["„«“](?!(?:[^\W\d]\w*|\W).\Z).*["“»”]', "a value", said, flags=re.DOTALL)
    return errors.QueryError(f"postgres: {said} (SQLSTATE {state}).")


def _without_state(
    error: psycopg.Error, address: str, timeout_seconds: float, remedy: str
) -> errors.FwdbError:
    """A failure without SQLSTATE: the connection could not be made, or was lost."""
    if isinstance(error, psycopg.DataError):
        return errors.InvalidData(f"postgres: {_without_value(str(error))}.")
    if not isinstance(error, psycopg.OperationalError):
        return errors.QueryError(f"postgres: {_without_value(str(error))}.")
    reason = _last_line(str(error))
    pgconn = error.pgconn
    # A password also precedes other refusals; the one about the user names the user.
    if pgconn is not None and (
        pgconn.needs_password or (pgconn.used_password and f'"{pgconn.user.decode()}"' in reason)
    ):
        return errors.AuthenticationFailed(
            f"postgres at {address} refused the connection ({reason}). {remedy}",
            database=_DATABASE,
        )
    if pgconn is None and not isinstance(error, psycopg.errors.ConnectionTimeout):
        return errors.StoreUnavailable(
            f"postgres at {address} ended the connection ({reason}). {remedy}",
            database=_DATABASE,
        )
    return errors.StoreUnavailable(
        f"no answer from postgres at {address} within {timeout_seconds:g} s ({reason}). {remedy}",
        database=_DATABASE,
    )


def _key_fields(detail: str) -> tuple[str, ...]:
    """Column names of a unique violation; the message is localised, its first (…) is not."""
    found = re.search(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)=", detail)
    return tuple(part.strip() for part in found[1].split(",")) if found else ()


def _copy_place(context: str | None) -> str:
    found = re.search(r"line \d+(, column \w+)?", context or "")
    return found[0] if found else ""


def _without_value(message: str) -> str:
    """`message` without what it quotes, which can be personal data, in any language's marks."""
    quoted = r'(?:^value )?["„«“].*["“»”]'
    return re.sub(quoted, "the value given", message, flags=re.DOTALL).rstrip(".")


def _last_line(message: str) -> str:
    """The server's own words of libpq's message about a failed connection."""
    line = message.strip().splitlines()[0] if message.strip() else "connection lost"
    return line.rpartition("failed: ")[2].replace("FATAL:  ", "").rstrip(".")
