"""What a follower keeps in PostgreSQL: where it stands, its rows, its gaps; and who may write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from fwdb.audit import runs
from fwdb.audit.cdc.document import Row
from fwdb.audit.relation import exists
from fwdb.errors import Conflict, FeatureUnavailable, PermissionDenied
from fwdb.models import DocumentEntity
from fwdb.stores import PostgresStore
from fwdb.stores.changes import ClusterTime

__all__ = ["BEGINNING", "Ledger", "State"]

BEGINNING = ClusterTime(0, 0)

# In the types of the table, which may be enums. A trail that was there before fwdb may have a
# foreign key too, and one row it refuses would stop all that come after.
_INSERT = sa.text("""
INSERT INTO audit.audit_logs (
    id, created_at, action, entity_type, entity_id, user_id, old_values, new_values, metadata,
    ip_address, user_agent, reason, origin
)
SELECT
    id, created_at, action, entity_type, entity_id,
    CASE WHEN EXISTS (
        SELECT FROM pg_constraint
        WHERE conrelid = to_regclass('audit.audit_logs') AND contype = 'f'
    ) THEN (SELECT u.id FROM shared.users AS u WHERE u.id = change.user_id)
    ELSE user_id END,
    old_values, new_values, metadata, ip_address, user_agent, reason, 'follower'
FROM json_populate_recordset(CAST(NULL AS audit.audit_logs), CAST(:changes AS json)) AS change
-- One that is there was read before: the id says which event it is.
ON CONFLICT DO NOTHING /* fwdb */
""")
_SAVE = sa.text("""
UPDATE audit.followers
SET state = CAST(:state AS jsonb),
    saved_at = clock_timestamp(),
    position_at = :position_at,
    event_at = coalesce(:event_at, event_at),
    caught_up_at = CASE WHEN :caught_up THEN clock_timestamp() END,
    images = :images,
    events = events + :events,
    changes = changes + :changes
WHERE name = :name AND holder = CAST(:holder AS uuid) /* fwdb */
""")
_BEGIN = sa.text("""
INSERT INTO audit.followers AS f (name, source, holder, started_at)
VALUES (:name, :source, CAST(:holder AS uuid), clock_timestamp())
ON CONFLICT (name) DO UPDATE
    SET source = EXCLUDED.source, holder = EXCLUDED.holder, started_at = EXCLUDED.started_at
RETURNING f.state /* fwdb */
""")
_GAP = sa.text("""
INSERT INTO audit.gaps (follower, since, until, reason, differences)
VALUES (:follower, :since, :until, :reason, :differences) /* fwdb */
""")
_ALLOWED = sa.text("""
SELECT current_user AS role, has_table_privilege('audit.audit_logs', 'INSERT')
    AND has_table_privilege('audit.followers', 'INSERT') AS allowed /* fwdb */
""")


@dataclass(slots=True)
class State:
    """Where a follower stands. All events up to `time` are recorded.

    `token` and `ordinal` belong to the newest event, of cluster time `event`. Reading never begins
    before `floor`, the time of a first look at the collection or behind its end. `marks` are the
    nonces of announced deletions by document.
    """

    time: ClusterTime | None = None
    event: ClusterTime | None = None
    ordinal: int = -1
    token: str | None = None
    floor: ClusterTime = BEGINNING
    collection_id: str | None = None
    images: bool = False
    marks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: dict[str, Any] | None) -> State:
        found = dict(stored or {})
        for name in ("time", "event", "floor"):
            if found.get(name) is not None:
                found[name] = ClusterTime(*found[name])
        return cls(**found)

    def json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


class Ledger:
    """The tables of the trail as the one follower of `entity` writes them."""

    def __init__(self, store: PostgresStore, entity: DocumentEntity[Any], source: str) -> None:
        self.store = store
        self.entity = entity
        self.name = entity.collection
        self._source = source
        self._holder = str(uuid4())
        self._months: set[tuple[int, int]] = set()

    @contextmanager
    def alone(self) -> Iterator[State]:
        """The state, for the only follower; raises `Conflict` when there is another."""
        if not exists(self.store, "audit.followers"):
            raise FeatureUnavailable(
                "this database has no table audit.followers; run 'fwdb migrate' first."
            )
        found = self.store.rows(_ALLOWED)[0]
        if not found["allowed"]:
            raise PermissionDenied(
                f"role '{found['role']}' may not write the audit trail, which belongs to its "
                "owner; follow as the owner of audit.audit_logs."
            )
        rival = f"another follower of {self.name} is running{{}}; one is enough."
        with runs.alone(self.store, f"follow {self.name}", rival):
            with self.store.transaction() as writing:
                begun = {"name": self.name, "source": self._source, "holder": self._holder}
                stored = writing.execute(_BEGIN, begun).scalar()
            yield State.of(stored)

    def write(
        self,
        state: State,
        rows: Sequence[Row] = (),
        *,
        compared: int = 0,
        events: int = 0,
        event_at: datetime | None = None,
        caught_up: bool = False,
    ) -> int:
        """Store `rows` and `state`, both or neither; how many rows were new.

        A comparison has added as many as `compared`. Raises `Conflict` when another follower has
        taken over: this one has lost its lock.
        """
        with self.store.transaction():
            new = 0
            if rows:
                self.add_months([row["created_at"] for row in rows])
                listed = [{"entity_type": self.entity.name, **row} for row in rows]
                changes = json.dumps(listed, ensure_ascii=False, default=str)
                new = self.store.execute(_INSERT, {"changes": changes}).rowcount
            saved = {
                "name": self.name,
                "holder": self._holder,
                "state": state.json(),
                "position_at": None if state.time is None else state.time.at,
                "event_at": event_at,
                "caught_up": caught_up,
                "images": state.images,
                "events": events,
                "changes": new + compared,
            }
            if not self.store.execute(_SAVE, saved).rowcount:
                raise Conflict(f"another follower of {self.name} has taken over; this one ends.")
        return new

    def gap(self, **gap: Any) -> None:
        """Record that between `since` and `until` not each change was seen, and the `reason`.

        `differences` are the rows that a comparison added.
        """
        self.store.execute(_GAP, {"follower": self.name, **gap})

    def add_months(self, times: Sequence[datetime]) -> None:
        """Make the months of these times; a change of long ago must not find none."""
        first, last = min(times), max(times)
        months = {(first.year, first.month), (last.year, last.month)}
        if not months <= self._months:
            asked = sa.text("SELECT audit.add_partitions(:since, :until) /* fwdb */")
            self.store.execute(asked, {"since": first.date(), "until": last.date()})
            self._months |= months
