"""The sealer: hashes what was recorded into a chain of Merkle trees, beside the writers.

It reads by a snapshot and takes no lock that a writer could meet. `created_at` is not the order
of commits; a row may appear behind one that is sealed. So only rows of transactions are sealed
below which none is running: whatever they recorded is there. What is still in a journal has its
old transaction when it arrives, and holds the sealer back as a running one would.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.audit import canonical, merkle, seals
from fwdb.audit.seals import Key, Seal
from fwdb.errors import ParameterError, SealError, Transient
from fwdb.stores import PostgresStore

__all__ = [
    "ROWS",
    "SETTINGS",
    "Sealed",
    "begin",
    "horizon",
    "next_transaction",
    "restored",
    "seal",
    "seal_here",
    "state",
    "unsealed",
]

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


# Values are written in one way, and operators are those of PostgreSQL, whatever a role or a
# database was set to.
SETTINGS = (
    "SET LOCAL TimeZone = 'UTC'",
    "SET LOCAL DateStyle = 'ISO'",
    "SET LOCAL search_path = pg_catalog, pg_temp",
)


def begin(connection: Connection) -> None:
    """Fix how values are written, and let one seal at a time.

    In this order: the lock comes before the first question, which takes the snapshot.
    """
    for statement in (
        *SETTINGS,
        "LOCK TABLE audit.seals IN SHARE ROW EXCLUSIVE MODE",
    ):
        connection.execute(sa.text(statement))


def seal(
    store: PostgresStore,
    key: bytes | None,
    *,
    sign: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Sealed:
    """Seal all rows of transactions that are over; see `Audit.seal`."""
    if store.in_transaction:
        raise ParameterError(
            "seal() reads by a snapshot of its own; call it outside a transaction."
        )
    seals.require(store)
    try:
        with store.transaction(isolation="repeatable read", timeout_ms=0) as connection:
            begin(connection)
            return seal_here(store, key, sign=sign, progress=progress)
    except Transient as error:
        raise Transient(
            f"nothing was sealed{store.lock_holders(['audit.seals'])}: {error}"
        ) from error


def seal_here(
    store: PostgresStore,
    key: bytes | None,
    *,
    sign: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Sealed:
    """As `seal`, in the transaction that `begin` has prepared."""
    newest = seals.last(store)
    if newest is not None:
        newest = _sound(store, newest, key, sign=sign)
    until = horizon(store)
    since = 0 if newest is None else newest.horizon
    # Transactions count from the beginning again in a server into which a dump was restored.
    if (now := next_transaction(store)) < since:
        raise SealError(restored(now, since))
    made = rows = 0
    last_in_month: dict[date, Key] = {}
    begins = None if newest is None else (since - 1, seals.HIGHEST_ID)
    # At first all that there is, whatever its transaction says.
    rest = (
        "coalesce(transaction_id, 0)"
        if newest is None
        else "transaction_id >= CAST(:since AS bigint) AND transaction_id"
    )
    bounds = sa.text(_BOUNDS.format(rest=rest))
    given = {} if newest is None else {"since": since}
    for bound in store.rows(bounds, until=until, size=ROWS, **given):
        month, last = bound["month"], (bound["transaction_id"], bound["id"])
        after = last_in_month.get(month, begins)
        newest = _seal_rows(store, key, newest, month, after, last, bound["rows"], until)
        last_in_month[month] = last
        made, rows = made + 1, rows + newest.rows
        if progress is not None:
            progress(f"sealed {newest.total_rows:,} rows")
    return Sealed(
        seals=made,
        rows=rows,
        number=None if newest is None else newest.number,
        head=None if newest is None else newest.head.hex(),
        sealed_at=None if newest is None else newest.sealed_at,
        total_rows=0 if newest is None else newest.total_rows,
        unsealed_rows=unsealed(store, newest),
        key_id=None if newest is None or key is None else merkle.key_id(key),
    )


def state(store: PostgresStore, key: bytes | None = None) -> Sealed | None:
    """The newest seal and what is not sealed yet; see `Audit.sealed`."""
    known = store.rows(sa.text("SELECT to_regclass('audit.seals') AS name /* fwdb */"))
    newest = seals.last(store) if known[0]["name"] is not None else None
    if newest is None:
        return None
    return Sealed(
        seals=0,
        rows=0,
        number=newest.number,
        head=newest.head.hex(),
        sealed_at=newest.sealed_at,
        total_rows=newest.total_rows,
        unsealed_rows=unsealed(store, newest),
        key_id=(
            merkle.key_id(key) if key is not None and newest.signed_with(key) else newest.key_id
        ),
    )


def horizon(store: PostgresStore) -> int:
    """The transaction before which all are over and nothing is left in a journal."""
    found = store.rows(
        sa.text("SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS t")
    )
    bounds = [int(found[0]["t"])]
    for journal in store.rows(_JOURNALS):
        oldest = store.rows(sa.text(f"SELECT min(transaction_id) AS t FROM {journal['name']}"))
        if oldest[0]["t"] is not None:
            bounds.append(int(oldest[0]["t"]))
    return min(bounds)


def unsealed(store: PostgresStore, newest: Seal | None, *, month: date | None = None) -> int:
    """Rows that no seal covers yet, of all months or of one."""
    conditions: list[str] = ["true"]
    given: dict[str, Any] = {}
    if newest is not None:
        conditions.append("transaction_id >= CAST(:since AS bigint)")
        given["since"] = newest.horizon
    if month is not None:
        of_month, when = seals.span(month, month)
        conditions.append(of_month)
        given |= when
    statement = f"SELECT count(*) AS n FROM audit.audit_logs WHERE {' AND '.join(conditions)}"
    return int(store.rows(sa.text(f"{statement} /* fwdb */"), **given)[0]["n"])


def _sound(store: PostgresStore, newest: Seal, key: bytes | None, *, sign: bool) -> Seal:
    """The newest seal, if one may build on it; signed now, if `sign` says so."""
    before = seals.last(store, back=1)
    if newest.chained(merkle.EMPTY if before is None else before.head) != newest.head:
        raise SealError(
            f"seal {newest.number} is not as it was written; run 'fwdb audit verify' before "
            "anything is sealed on top of it."
        )
    if key is None:
        if newest.signature is not None:
            raise SealError(
                "the trail is sealed with a key, and FWDB_AUDIT_KEY is not set; set it: seals "
                "without it would prove less."
            )
        return newest
    if newest.signed_with(key):
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


def next_transaction(store: PostgresStore) -> int:
    """The first transaction that has not begun."""
    found = store.rows(
        sa.text("SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS t")
    )
    return int(found[0]["t"])


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
    before: Seal | None,
    month: date,
    after: Key | None,
    last: Key,
    rows: int,
    until: int,
) -> Seal:
    keys, salts, leaves = _hashed(_sorted_lines(store, month, after, last, rows))
    made = Seal(
        number=1 if before is None else before.number + 1,
        month=month,
        rows=rows,
        total_rows=rows + (0 if before is None else before.total_rows),
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
    head = made.chained(merkle.EMPTY if before is None else before.head)
    made = replace(made, head=head, signature=None if key is None else merkle.sign(key, head))
    values: dict[str, Any] = {name: getattr(made, name) for name in Seal.__slots__}
    values |= {"keys": keys, "salts": salts, "leaves": b"".join(leaves)}
    store.execute(
        sa.text(
            f"INSERT INTO audit.seals ({', '.join(values)})"
            f" VALUES ({', '.join(':' + name for name in values)})"
        ),
        values,
    )
    return made


def _sorted_lines(
    store: PostgresStore, month: date, after: Key | None, last: Key, rows: int
) -> list[bytes]:
    """The lines of the rows of one seal, in their order."""
    keyed: list[tuple[Key, bytes]] = []

    def feed(line: bytes) -> None:
        keyed.append((seals.key_of(line.split(b"\t", 6)), line))

    statement, parameters = seals.rows_between(month, after, last)
    store.lines(statement, feed, **parameters)
    if len(keyed) != rows:
        raise SealError(f"{len(keyed)} rows were read where {rows} were counted; seal again.")
    return [line for _, line in sorted(keyed)]


def _hashed(lines: list[bytes]) -> tuple[bytes, bytes, list[bytes]]:
    """Keys, new salts and leaves of these rows."""
    salts = os.urandom(seals.SALTS_SIZE * len(lines))
    keys, leaves = [], []
    for n, line in enumerate(lines):
        fields, header, actor, values = canonical.split(line)
        at = seals.SALTS_SIZE * n
        salt = salts[at : at + seals.SALTS_SIZE]
        keys.append(seals.pack(fields))
        leaves.append(
            merkle.leaf(header, merkle.part(salt[:16], actor), merkle.part(salt[16:], values))
        )
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
        WHERE {rest} < CAST(:until AS bigint) AND created_at IS NOT NULL
    ) AS found
) AS numbered
WHERE n % :size = 0 OR n = total
ORDER BY month, transaction_id, id
"""

_JOURNALS = sa.text(r"""
SELECT CAST(CAST(c.oid AS regclass) AS text) AS name
FROM pg_class AS c
JOIN pg_namespace AS s ON s.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'transaction_id'
WHERE s.nspname = 'audit' AND c.relkind IN ('r', 'p') AND c.relname LIKE 'journal\_%'
""")
