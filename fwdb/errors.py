"""Every error fwdb raises, in one tree.

    FwdbError
     ├─ ParameterError            a value given by the caller cannot be used
     │   └─ UnknownName           … because there is nothing of that name; carries the nearest one
     ├─ ConfigError               a FWDB_* variable, a profile or a URL cannot be used
     ├─ StoreUnavailable          no answer from a database
     │   ├─ AuthenticationFailed  it answered and refused the user or the password
     │   └─ PoolExhausted         it may be well: our own pool had no free connection in time
     ├─ FeatureUnavailable        the server cannot do this: version, extension
     ├─ PermissionDenied          the server could, but not for this role
     ├─ NotFound                  no live row with this id
     ├─ Conflict
     │   ├─ DuplicateKey          another row holds this unique value
     │   ├─ StaleVersion          the row changed since it was read
     │   ├─ ForeignKeyViolation   a row that must exist does not, or is still referred to
     │   └─ RevertRefused         changes cannot be undone; carries what is in the way
     ├─ InvalidData               the database refused the values
     ├─ Transient                 worth another try: serialization failure, deadlock, lock timeout
     ├─ QueryTimeout              the statement ran longer than it was allowed to
     ├─ QueryError                any other refusal by a database
     ├─ MigrationError            the schema cannot be brought to the wanted state
     ├─ ArchiveError              an archived month of the audit trail is missing or damaged
     ├─ EmbeddedError             a built-in server cannot be started, found or stopped
     ├─ SealError                 the audit trail cannot be sealed, or a seal file not be read
     ├─ MetricsError              metrics cannot be served or written
     └─ ReportError               a report could not be made

Messages say what happened, with which value, and what to do, and never hold a password or
personal data. The error of the driver stays as ``__cause__``; its text is cut down to the code
and the names of constraint and column, its attributes (``diag``, ``details``) are complete.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from functools import lru_cache
from numbers import Number
from typing import Any
from uuid import UUID

# Short names are secret as a whole word: user_pin, otpCode, CVV; not shipping, not option.
_SHORT = ["otp", "totp", "hotp", "mfa", "jwt", "jws", "pin", "puk", "cvv", "cvc", "csc", "ssn"]
_SECRET_NAME = re.compile(
    r"(?i:passw(?:or)?d|passphrase|pass(?:code|key|file)|pwd|secret|token|credential|bearer"
    r"|authorization|cookie|mnemonic|session[-_ ]?(?:id|key)|session(?![-_ ]?[a-z])|sslkey"
    r"|(?:api|access|private|encryption|signing|ssh|auth|master|client)[-_ ]?key"
    r"|(?:recovery|backup|security|verification|auth)[-_ ]?code|card[-_ ]?num)"
    rf"|(?<![A-Za-z])(?:{'|'.join(_SHORT)})s?(?![a-z])"
    rf"|(?<![A-Z])(?:{'|'.join(map(str.capitalize, _SHORT))})s?(?![a-z])"
    rf"|(?<![A-Z])(?:{'|'.join(map(str.upper, _SHORT))})s?(?![a-z]|[A-Z](?![a-z]))"
)
# Up to the last @, since a password may hold one; without any, what is no port. The words that
# our own messages show as an example stay.
_USER = r"(?<=://)([^\s:/?#@\[]*):(?!password@host\b)"
_TO_LAST_AT = re.compile(rf"{_USER}.*@", re.DOTALL)
_TO_ITS_END = re.compile(rf"{_USER}(?!\d{{1,5}}\b)[^\s'\"]+")
_OPTION = re.compile(r"(?<![\w-])([\w-]+)=([^&\s'\"]+)")  # of a URL's query part, or of libpq


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a field, an option or a setting of this name holds what nobody may see."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """`text` with the passwords of the URLs in it, and options that are secret, as ``***``.

    >>> redact("postgresql://ana:s3cret@db.example:5432/fashion_wallet?password=x")
    'postgresql://ana:***@db.example:5432/fashion_wallet?password=***'
    """
    end = text.rfind("@") + 1
    found = _TO_LAST_AT.sub(r"\1:***@", text[:end]) + _TO_ITS_END.sub(r"\1:***", text[end:])
    return _OPTION.sub(lambda o: f"{o[1]}=***" if is_secret(o[1]) else o[0], found)


class FwdbError(Exception):
    """Base of all errors of fwdb; its text is one sentence with the remedy.

    Whatever value a message repeats, the password of a URL in it is not shown.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class ParameterError(FwdbError):
    """A value given by the caller cannot be used. `name` is the parameter's."""

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class UnknownName(ParameterError):
    """There is no `kind` called `name`; `choices` are the names there are."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, where: str = "") -> None:
        self.kind = kind
        self.choices = tuple(sorted(choices))
        self.nearest = nearest(name, self.choices)
        place = f" in {where}" if where else ""
        hint = f"did you mean '{self.nearest}'? " if self.nearest else ""
        offer = f"hoose from {', '.join(self.choices)}"
        rest = f"{hint}{'C' if hint else 'c'}{offer}" if self.choices else "there are none at all"
        super().__init__(f"there is no {kind} {shown(name)}{place}; {rest}.", name=redact(name))


class ConfigError(FwdbError):
    """A FWDB_* variable, a profile or a URL cannot be used."""


class StoreUnavailable(FwdbError):
    """No answer from a database. `database` is ``postgres`` or ``mongodb``."""

    def __init__(self, message: str, *, database: str | None = None) -> None:
        super().__init__(message)
        self.database = database


class AuthenticationFailed(StoreUnavailable):
    """The database answered and refused the user or the password."""


class PoolExhausted(StoreUnavailable):
    """Our own pool had no free connection in time; the database itself may be well."""


class FeatureUnavailable(FwdbError):
    """The server cannot do this, for its version or for a missing extension."""


class PermissionDenied(FwdbError):
    """The server could do this, but not for the role in use."""


class NotFound(FwdbError):
    """There is no live row of `entity` with the id `id`."""

    def __init__(self, entity: str, id: object) -> None:
        super().__init__(f"there is no {entity} with id {shown(id)}, or it is deleted.")
        self.entity = entity
        self.id = id


class Conflict(FwdbError):
    """The change collides with what the database holds."""


class DuplicateKey(Conflict):
    """Another row holds this unique value; `constraint` and `fields` name it, never the value."""

    def __init__(
        self, message: str, *, constraint: str | None = None, fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.constraint = constraint
        self.fields = fields


class StaleVersion(Conflict):
    """The row changed since it was read: read it again and repeat the change."""


class ForeignKeyViolation(Conflict):
    """A row that must exist does not, or a row to be removed is still referred to."""


class RevertRefused(Conflict):
    """Changes cannot be undone, and nothing was changed. `rows` says what is in the way.

    Each has ``entity_type``, ``entity_id``, ``field`` (None for the whole row), ``log_id`` (the
    row of the trail, None where the row itself is in the way) and ``why``.
    """

    def __init__(self, message: str, *, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class InvalidData(FwdbError):
    """The database refused the values: missing, of the wrong type, or against a rule."""


class Transient(FwdbError):
    """A serialization failure, a deadlock or a lock timeout: the same work may succeed again."""


class QueryTimeout(FwdbError):
    """The statement ran longer than it was allowed to and was stopped."""


class QueryError(FwdbError):
    """Any other refusal by a database."""


class MigrationError(FwdbError):
    """The schema cannot be brought to the wanted state."""


class ArchiveError(FwdbError):
    """An archived month of the audit trail is missing, damaged, or cannot be written."""


class EmbeddedError(FwdbError):
    """A built-in server cannot be started, found or stopped."""


class SealError(FwdbError):
    """The audit trail cannot be sealed, or a file with its seals cannot be read or written."""


class MetricsError(FwdbError):
    """Metrics cannot be served at a port, or written to a file."""


class ReportError(FwdbError):
    """A report could not be made."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, or None when nothing is near.

    >>> nearest("slow_querys", ["pool", "slow_queries"])
    'slow_queries'
    """
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


# Pairs such as password=… and hashes are not repeated: what was given by mistake may be a secret.
_PRIVATE = re.compile(r"\$2[abxy]\$|(passw|pwd|secret|token|key)\w*\s*[=:]", re.IGNORECASE)


def shown(value: object) -> str:
    """`value` for a message: short, only its kind where it may hold a secret or personal data.

    >>> shown("31 days ago"), shown("postgresql://ana:s3cret@db"), shown({"a": 1})
    ("'31 days ago'", "'postgresql://ana:***@db'", 'a dict')
    """
    if isinstance(value, str):
        value = redact(value[:1000])
        if _PRIVATE.search(value):
            return "a secret"
        return f"'{_short(value).encode('utf-8', 'backslashreplace').decode()}'"
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, Number | date | timedelta | UUID):
        try:
            return _short(str(value))
        except ValueError:  # more digits than Python writes
            return "a huge number"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
