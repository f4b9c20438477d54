"""The collection compared with what the trail says of it: the first look, and after a gap."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from fwdb.audit import values
from fwdb.audit.cdc.document import found_prefix, plain
from fwdb.audit.cdc.position import ENTITY_TYPE, Ledger
from fwdb.models import document_uuid
from fwdb.stores import MongoStore
from fwdb.stores.changes import ChangeFeed, ClusterTime, documents

__all__ = ["Found", "compare", "earlier", "seen"]

_MOST_CHARACTERS = 1 << 22  # of documents in one statement
_WAIT_MS = 50  # for the answer that nothing more has changed
_MEMORY = "64MB"  # for the sorts of one comparison

# A row a document: its whole image as the trail keeps it.
FOUND = sa.text("""
CREATE TEMPORARY TABLE fwdb_found (
    entity_id uuid PRIMARY KEY, image jsonb NOT NULL, metadata text
) ON COMMIT DROP
""")
PUT = sa.text("""
INSERT INTO fwdb_found
SELECT entity_id, image, metadata
FROM json_to_recordset(CAST(:found AS json)) AS one (entity_id uuid, image jsonb, metadata text)
ON CONFLICT (entity_id) DO UPDATE SET image = EXCLUDED.image /* fwdb */
""")
REMOVE = sa.text("DELETE FROM fwdb_found WHERE entity_id = ANY (CAST(:ids AS uuid[])) /* fwdb */")

# What the rows of the follower add up to: from the last whole image of each document on, the last
# value of each field. Null is a missing field, and a secret is only known to be there.
DIFFERENCES = """
INSERT INTO audit.audit_logs (
    id, created_at, action, entity_type, entity_id, old_values, new_values, metadata, origin
)
WITH log AS MATERIALIZED (
    SELECT entity_id, created_at, id, CAST(action AS text) AS action, new_values
    FROM audit.audit_logs
    WHERE entity_type = '{entity_type}' AND origin = 'follower'
), born AS (
    SELECT DISTINCT ON (entity_id) entity_id, created_at, id, action
    FROM log
    WHERE action = 'CREATE' OR (action = 'DELETE' AND new_values IS NULL)
    ORDER BY entity_id, created_at DESC, id DESC
), known AS (
    SELECT entity_id, jsonb_object_agg(key, value) FILTER (WHERE value <> 'null') AS image
    FROM (
        SELECT DISTINCT ON (log.entity_id, f.key) log.entity_id, f.key,
            CASE f.value WHEN '"[redacted: changed]"' THEN '"[redacted]"' ELSE f.value END AS value
        FROM born
        JOIN log ON log.entity_id = born.entity_id
            AND (log.created_at, log.id) >= (born.created_at, born.id)
        CROSS JOIN LATERAL jsonb_each(log.new_values) AS f
        WHERE born.action = 'CREATE'
        ORDER BY log.entity_id, f.key, log.created_at DESC, log.id DESC
    ) AS field
    GROUP BY entity_id
), differing AS (
    SELECT
        coalesce(known.entity_id, found.entity_id) AS entity_id,
        known.image AS old, found.image AS new, found.metadata, fields.was, fields.is_now
    FROM known FULL JOIN fwdb_found AS found ON found.entity_id = known.entity_id
    LEFT JOIN LATERAL (
        SELECT
            jsonb_object_agg(key, coalesce(known.image -> key, 'null')) AS was,
            jsonb_object_agg(key, coalesce(found.image -> key, 'null')) AS is_now,
            bool_or(key <> 'updatedAt') AS real
        FROM (
            SELECT jsonb_object_keys(known.image) AS key
            UNION SELECT jsonb_object_keys(found.image)
        ) AS keys
        WHERE coalesce(known.image -> key, 'null') <> coalesce(found.image -> key, 'null')
    ) AS fields ON known.image IS NOT NULL AND found.image IS NOT NULL
    WHERE known.image IS NULL OR found.image IS NULL OR fields.real
)
SELECT
    CAST(:prefix || left(encode(sha256(uuid_send(entity_id)), 'hex'), 11) AS uuid),
    :at,
    CAST(CASE
        WHEN old IS NULL THEN 'CREATE'
        WHEN new IS NULL THEN 'DELETE'
        WHEN was -> 'deletedAt' = 'null' AND is_now -> 'deletedAt' <> 'null' THEN 'DELETE'
        ELSE 'UPDATE'
    END AS {action}),
    '{entity_type}',
    entity_id,
    CASE WHEN new IS NULL THEN old ELSE was END,
    CASE WHEN old IS NULL THEN new ELSE is_now END,
    concat_ws('; ', CAST(:note AS text), metadata),
    'follower'
