"""Changes of MongoDB: the follower that records them, and how far it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Any

import pandas as pd

from fwdb.audit.cdc.consumer import Followed, Follower
from fwdb.audit.cdc.position import State
from fwdb.audit.context import Context
from fwdb.audit.relation import exists
from fwdb.errors import FeatureUnavailable, FwdbError
from fwdb.measure import Measure, measured, unmeasured
from fwdb.models import COLLECTIONS
from fwdb.stores.changes import present

__all__ = ["FollowerStatus", "follow", "follower", "following", "gaps"]

_FRESH_SECONDS = 10.0  # a follower that lives writes every 2 s
_SOURCE = "audit.followers"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerStatus:
    """How far the changes of a collection are recorded.

    `running`: whether a session follows now. `lag_seconds`: how much older than MongoDB's
    present the moment is up to which all is recorded, to the second; a follower with nothing to do
    notes that every 2 s. `events_behind`: 0 when it has caught up; MongoDB cannot count what is
    still to be read. `gaps`: how often not each change was seen, `Audit.gaps` has them. `images`:
    whether MongoDB keeps documents as they were before a change; without, old values are missing.
    """

    running: bool = False
    lag_seconds: Measure
    events_behind: Measure
    gaps: int = 0
    events: int = 0
    changes: int = 0
    started_at: datetime | None = None
    saved_at: datetime | None = None
    position_at: datetime | None = None
    event_at: datetime | None = None
    images: bool | None = None


def follow(
    self: Context,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
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
    return _run(_followers(self, progress), once=once, stop=stop or threading.Event())


@contextmanager
def following(self: Context, *, progress: Progress | None = None) -> Iterator[None]:
    """Follow in a thread as long as the block runs, and up to its end when it has ended.

    Raises as `follow`, at the start or at the end.
    """
    followers = _followers(self, progress)
    stop = threading.Event()
    with ThreadPoolExecutor(1, "fwdb-follower") as pool:
        run = pool.submit(_run, followers, once=False, stop=stop)
        while not (run.done() or all(one.ready.wait(0.05) for one in followers)):
            pass
        try:
            if not (run.done() and run.exception()):
                yield
        finally:
            stop.set()
        run.result()
    _run(followers, once=True, stop=threading.Event())


def follower(self: Context, collection: str | None = None) -> FollowerStatus:
    """How far `follow` is, also when it does not run or never did; by default of designs."""
    name = collection or next(iter(COLLECTIONS))
    rows = self.postgres.rows("audit_followers") if exists(self.postgres, "audit.runs") else []
    found = next((one for one in rows if one["name"] == name), None)
    if found is None:
        reason = f"{name} were never followed; run 'fwdb audit follow'"
        lag, behind = _unknown(reason, "seconds"), _unknown(reason, "events")
        return FollowerStatus(lag_seconds=lag, events_behind=behind)
    known: dict[str, Any] = {one.name: found.get(one.name) for one in fields(FollowerStatus)}
    known |= {"lag_seconds": _lag(self, found), "events_behind": _behind(found)}
    return FollowerStatus(**known)


def gaps(self: Context) -> pd.DataFrame:
    """Times of which not each change was seen, newest first.

    `follower`, `since` (missing: not known), `until`, `reason`, `differences` (rows that the
    comparison with the collection added; missing: not compared), `detected_at`. Raises
    `FeatureUnavailable` before `fwdb migrate`.
    """
    if not exists(self.postgres, "audit.runs"):
        raise FeatureUnavailable("this database has no table audit.gaps; run 'fwdb migrate'.")
    return self.postgres.frame("audit_gaps")


def _followers(self: Context, progress: Progress | None) -> list[Follower]:
    if self.mongodb is None:
        raise FeatureUnavailable("following needs MongoDB; make Audit with both stores.")
    return [
        Follower(self.postgres, self.mongodb, entity, progress=progress)
        for entity in COLLECTIONS.values()
    ]


def _run(followers: list[Follower], *, once: bool, stop: threading.Event) -> Followed:
    """Run all of them, one in each thread; when one fails, the others end too."""
    if len(followers) == 1:
        return followers[0].run(once=once, stop=stop)
    with ThreadPoolExecutor(len(followers), "fwdb-follower") as pool:
        runs = [pool.submit(one.run, once=once, stop=stop) for one in followers]
        try:
            if any(run.exception() for run in wait(runs, return_when=FIRST_EXCEPTION).done):
                stop.set()
        except BaseException:
            stop.set()
            raise
        return Followed(*map(sum, zip(*(astuple(run.result()) for run in runs), strict=True)))


def _lag(self: Context, found: dict[str, Any]) -> Measure:
    state = State.of(json.loads(found["state"] or "{}"))
    if state.time is None:
        return _unknown("the first look at the documents has not ended", "seconds")
    if self.mongodb is None:
        return _unknown("asked without MongoDB", "seconds")
    try:
        now = present(self.mongodb, found["name"]).time
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
