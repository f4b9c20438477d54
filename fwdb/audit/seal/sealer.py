"""The sealer: hashes what was recorded into a chain of Merkle trees, beside the writers.

It reads by a snapshot and takes no lock that a writer could meet. `created_at` is not the order
of commits; a row may appear behind one that is sealed. So only rows of transactions are sealed
below which none is running: whatever they recorded is there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from fwdb.arguments import Seconds
from fwdb.audit.context import Context
from fwdb.audit.seal import canonical, merkle, seals
from fwdb.audit.seal.seals import Key, Seal
from fwdb.errors import DuplicateKey, SealError, StoreUnavailable, Transient
from fwdb.stores import PostgresStore

__all__ = ["Sealed", "run_sealer", "seal", "sealed", "state"]

_log = logging.getLogger(__name__)

ROWS = 10_000  # of one seal: 1 MB beside 8 MB of rows, and what has to be searched for one row


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What a run of the sealer did.

    `seals` new ones over `rows` rows; `number` is that of the newest now, `head` its hash in
    hexadecimal, both None when nothing was ever sealed; `total_rows` are sealed in all, and
    `unsealed_rows` not yet: their transactions, or older ones, were not over. `key_id` names the
    key of the newest signature, None without one.
    """

    seals: int
    rows: int
    number: int | None
    head: str | None
    sealed_at: datetime | None
    total_rows: int
    unsealed_rows: int
    key_id: str | None


LOCK = "audit.seals IN SHARE ROW EXCLUSIVE MODE"  # one seals at a time


def seal(
    self: Context, *, sign: bool = False, progress: Callable[[str], None] | None = None
) -> Sealed:
    """Seal what is not sealed yet: all rows of transactions before the oldest that runs.

    Takes no lock that a writer meets; of two sealers one waits. With FWDB_AUDIT_KEY the new
    head is signed; `sign` also signs a newest seal that another key, or none, made. Needs the
    rights of the owner. Raises `SealError` when the newest seal is not sound, the key is not
    the one it was signed with, or the trail was restored from a dump into a server whose
    transactions count anew.
    """
    store = self.postgres
    try:
        with seals.snapshot(store, "seal() reads by a snapshot of its own", LOCK):
            return seal_here(store, seals.signing_key(self.settings), sign, progress)
    except Transient as error:
        raise Transient(
            f"nothing was sealed{store.lock_holders(['audit.seals'])}: {error}"
        ) from error


def run_sealer(
    self: Context,
    *,
    interval: Seconds = 60,
    stop: threading.Event | None = None,
    sealed: Callable[[Sealed], None] | None = None,
) -> None:
    """`seal` every `interval` seconds until `stop` is set; `sealed` hears of each run.

    A server that is down, or another sealer in the way, is logged and tried again.
    """
    ended = stop or threading.Event()
    while not ended.is_set():
        try:
            found = seal(self)
        except (StoreUnavailable, Transient, DuplicateKey) as error:
            _log.warning("not sealed now: %s", error)
        else:
            if sealed is not None:
                sealed(found)
        ended.wait(interval)


def sealed(self: Context) -> Sealed | None:
    """The newest seal and what is not sealed yet, None where nothing ever was.

    `seals` and `rows`, those of a run, are 0.
    """
    return state(self.postgres, seals.signing_key(self.settings))


def state(store: PostgresStore, key: bytes | None = None) -> Sealed | None:
    """As `sealed`, for whoever has no more than the store."""
    newest = _newest(store)
    if not newest.number:
        return None
    ours = key is not None and newest.signed_with(key)
    return _sealed(store, newest, merkle.key_id(key) if key and ours else newest.key_id)


def _newest(store: PostgresStore) -> Seal:
    known = store.rows(sa.text("SELECT to_regclass('audit.seals') AS name /* fwdb */"))
    return seals.NONE if known[0]["name"] is None else seals.last(store)


