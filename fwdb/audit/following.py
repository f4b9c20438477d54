"""Following MongoDB: the part of `Audit` that runs the follower and says how far it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from fwdb.audit.context import Context
from fwdb.audit.follower import COLLECTION, Followed, Follower
from fwdb.audit.followers import State
from fwdb.errors import FeatureUnavailable, FwdbError
from fwdb.measure import Measure, measured, unmeasured
from fwdb.stores import MongoStore
from fwdb.stores.changes import present

__all__ = ["FollowerStatus", "follow", "follower", "following", "gaps"]

_FRESH_SECONDS = 10.0  # a follower that lives writes every 2 s
_SOURCE = "audit.followers"


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerStatus:
    """How far the changes of MongoDB are recorded.

    `running`: whether a session follows now. `lag_seconds`: how much older than MongoDB's
    present the moment is up to which all is recorded, to the second; a follower with nothing to do
    notes that every 2 s. `events_behind`: 0 when it has caught up; MongoDB cannot count what is
    still to be read. `gaps`: how often not each change was seen, `Audit.gaps` has them. `images`:
    whether MongoDB keeps documents as they were before a change; without, old values are missing.
    """

    running: bool
    lag_seconds: Measure
    events_behind: Measure
    gaps: int
    events: int
    changes: int
    started_at: datetime | None
    saved_at: datetime | None
    position_at: datetime | None
    event_at: datetime | None
    images: bool | None


def follow(
    self: Context,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
) -> Followed:
    """Record every change of `designs` until `stop` is set, or `once` up to the present.

    Each change becomes one row of the trail with `origin` ``follower``; where it stands is
    saved in the same transaction, in `audit.followers`. The first run begins with a row for
    each document there is, whose metadata says ``baseline``. Lost connections are waited for,
    with pauses of up to 30 s. What cannot be seen any more is compared afterwards and is a
    gap, see `gaps`. Needs the owner of the trail.

    Raises `StoreUnavailable` when a store is down at the start, `Conflict` when another
    follower runs, `PermissionDenied` for another role than the owner, `FeatureUnavailable`
    before `fwdb migrate` or for a MongoDB without a replica set.
    """
    follower = Follower(self.postgres, _followed(self), progress=progress)
    return follower.run(once=once, stop=stop or threading.Event())


@contextmanager
def following(self: Context, *, progress: Callable[[str], None] | None = None) -> Iterator[None]:
    """Follow in a thread as long as the block runs, and up to its end when it has ended.

    Raises as `follow`, at the start or at the end.
    """
    follower = Follower(self.postgres, _followed(self), progress=progress)
    stop, failed = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            follower.run(once=False, stop=stop)
        except BaseException as error:  # noqa: BLE001  # raised by the thread that waits
            failed.append(error)
        finally:
            follower.ready.set()

    thread = threading.Thread(target=run, name="fwdb-follower", daemon=True)
    thread.start()
    follower.ready.wait()
    try:
        if not failed:
            yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    follower.run(once=True, stop=threading.Event())


def follower(self: Context) -> FollowerStatus:
    """How far `follow` is, also when it does not run or never did."""
    found = _follower_row(self)
    if found is None:
        reason = "designs were never followed; run 'fwdb audit follow'"
        return _status({}, *(_unknown(reason, unit) for unit in ("seconds", "events")))
    return _status(found, _lag(self, found), _behind(found))


def gaps(self: Context) -> pd.DataFrame:
    """Times of which not each change was seen, newest first.

    `follower`, `since` (missing: not known), `until`, `reason`, `differences` (rows that the
    comparison with the collection added; missing: not compared), `detected_at`. Raises
    `FeatureUnavailable` before `fwdb migrate`.
    """
    if not _has_followers(self):
        raise FeatureUnavailable("this database has no table audit.gaps; run 'fwdb migrate'.")
    return self.postgres.frame("audit_gaps")


def _followed(self: Context) -> MongoStore:
    if self.mongodb is None:
        raise FeatureUnavailable("following needs MongoDB; make Audit with both stores.")
    return self.mongodb


def _has_followers(self: Context) -> bool:
    asked = sa.text("SELECT to_regclass('audit.runs') IS NOT NULL AS there /* fwdb */")
    return bool(self.postgres.rows(asked)[0]["there"])


def _follower_row(self: Context) -> dict[str, Any] | None:
    if not _has_followers(self):
        return None
    rows = self.postgres.rows("audit_followers")
    return next((one for one in rows if one["name"] == COLLECTION), None)


def _lag(self: Context, found: dict[str, Any]) -> Measure:
    stored = found["state"]
    state = State.of(json.loads(stored)) if stored else State()
    if state.time is None:
        return _unknown("the first look at the documents has not ended", "seconds")
    if self.mongodb is None:
        return _unknown("asked without MongoDB", "seconds")
    try:
        now = present(self.mongodb, COLLECTION).time
    except FwdbError as error:
        return _unknown(str(error).rstrip("."), "seconds")
    return measured(max(0, now.seconds - state.time.seconds), "seconds", "mongodb", _SOURCE)


def _behind(found: dict[str, Any]) -> Measure:
    if not found["running"]:
        return _unknown("no follower is running", "events")
    if found["caught_up_at"] is None or found["saved_seconds"] > _FRESH_SECONDS:
        return _unknown("it is reading, and MongoDB does not say how much there is", "events")
    return measured(0, "events", "mongodb", _SOURCE)


def _unknown(reason: str, unit: str) -> Measure:
    return unmeasured("not_measured", reason, unit, "mongodb", _SOURCE)


def _status(found: dict[str, Any], lag: Measure, behind: Measure) -> FollowerStatus:
    return FollowerStatus(
        running=bool(found.get("running", False)),
        lag_seconds=lag,
        events_behind=behind,
        gaps=found.get("gaps", 0),
        events=found.get("events", 0),
        changes=found.get("changes", 0),
        **{
            name: found.get(name)
            for name in ("started_at", "saved_at", "position_at", "event_at", "images")
        },
    )