FROM differing
ON CONFLICT DO NOTHING /* fwdb */
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A document as it was at the moment of a comparison."""

    entity_id: UUID
    image: values.Values
    metadata: str | None

    @classmethod
    def of(cls, key: Any, document: Mapping[str, Any]) -> Found:
        entity_id, note = document_uuid(key)
        return cls(entity_id, values.image(plain(document) or {}), note)


def compare(
    ledger: Ledger,
    found: Iterable[Found],
    *,
    time: ClusterTime,
    at: datetime,
    note: str,
    corrections: Callable[[], Mapping[UUID, Found | None]] = dict,
) -> int:
    """Add what makes the trail say that the documents `found` are all there are; how many rows.

    Belongs into a transaction. The rows are of the moment `at`, and `note` is in their metadata.
    `corrections`, asked after the documents were read, replace or (None) remove some of them.
    """
    store = ledger.store
    store.execute(sa.text(f"SET LOCAL work_mem = '{_MEMORY}'"))
    store.execute(FOUND)
    _put(ledger, found)
    changed = corrections()
    gone = [str(id) for id, one in changed.items() if one is None]
    store.execute(REMOVE, {"ids": gone})
    _put(ledger, (one for one in changed.values() if one is not None))
    store.execute(sa.text("ANALYZE fwdb_found"))
    ledger.add_months([at])
    added = store.execute(
        sa.text(DIFFERENCES.format(action=ledger.action_type, entity_type=ENTITY_TYPE)),
        {"prefix": found_prefix(time), "at": at, "note": note},
    ).rowcount
    store.execute(sa.text("DROP TABLE fwdb_found"))
    return added


def _put(ledger: Ledger, found: Iterable[Found]) -> None:
    listed: list[str] = []
    size = 0

    def write() -> None:
        ledger.store.execute(PUT, {"found": f"[{','.join(listed)}]"})

    for one in found:
        row = {"entity_id": str(one.entity_id), "image": one.image, "metadata": one.metadata}
        listed.append(json.dumps(row, ensure_ascii=False))
        size += len(listed[-1])
        if size >= _MOST_CHARACTERS:
            write()
            listed, size = [], 0
    write()


def seen(mongodb: MongoStore, collection: str) -> Iterator[Found]:
    """The documents there are now."""
    for document in documents(mongodb, collection):
        yield Found.of(document["_id"], document)


def earlier(
    mongodb: MongoStore, collection: str, time: ClusterTime, *, fetch: int
) -> dict[UUID, Found | None]:
    """The documents changed since `time` as they were then; None for those not there yet.

    So documents that were read one after the other become a picture of one moment. They are read
    `fetch` at a time.
    """
    changed: dict[UUID, Found | None] = {}
    feed = ChangeFeed(mongodb, collection, at=time, wait_ms=_WAIT_MS, fetch=fetch)
    try:
        batch = feed.read(fetch, seconds=1)
        while batch.events:
            for event in batch.events:
                if event.operation == "insert":
                    changed.setdefault(document_uuid(event.key)[0], None)
                elif event.before is not None:
                    one = Found.of(event.key, event.before)
                    changed.setdefault(one.entity_id, one)
            batch = feed.read(fetch, seconds=1)
    finally:
        feed.close()
    return changed
