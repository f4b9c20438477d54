"""A collection compared with what the trail says of it: the first look, and after a gap."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from fwdb.audit import values
from fwdb.audit.cdc.document import BOOKKEEPING, DELETED, found_prefix, plain
from fwdb.audit.cdc.position import Ledger
from fwdb.models import document_uuid
from fwdb.stores import MongoStore
from fwdb.stores.changes import ChangeFeed, ClusterTime, documents

__all__ = ["Found", "compare", "earlier", "seen"]

_MOST_CHARACTERS = 1 << 22  # of documents in one statement
_WAIT_MS = 50  # for the answer that nothing more has changed
_MEMORY = "64MB"  # for the sorts of one comparison

# A row a document: its whole image as the trail keeps it.
_FOUND = sa.text("""
CREATE TEMPORARY TABLE fwdb_found (
    entity_id uuid PRIMARY KEY, image jsonb NOT NULL, metadata text
) ON COMMIT DROP
""")
_PUT = sa.text("""
INSERT INTO fwdb_found
SELECT entity_id, image, metadata
FROM json_to_recordset(CAST(:found AS json)) AS one (entity_id uuid, image jsonb, metadata text)
ON CONFLICT (entity_id) DO UPDATE SET image = EXCLUDED.image /* fwdb */
""")
_REMOVE = sa.text("DELETE FROM fwdb_found WHERE entity_id = ANY (CAST(:ids AS uuid[])) /* fwdb */")
_RECORD = sa.text(Path(__file__).with_suffix(".sql").read_text("utf-8"))


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
    moment: tuple[ClusterTime, datetime],
    note: str,
    corrections: Callable[[], Mapping[UUID, Found | None]] = dict,
) -> int:
    """Add what makes the trail say that the documents `found` are all there are; how many rows.

    Belongs into a transaction. The rows are of that `moment`, and `note` is in their metadata.
    `corrections`, asked after the documents were read, replace or (None) remove some of them.
    """
    store, (time, at) = ledger.store, moment
    store.execute(sa.text(f"SET LOCAL work_mem = '{_MEMORY}'"))
    store.execute(_FOUND)
    _put(ledger, found)
    changed = corrections()
    store.execute(_REMOVE, {"ids": [str(id) for id, one in changed.items() if one is None]})
    _put(ledger, (one for one in changed.values() if one is not None))
    store.execute(sa.text("ANALYZE fwdb_found"))
    ledger.add_months([at])
    added = store.execute(
        _RECORD,
        {
            "entity_type": ledger.entity.name,
            "prefix": found_prefix(time),
            "at": at,
            "note": note,
            "bookkeeping": sorted(BOOKKEEPING),
            "deleted": DELETED,
        },
    ).rowcount
    store.execute(sa.text("DROP TABLE fwdb_found"))
    return added


def _put(ledger: Ledger, found: Iterable[Found]) -> None:
    listed: list[str] = []
    size = 0

    def write() -> None:
        ledger.store.execute(_PUT, {"found": f"[{','.join(listed)}]"})

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
    with closing(ChangeFeed(mongodb, collection, at=time, wait_ms=_WAIT_MS, fetch=fetch)) as feed:
        while events := feed.read(fetch, seconds=1).events:
            for event in events:
                if event.operation == "insert":
                    changed.setdefault(document_uuid(event.key)[0], None)
                elif event.before is not None:
                    one = Found.of(event.key, event.before)
                    changed.setdefault(one.entity_id, one)
    return changed
