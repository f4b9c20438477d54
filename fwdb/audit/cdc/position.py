"""What a follower keeps in PostgreSQL: where it stands, its rows, its gaps; and who may write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from fwdb.audit import runs
from fwdb.audit.cdc.document import Row, payload
from fwdb.errors import Conflict, FeatureUnavailable, PermissionDenied
from fwdb.stores import PostgresStore
from fwdb.stores.changes import ClusterTime

__all__ = ["Ledger", "State"]

ENTITY_TYPE = "Design"
BEGINNING = ClusterTime(0, 0)

INSERT = """
INSERT INTO audit.audit_logs (
    id, created_at, action, entity_type, entity_id, user_id, old_values, new_values, metadata,
    ip_address, user_agent, reason, origin
)
SELECT
    change.id, change.created_at, CAST(change.action AS {action}), '{entity_type}',
    change.entity_id, {user_id}, change.old_values, change.new_values, change.metadata,
    change.ip_address, change.user_agent, change.reason, 'follower'
FROM json_to_recordset(CAST(:changes AS json)) AS change (
    id uuid, created_at timestamptz, action text, entity_id uuid, user_id uuid, old_values jsonb,
    new_values jsonb, metadata text, ip_address text, user_agent text, reason text
)
-- One that is there was read before: the id says which event it is.
ON CONFLICT DO NOTHING /* fwdb */
"""
# An adopted table has a foreign key, and one row it refuses would stop all that come after.
_KNOWN_USER = "(SELECT u.id FROM shared.users AS u WHERE u.id = change.user_id)"

SAVE = sa.text("""
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
BEGIN = sa.text("""
INSERT INTO audit.followers AS f (name, source, holder, started_at)
VALUES (:name, :source, CAST(:holder AS uuid), clock_timestamp())
ON CONFLICT (name) DO UPDATE
    SET source = EXCLUDED.source, holder = EXCLUDED.holder, started_at = EXCLUDED.started_at
RETURNING f.state /* fwdb */
""")
GAP = sa.text("""
INSERT INTO audit.gaps (follower, since, until, reason, differences)
VALUES (:follower, :since, :until, :reason, :differences) /* fwdb */
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
    """The tables of the trail as the one follower `name` writes them."""

    def __init__(self, store: PostgresStore, name: str, source: str) -> None:
        self.store = store
        self.name = name
        self._source = source
        self._holder = str(uuid4())
        self._months: set[tuple[int, int]] = set()

    @contextmanager
    def alone(self) -> Iterator[State]:
        """The state, for the only follower; raises `Conflict` when there is another."""
        self._require()
        rival = f"another follower of {self.name} is running{{}}; one is enough."
        with runs.alone(self.store, f"follow {self.name}", rival):
            with self.store.transaction() as writing:
                stored = writing.execute(
                    BEGIN, {"name": self.name, "source": self._source, "holder": self._holder}
                ).scalar()
            yield State.of(stored)

    def write(
        self,
        state: State,
        rows: Sequence[Row] = (),
        *,
        events: int = 0,
        event_at: datetime | None = None,
        caught_up: bool = False,
    ) -> int:
        """Store `rows` and `state`, both or neither; how many rows were new.

        Raises `Conflict` when another follower has taken over: this one has lost its lock.
        """
        with self.store.transaction():
            new = self.insert(rows) if rows else 0
            self.save(state, events=events, changes=new, event_at=event_at, caught_up=caught_up)
        return new

    def insert(self, rows: Sequence[Row]) -> int:
        """Add `rows` that are not there yet; their number."""
        self.add_months([one.created_at for one in rows])
        return self.store.execute(self._insert, {"changes": payload(rows)}).rowcount

    def save(
        self,
        state: State,
        *,
        events: int = 0,
        changes: int = 0,
        event_at: datetime | None = None,
        caught_up: bool = False,
    ) -> None:
        kept = self.store.execute(
            SAVE,
            {
                "name": self.name,
                "holder": self._holder,
                "state": state.json(),
                "position_at": None if state.time is None else state.time.at,
                "event_at": event_at,
                "caught_up": caught_up,
                "images": state.images,
                "events": events,
                "changes": changes,
            },
        ).rowcount
        if not kept:
            raise Conflict(f"another follower of {self.name} has taken over; this one ends.")

    def gap(
        self, *, since: datetime | None, until: datetime, reason: str, differences: int | None
    ) -> None:
        """Record that not each change between the two times was seen."""
        self.store.execute(
            GAP,
            {
                "follower": self.name,
                "since": since,
                "until": until,
                "reason": reason,
                "differences": differences,
            },
        )

    # -- the tables as they are ---------------------------------------------------------------

    @cached_property
    def _table(self) -> dict[str, Any]:
        """What differs between a trail of ours and an adopted one: an enum, a foreign key."""
        return self.store.rows(
            sa.text("""
            SELECT
                (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                 WHERE attrelid = c.oid AND attname = 'action') AS action,
                EXISTS (SELECT FROM pg_constraint
                 WHERE conrelid = c.oid AND contype = 'f') AS bound
            FROM pg_class AS c WHERE c.oid = to_regclass('audit.audit_logs') /* fwdb */""")
        )[0]

    @property
    def action_type(self) -> str:
        """The SQL type of the column `action`."""
        return str(self._table["action"])

    @cached_property
    def _insert(self) -> sa.TextClause:
        user_id = _KNOWN_USER if self._table["bound"] else "change.user_id"
        return sa.text(
            INSERT.format(action=self.action_type, entity_type=ENTITY_TYPE, user_id=user_id)
        )

    def add_months(self, times: Sequence[datetime]) -> None:
        """Make the months of these times; a change of long ago must not find none."""
        first, last = min(times), max(times)
        months = {(first.year, first.month), (last.year, last.month)}
        if months <= self._months:
            return
        self.store.execute(
            sa.text("SELECT audit.add_partitions(:since, :until) /* fwdb */"),
            {"since": first.date(), "until": last.date()},
        )
        self._months |= months

    def _require(self) -> None:
        """Raise what is missing before anything is followed."""
        found = self.store.rows(
            sa.text("""
            SELECT to_regclass('audit.followers') IS NOT NULL AS there,
                current_user AS role,
                CASE WHEN to_regclass('audit.followers') IS NOT NULL THEN
                    has_table_privilege('audit.audit_logs', 'INSERT')
                    AND has_table_privilege('audit.followers', 'INSERT') END AS allowed
            /* fwdb */""")
        )[0]
        if not found["there"]:
            raise FeatureUnavailable(
                "this database has no table audit.followers; run 'fwdb migrate' first."
            )
        if not found["allowed"]:
            raise PermissionDenied(
                f"role '{found['role']}' may not write the audit trail, which belongs to its "
                "owner; follow as the owner of audit.audit_logs."
            )
