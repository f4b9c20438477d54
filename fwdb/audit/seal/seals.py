"""The table `audit.seals`: what one seal says, how it is chained, and which rows it covers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from fwdb import config
from fwdb.audit.seal import canonical, merkle
from fwdb.errors import FeatureUnavailable, ParameterError
from fwdb.stores import PostgresStore

Key = tuple[int, str]  # transaction and id: the order of rows within a month

HIGHEST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"
SALTS_SIZE = 32  # 16 bytes for each of the two parts
_KEY = struct.Struct(">16sqq")
KEY_SIZE = _KEY.size
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Times that Python has none for are none that a seal was made at: its head does not follow then.
_FACTS = (
    "number, least(greatest(month, '0001-01-01'), '9999-12-31') AS month, rows, total_rows,"
    " last_transaction, CAST(last_id AS text) AS last_id, horizon,"
    " least(greatest(sealed_at, '0001-01-02Z'), '9999-12-30Z') AS sealed_at, root, head, key_id,"
    " signature, keys_digest"
)
_CHUNK = 1000  # seals that are read at once: 300 kB


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """One row of `audit.seals` without what it holds for each row.

    It covers the rows of `month` after the seal of that month before it, up to
    (`last_transaction`, `last_id`). `horizon` is the transaction before which no row was left out.
    """

    number: int
    month: date
    rows: int
    total_rows: int
    last_transaction: int
    last_id: str
    horizon: int
    sealed_at: datetime
    root: bytes
    head: bytes
    key_id: str | None
    signature: bytes | None
    keys_digest: bytes

    @property
    def last(self) -> Key:
        """The key of its last row."""
        return self.last_transaction, self.last_id

    def chained(self, previous: bytes) -> bytes:
        """The head that follows from `previous` and from what this seal says."""
        facts = (
            self.number,
            self.month,
            self.rows,
            self.total_rows,
            self.last_transaction,
            self.last_id,
            self.horizon,
            _microseconds(self.sealed_at),
            self.key_id or "",
            self.keys_digest.hex(),
        )
        return merkle.chain(previous, "|".join(map(str, facts)).encode(), self.root)

    def signed_with(self, key: bytes) -> bool:
        """Whether `key` made its signature."""
        return self.signature is not None and merkle.same(
            self.signature, merkle.sign(key, self.head)
        )


# What the first seal follows.
NONE = Seal(
    number=0, month=canonical.FIRST_MONTH, rows=0, total_rows=0, last_transaction=0, last_id="",
    horizon=0, sealed_at=_EPOCH, root=b"", head=merkle.EMPTY, key_id=None, signature=None,
    keys_digest=b"",
)  # fmt: skip


def signing_key(settings: config.Settings) -> bytes | None:
    """FWDB_AUDIT_KEY as bytes."""
    return None if settings.audit_key is None else settings.audit_key.get_secret_value().encode()


def require(store: PostgresStore) -> None:
    """Refuse a database without the table, or one in which changes still wait in journals."""
    found = store.rows(_READY)[0]
    if not found["sealed"]:
        raise FeatureUnavailable("this database has no seals of the trail; run 'fwdb migrate'.")
    if found["waiting"]:
        raise FeatureUnavailable("changes of this database are in journals; run 'fwdb migrate'.")


_READY = sa.text(r"""
SELECT to_regclass('audit.seals') IS NOT NULL AS sealed, EXISTS (
    SELECT FROM pg_class WHERE relnamespace = to_regnamespace('audit') AND relkind IN ('r', 'p')
        AND relname LIKE 'journal\_%') AS waiting /* fwdb */
