"""The follower: reads the changes of a collection from MongoDB and writes them into the trail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from fwdb.audit.cdc.document import FOUND_ORDINAL, Row, after, announced, is_found, row, row_id
from fwdb.audit.cdc.position import BEGINNING, Ledger, State
from fwdb.audit.cdc.resync import Found, compare, earlier, seen
from fwdb.errors import Conflict, PermissionDenied, QueryTimeout, StoreUnavailable, Transient
from fwdb.models import DocumentEntity, document_uuid
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.changes import (
    ChangeBatch,
    ChangeEvent,
    ChangeFeed,
    ClusterTime,
    EventsTooLarge,
    HistoryLost,
    present,
)

__all__ = ["Followed", "Follower"]

_log = logging.getLogger("fwdb.audit")

BATCH = 1000  # events of one answer and of one transaction; SecantusDB gives 200 at most
WAIT_MS, ONCE_WAIT_MS = 250, 50  # that the server waits for an event before it says there is none
READ_SECONDS = 0.25  # for which a batch may grow while events come slowly
# Reading again by time begins so much earlier. SecantusDB killed without --sync-on-commit lost the
# last 0.2 s; what it lost within this time is noticed, because it is not read again.
OVERLAP_SECONDS = 10
SAVE_SECONDS = 2.0  # between two notes of a quiet follower that it lives
SETTLE_SECONDS = 0.2  # for changes that have their cluster time and are not committed yet
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.1, 30.0
LONGEST_CONFLICT_SECONDS = 5.0
_COMPARE_MS = 600_000

AFTER_GAP = "found after a gap"
ENDED = "ended"  # in place of the id of a collection that was dropped

_DOCUMENTS = {"insert", "update", "replace", "delete"}
_ENDS = {"drop", "rename", "dropDatabase"}
_PASSING = (StoreUnavailable, Transient, QueryTimeout)

_RECORDED = sa.text("""
SELECT id FROM audit.audit_logs
WHERE origin = 'follower' AND entity_type = :entity_type AND created_at >= :since
    AND id >= CAST(:first AS uuid) AND id < CAST(:behind AS uuid) /* fwdb */
""")
_NEWEST = sa.text("""
SELECT max(created_at) AS at FROM audit.audit_logs
WHERE origin = 'follower' AND entity_type = :entity_type AND created_at >= :since
    AND id < CAST(:behind AS uuid) /* fwdb */