def _sealed(
    store: PostgresStore, newest: Seal, key_id: str | None, made: int = 0, rows: int = 0
) -> Sealed:
    return Sealed(
        seals=made,
        rows=rows,
        number=newest.number or None,
        head=newest.head.hex() if newest.number else None,
        sealed_at=newest.sealed_at if newest.number else None,
        total_rows=newest.total_rows,
        unsealed_rows=unsealed(store, newest),
        key_id=key_id if newest.number else None,
    )


def seal_here(
    store: PostgresStore,
    key: bytes | None,
    sign: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Sealed:
    """As `seal`, within `seals.snapshot`."""
    newest = seals.last(store)
    if newest.number:
        newest = _sound(store, newest, key, sign=sign)
    until, now = transactions(store)
    # Transactions count from the beginning again in a server into which a dump was restored.
    if now < newest.horizon:
        raise SealError(restored(now, newest.horizon))
    made = rows = 0
    last_in_month: dict[date, Key] = {}
    begins = (newest.horizon - 1, seals.HIGHEST_ID) if newest.number else None
    # At first all that there is, whatever its transaction says.
    where = f"{_newer(newest)} AND coalesce(transaction_id, 0) < {until}"
    for bound in store.rows(sa.text(_BOUNDS.format(where=where)), size=ROWS):
        after = last_in_month.get(bound["month"], begins)
        newest = _seal_rows(store, key, newest, after, bound, until)
        last_in_month[bound["month"]] = newest.last
        made, rows = made + 1, rows + newest.rows
        if progress is not None:
            progress(f"sealed {newest.total_rows:,} rows")
    return _sealed(store, newest, None if key is None else merkle.key_id(key), made, rows)


def transactions(store: PostgresStore) -> tuple[int, int]:
    """The transaction before which all are over, and the first that has not begun."""
    bound = "CAST(CAST(pg_snapshot_{}(pg_current_snapshot()) AS text) AS bigint)"
    statement = f"SELECT {bound.format('xmin')} AS over, {bound.format('xmax')} AS next"
    found = store.rows(sa.text(statement))[0]
    return found["over"], found["next"]


def unsealed(store: PostgresStore, newest: Seal, where: str = "true") -> int:
    """Rows that no seal covers yet, of those `where` says."""
    statement = f"SELECT count(*) AS n FROM audit.audit_logs WHERE {_newer(newest)} AND {where}"
    return int(store.rows(sa.text(f"{statement} /* fwdb */"))[0]["n"])


def unsealed_of(store: PostgresStore, month: date) -> int:
    """Rows of `month` that no seal covers yet; 0 where nothing was ever sealed."""
    newest = _newest(store)
    return unsealed(store, newest, seals.span(month, month)) if newest.number else 0


def _newer(newest: Seal) -> str:
    return f"transaction_id >= {newest.horizon}" if newest.number else "true"


def _sound(store: PostgresStore, newest: Seal, key: bytes | None, *, sign: bool) -> Seal:
    """The newest seal, if one may build on it; signed now, if `sign` says so."""
    if newest.chained(seals.last(store, back=1).head) != newest.head:
        raise SealError(
            f"seal {newest.number} is not as it was written; run 'fwdb audit verify' before "
            "anything is sealed on top of it."
        )
    if key is None and newest.signature is not None:
        raise SealError(
            "the trail is sealed with a key, and FWDB_AUDIT_KEY is not set; set it: seals "
            "without it would prove less."
        )
    if key is None or newest.signed_with(key):
        return newest
    if not sign:
        how = "without a key" if newest.signature is None else f"with the key {newest.key_id}"
        raise SealError(
            f"seal {newest.number} was made {how}, not with FWDB_AUDIT_KEY "
            f"({merkle.key_id(key)}), and may be anyone's; check the trail ('fwdb audit verify "
            "--against FILE') and sign it then: fwdb audit seal --sign."
        )
    signed = replace(newest, signature=merkle.sign(key, newest.head))
    store.execute(
        sa.text("UPDATE audit.seals SET signature = :signature WHERE number = :number"),
        {"signature": signed.signature, "number": signed.number},
    )
    return signed


def restored(now: int, sealed: int) -> str:
    """What to do with a trail that is ahead of its server."""
    return (
        f"the seals reach to transaction {sealed} and this server has only begun {now}: the trail "
        "was restored from a dump into a new server, and new rows cannot be told from old ones. "
        f"Stop the server, run pg_resetwal --epoch={(sealed >> 32) + 1} on its data directory and "
        "start it, before anything is recorded."
    )


def _seal_rows(
    store: PostgresStore,
    key: bytes | None,
    before: Seal,
    after: Key | None,
    bound: Mapping[str, Any],
    until: int,
) -> Seal:
    """The seal of the rows behind `after` up to `bound`, which follows `before`."""
    lines: list[tuple[Key, bytes]] = []
    last = (bound["transaction_id"], bound["id"])

    def feed(line: bytes) -> None:
        lines.append((seals.key_of(line.split(b"\t", 6)), line))

    seals.lines(store, feed, seals.between(bound["month"], after, last))
    if len(lines) != bound["rows"]:
        raise SealError(
            f"{len(lines)} rows were read where {bound['rows']} were counted; seal again."
        )
    keys, salts, leaves = _hashed([line for _, line in sorted(lines)])
    made = Seal(
        number=before.number + 1,
        month=bound["month"],
        rows=len(lines),
        total_rows=before.total_rows + len(lines),
        last_transaction=last[0],
        last_id=last[1],
        horizon=until,
        sealed_at=store.rows(sa.text("SELECT clock_timestamp() AS at"))[0]["at"],
        root=merkle.root(leaves),
        head=b"",
        key_id=None if key is None else merkle.key_id(key),
        signature=None,
        keys_digest=sha256(keys).digest(),
    )
    head = made.chained(before.head)
    made = replace(made, head=head, signature=None if key is None else merkle.sign(key, head))
    values: dict[str, Any] = {name: getattr(made, name) for name in Seal.__slots__}
    values |= {"keys": keys, "salts": salts, "leaves": b"".join(leaves)}
    places = ", ".join(f":{name}" for name in values)
    store.execute(
        sa.text(f"INSERT INTO audit.seals ({', '.join(values)}) VALUES ({places})"), values
    )
    return made


def _hashed(lines: list[bytes]) -> tuple[bytes, bytes, list[bytes]]:
    """Keys, new salts and leaves of these rows."""
    salts = os.urandom(seals.SALTS_SIZE * len(lines))
    keys, leaves = [], []
    for n, line in enumerate(lines):
        fields, header, actor, values = canonical.split(line)
        salt = salts[seals.SALTS_SIZE * n : seals.SALTS_SIZE * (n + 1)]
        of_actor, of_values = merkle.part(salt[:16], actor), merkle.part(salt[16:], values)
        keys.append(seals.pack(fields))
        leaves.append(merkle.leaf(header, of_actor, of_values))
    return b"".join(keys), salts, leaves


# The key of every last row of a seal, with the number of its rows.
_BOUNDS = """
SELECT month, transaction_id, CAST(id AS text) AS id,
    CASE WHEN n % :size = 0 THEN :size ELSE n % :size END AS rows
FROM (
    SELECT month, transaction_id, id,
        row_number() OVER (PARTITION BY month ORDER BY transaction_id, id) AS n,
        count(*) OVER (PARTITION BY month) AS total
    FROM (
        SELECT
            CAST(date_trunc('month', least(greatest(
                created_at AT TIME ZONE 'UTC', '0001-01-01'), '9999-12-01')) AS date) AS month,
            coalesce(transaction_id, 0) AS transaction_id, id
        FROM audit.audit_logs
        WHERE {where} AND created_at IS NOT NULL
    ) AS found
) AS numbered
WHERE n % :size = 0 OR n = total
ORDER BY month, transaction_id, id
"""