""")


# Values are written in one way, and operators are those of PostgreSQL, whatever a role or a
# database was set to.
_SETTINGS = (
    "SET LOCAL TimeZone = 'UTC'",
    "SET LOCAL DateStyle = 'ISO'",
    "SET LOCAL search_path = pg_catalog, pg_temp",
)


@contextmanager
def snapshot(
    store: PostgresStore, why: str, *locks: str, read_only: bool = False
) -> Iterator[None]:
    """A transaction over one state of rows and seals, with these locks on tables.

    The locks come before the first question, which takes the snapshot. Raises `ParameterError`
    inside another transaction, as `why` says, and what `require` raises.
    """
    if store.in_transaction:
        raise ParameterError(f"{why}; call it outside a transaction.")
    require(store)
    with store.transaction(
        isolation="repeatable read", read_only=read_only, timeout_ms=0
    ) as connection:
        for statement in (*_SETTINGS, *(f"LOCK TABLE {lock}" for lock in locks)):
            connection.execute(sa.text(statement))
        yield


def last(store: PostgresStore, back: int = 0) -> Seal:
    """The newest seal, or the one `back` before it; `NONE` where there is none."""
    found = store.rows(
        sa.text(f"SELECT {_FACTS} FROM audit.seals ORDER BY number DESC LIMIT 1 OFFSET :back"),
        back=back,
    )
    return Seal(**found[0]) if found else NONE


def read(store: PostgresStore, *, month: date | None = None) -> Iterator[Seal]:
    """All seals, or those of one month, by number; a thousand at a time."""
    of_month = "" if month is None else " AND month = :month"
    statement = sa.text(
        f"SELECT {_FACTS} FROM audit.seals WHERE number > :after{of_month}"
        f" ORDER BY number LIMIT {_CHUNK}"
    )
    given: dict[str, Any] = {"after": -(2**63)} | ({} if month is None else {"month": month})
    while found := store.rows(statement, **given):
        yield from (Seal(**row) for row in found)
        given["after"] = found[-1]["number"]


def next_month(month: date) -> date:
    """The first day of the next month."""
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


# -- rows of the trail ----------------------------------------------------------------------------


def span(first: date, last: date) -> str:
    """The condition for rows of the months from `first` to `last`."""
    conditions = []
    if first > canonical.FIRST_MONTH:
        conditions.append(f"created_at >= '{first} 00:00+00'")
    if last < canonical.LAST_MONTH:
        conditions.append(f"created_at < '{next_month(last)} 00:00+00'")
    return " AND ".join(conditions) or "created_at IS NOT NULL"


def between(month: date, after: Key | None, until: Key) -> str:
    """The condition for the rows of `month` behind the key `after` up to `until`.

    Without `after` from the lowest that there is. It serves whichever index there is: ranges of
    transactions, or, within one transaction, ranges of ids.
    """
    key, (t1, id1) = "(coalesce(transaction_id, 0), id)", _literals(until)
    conditions = [span(month, month), f"{key} <= ({t1}, {id1})"]
    if after is not None:
        t0, id0 = _literals(after)
        conditions.append(f"{key} > ({t0}, {id0})")
        if after[0] > 0:  # below, rows without a transaction may be meant
            conditions.append(f"transaction_id BETWEEN {t0} AND {t1}")
        if after[0] == until[0]:
            conditions.append(f"id > {id0} AND id <= {id1}")
    return " AND ".join(conditions)


def _literals(key: Key) -> tuple[str, str]:
    return f"CAST('{key[0]}' AS bigint)", f"CAST('{key[1]}' AS uuid)"


def lines(store: PostgresStore, feed: Callable[[bytes], Any], where: str, **given: Any) -> None:
    """Give `feed` the line of each row of the trail that `where` chooses."""
    columns = ", ".join(canonical.FIELDS)
    store.lines(sa.text(f"SELECT {columns} FROM audit.audit_logs WHERE {where}"), feed, **given)


# -- what a seal keeps of each row ----------------------------------------------------------------


def key_of(fields: Sequence[bytes]) -> Key:
    """The key of a line's row."""
    transaction = fields[5]  # none is 0, as is what a file has that is no number
    number = int(transaction) if transaction.removeprefix(b"-").isdigit() else 0
    return number, fields[0].decode()


def pack(fields: Sequence[bytes]) -> bytes:
    """Id, time and transaction of a line's row."""
    transaction, id = key_of(fields)
    at = _microseconds(canonical.clamped(fields[1]))
    return _KEY.pack(bytes.fromhex(id.replace("-", "")), at, transaction)


def unpack(keys: bytes, position: int) -> tuple[str, datetime, int]:
    """Id, time and transaction of a sealed row."""
    id, at, transaction = _KEY.unpack_from(keys, position * KEY_SIZE)
    return str(UUID(bytes=id)), _EPOCH + timedelta(microseconds=at), transaction


def _microseconds(at: datetime) -> int:
    """`at` in microseconds since 1970, exactly."""
    return (at - _EPOCH) // timedelta(microseconds=1)