""")

Moment = tuple[ClusterTime, datetime]


@dataclass(frozen=True, slots=True)
class Followed:
    """What one run of a follower did: events read, rows added to the trail, gaps found."""

    events: int
    changes: int
    gaps: int


class Follower:
    """Follows the documents of `entity` in `mongodb` into the trail of `postgres`.

    Each event becomes one row, in the transaction that also saves how far it came. After a loss
    it reads a little again, and the ids of rows, which are made from the events, keep them single.
    """

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore,
        entity: DocumentEntity[Any],
        *,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._mongodb = mongodb
        self._collection = entity.collection
        self._entity_type = entity.name
        self._ledger = Ledger(postgres, entity, mongodb.address)
        self._progress = progress or (lambda sentence: None)
        self._events = self._changes = self._gaps = 0
        self._state = State()
        self.ready = threading.Event()  # set when changes from now on will be recorded
        self._wait_ms = WAIT_MS
        # Events that one answer may hold: less after one that was too large, and twice as many
        # after each thousand events. Those that are read again do not count.
        self._fetch, self._since_less = BATCH, 0
        self._one_too_large = False
        self._saved = 0.0
        self._caught_up = False
        # Rows of the time that is read again and has not come again so far.
        self._missing: set[UUID] = set()
        self._again_until = BEGINNING
        self._strange: str | None = None  # collection that came without an event so far

    def run(self, *, once: bool, stop: threading.Event) -> Followed:
        """Follow until `stop` is set, or `once` to the present; goes on after lost connections.

        Raises `StoreUnavailable` when a store is down at the start, `Conflict` when another
        follower runs, `FeatureUnavailable` and `PermissionDenied` for what is missing.
        """
        delay = FIRST_DELAY_SECONDS
        while True:
            before = self._events
            try:
                with self._ledger.alone() as state:
                    self._state = state
                    self._follow(once=once, stop=stop)
                return Followed(self._events, self._changes, self._gaps)
            except EventsTooLarge as error:
                self._one_too_large = self._fetch == 1
                self._fetch, self._since_less = max(1, self._fetch // 8), 0
                _log.info("following %s with less at a time: %s", self._collection, error)
            except (*_PASSING, Conflict) as error:
                # A lock of ours may outlive its lost connection for a while; not for long.
                lasting = isinstance(error, Conflict) and delay > LONGEST_CONFLICT_SECONDS
                if lasting or not self.ready.is_set():
                    raise
                _log.warning("following %s paused: %s", self._collection, error)
                delay = FIRST_DELAY_SECONDS if self._events > before else delay
                if stop.wait(delay):
                    return Followed(self._events, self._changes, self._gaps)
                delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _follow(self, *, once: bool, stop: threading.Event) -> None:
        target = present(self._mongodb, self._collection).time
        self._wait_ms = ONCE_WAIT_MS if once else WAIT_MS
        quiet = 0
        while not stop.is_set():
            feed = self._open()
            self.ready.set()
            # The next batch is read while the one before is written.
            with closing(feed), ThreadPoolExecutor(1, "fwdb-changes") as reader:
                alive, again = True, False
                ahead = reader.submit(feed.read, self._fetch, seconds=READ_SECONDS)
                while alive and not again and not stop.is_set():
                    batch = ahead.result()
                    if batch.alive:
                        ahead = reader.submit(feed.read, self._fetch, seconds=READ_SECONDS)
                    again = self._take(batch)
                    alive = batch.alive
                    # An answer without events may come from a server that is still looking.
                    quiet = quiet + 1 if batch.idle and not batch.events else 0
                    passed = self._state.time is not None and self._state.time >= target
                    done = batch.idle and (passed or quiet > 1) and self._strange is None
                    if once and done and not again:
                        return

    # -- where to begin -----------------------------------------------------------------------

    def _open(self) -> ChangeFeed:
        """A feed from where the state is; after a look at the collection where that is needed."""
        state, now = self._state, present(self._mongodb, self._collection)
        one_too_large, self._one_too_large = self._one_too_large, False
        if (state.images != now.images or state.time is None) and not now.images:
            self._progress(
                f"MongoDB keeps no documents before changes for {self._collection}, so old values "
                "are not known; run 'fwdb migrate' as the owner."
            )
        state.images = now.images
        try:
            if state.time is None:
                self._look("baseline", None)
            elif now.time < state.time:
                self._look(AFTER_GAP, "the server is behind what was followed, as if restored")
            elif one_too_large:
                self._step_over()
            return self._resume()
        except HistoryLost:
            self._look(AFTER_GAP, "the server no longer has the changes")
            return self._resume()

    def _step_over(self) -> None:
        """Make a gap of the next event, which does not fit into an answer, and go on behind it."""
        state = self._state
        assert state.time is not None, "a look at the collection comes first"
        behind = state.time, state.ordinal if state.event == state.time else FOUND_ORDINAL
        with closing(self._resume(names_only=True)) as feed:
            event = self._next(feed, behind)
        reason, moment = "a change is too large to be read", None
        if event is not None:
            what = f"{self._entity_type.lower()} {document_uuid(event.key)[0]}"
            reason, moment = f"{reason}: {event.operation} of {what}", self._moment(event.time)
        try:
            self._look(AFTER_GAP, reason, moment)
        except EventsTooLarge:  # another one, without which the documents of then are not known
            self._look(AFTER_GAP, reason)

    def _next(self, feed: ChangeFeed, behind: tuple[ClusterTime, int]) -> ChangeEvent | None:
        """The first event behind a cluster time and a number among the events of that time."""
        quiet = 0
        while quiet < 2:  # an answer without events may come from a server that is still looking
            batch = feed.read(BATCH, seconds=READ_SECONDS)
            for event in batch.events:
                if self._numbered(event) > behind:
                    return event
            quiet += batch.idle and not batch.events
        return None

    def _numbered(self, event: ChangeEvent) -> tuple[ClusterTime, int]:
        """The place of the next event: its cluster time, and its number among those of then."""
        state = self._state
        state.ordinal = state.ordinal + 1 if event.time == state.event else 0
        state.event = event.time
        return event.time, state.ordinal

    def _resume(self, *, names_only: bool = False) -> ChangeFeed:
        """A feed behind the newest event, or by time with what was there shortly before."""
        state = self._state
        feed_of = partial(
            ChangeFeed,
            self._mongodb,
            self._collection,
            wait_ms=self._wait_ms,
            fetch=self._fetch,
            names_only=names_only,
        )
        assert state.time is not None, "a look at the collection comes first"
        self._missing.clear()
        if state.token is not None and (feed := self._behind(state.token, feed_of)) is not None:
            return feed
        begin = max(state.time.back(OVERLAP_SECONDS), state.floor)
        feed = feed_of(at=begin)
        state.event, state.ordinal = None, -1  # it begins before or with a cluster time
        self._again_until = state.time
        recorded = self._ledger.store.rows(
            _RECORDED,
            entity_type=self._entity_type,
            since=begin.at,
            first=str(row_id(begin, 0, bytes(8))),
            behind=str(row_id(state.time.next, 0, bytes(8))),
        )
        self._missing = {id for one in recorded if not is_found(id := UUID(str(one["id"])))}
        return feed

    def _behind(self, token: str, feed_of: Callable[..., ChangeFeed]) -> ChangeFeed | None:
        """A feed behind `token`; None where the server does not know it or gives it out twice."""
        try:
            feed = feed_of(after=token)
        except PermissionDenied:
            return None  # SecantusDB, of a token with the namespace of a command
        except HistoryLost:
            if self._mongodb.is_secantus:
                raise  # by time it would begin with the oldest change it has, without a word
            return None
        if not self._mongodb.is_secantus:
            return feed
        feed.close()
        return None

    # -- comparing ----------------------------------------------------------------------------

    def _look(
        self, note: str, reason: str | None, at: Moment | None = None, *, perhaps: bool = False
    ) -> None:
        """Compare the collection with the trail, and go on from the time of that.

        That is now, or `at` where MongoDB still has all changes since. `perhaps` there is no
        gap: then one is recorded only where documents differ.
        """
        since = None if self._state.time is None else self._state.time.at
        now = present(self._mongodb, self._collection)
        time.sleep(SETTLE_SECONDS)
        said = reason or "it is the first time"
        self._progress(f"looking at all documents of {self._collection}; {said}")
        moment = at or (now.time, now.at)
        self._move(moment[0], now.collection_id)
        found = seen(self._mongodb, self._collection)
        corrections = partial(
            earlier, self._mongodb, self._collection, self._state.floor, fetch=self._fetch
        )
        gap = None if reason is None else {"since": since, "until": moment[1], "reason": reason}
        self._compare(found, moment, note, corrections, gap, perhaps=perhaps)

    def _move(self, time: ClusterTime, collection_id: str | None) -> None:
        """Let the state be behind `time`, before which nothing is read again."""
        images = self._state.images
        self._state = State(time, floor=time.next, collection_id=collection_id, images=images)
        self._missing.clear()

    def _compare(
        self,
        found: Iterable[Found],
        at: Moment,
        note: str,
        corrections: Callable[[], Mapping[UUID, Found | None]] = dict,
        gap: dict[str, Any] | None = None,
        *,
        perhaps: bool = False,
    ) -> None:
        """Record how the documents `found` differ from the trail, and the state."""
        with self._ledger.store.transaction(timeout_ms=_COMPARE_MS):
            added = compare(self._ledger, found, at, note, corrections)
            gap = None if perhaps and not added else gap
            if gap is not None:
                self._ledger.gap(**gap, differences=added)
            self._ledger.write(self._state, compared=added)
        self._changes += added
        if gap is not None:
            self._gaps += 1
            said = "%s: %s; %d differences recorded"
            _log.warning(said, self._collection, gap["reason"], added)

    # -- what comes ---------------------------------------------------------------------------

    def _take(self, batch: ChangeBatch) -> bool:
        """Record the events and the position; whether the feed has to be opened anew."""
        state, again_until, idle = self._state, self._again_until, batch.idle
        rows: list[Row] = []
        fresh: list[ChangeEvent] = []
        for event in batch.events:
            if event.time > again_until:
                if self._lost_some(rows, fresh):
                    return True
                fresh.append(event)
            self._numbered(event)
            state.token = event.token
            state.time = event.time if state.time is None else max(state.time, event.time)
            if event.operation in _DOCUMENTS:
                rows += self._row(event)
            elif event.operation in _ENDS:
                self._write(rows, fresh)
                self._ended(event)
                return True
        if idle and self._lost_some(rows, fresh):
            return True
        passed = batch.passed
        if passed is not None and (state.time is None or passed > state.time):
            state.time, state.token = passed, batch.token
        changed = idle != self._caught_up or (idle and self._strange is not None)
        if rows or fresh or changed or time.monotonic() - self._saved > SAVE_SECONDS:
            self._write(rows, fresh, caught_up=idle)
            return idle and self._replaced(quiet=not batch.events)
        return False

    def _row(self, event: ChangeEvent) -> list[Row]:
        marks, key = self._state.marks, str(document_uuid(event.key)[0])
        marked = marks.pop(key, None)
        document = after(event)
        if (nonce := announced(event, document)) is not None:
            marks[key] = nonce
        found = row(event, document, self._state.ordinal, marked=marked)
        if found is None:
            return []
        self._missing.discard(found["id"])
        return [found]

    def _write(
        self, rows: Sequence[Row], fresh: Sequence[ChangeEvent], *, caught_up: bool = False
    ) -> None:
        """Store `rows` and the state; `fresh` are the events read for the first time."""
        self._changes += self._ledger.write(
            self._state,
            rows,
            events=len(fresh),
            event_at=fresh[-1].at if fresh else None,
            caught_up=caught_up,
        )
        self._events += len(fresh)
        self._since_less += len(fresh)
        if self._since_less >= BATCH:
            self._fetch, self._since_less = min(2 * self._fetch, BATCH), 0
        self._saved, self._caught_up = time.monotonic(), caught_up

    def _lost_some(self, rows: Sequence[Row], fresh: Sequence[ChangeEvent]) -> bool:
        """Whether rows are in the trail whose events the server does not have any more."""
        if not self._missing:
            return False
        self._write(rows, fresh)
        reason = f"the server lost {len(self._missing)} recorded changes, as after a crash"
        self._look(AFTER_GAP, reason, self._moment(self._again_until))
        return True

    def _moment(self, time: ClusterTime) -> Moment:
        """`time` and a clock time that is not before the rows up to then."""
        since, behind = time.back(OVERLAP_SECONDS).at, str(row_id(time.next, 0, bytes(8)))
        asked = {"entity_type": self._entity_type, "since": since, "behind": behind}
        newest = self._ledger.store.rows(_NEWEST, **asked)[0]["at"]
        return time, max(time.at, newest or time.at)

    def _ended(self, event: ChangeEvent) -> None:
        """The collection went: all documents that the trail knows did, at that moment."""
        if event.to == self._collection:
            self._look(AFTER_GAP, "another collection was renamed to this one")
            return
        said = "renamed" if event.operation == "rename" else "dropped"
        self._move(event.time, ENDED)
        self._compare((), (event.time, event.at), f"collection {said}")

    def _replaced(self, *, quiet: bool) -> bool:
        """Whether the collection is another one and no event said so; it is compared then."""
        state, now = self._state, present(self._mongodb, self._collection)
        told = state.collection_id == ENDED
        known = now.collection_id == (None if told else state.collection_id)
        if state.collection_id is None:
            state.collection_id, self._strange = now.collection_id, None
            return False
        if known or not quiet or self._strange is None:
            # The event that says so may be on its way: it is believed when asked again.
            self._strange = None if known else now.collection_id or ENDED
            return False
        self._strange = None
        assert state.time is not None, "it was followed up to here"
        # After an end that was told, one that is as the trail says was made anew, event by event.
        reason = "the collection was replaced by another"
        self._look(AFTER_GAP, reason, self._moment(state.time), perhaps=told)
        return True
