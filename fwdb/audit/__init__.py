"""The audit trail: what changed, who did it, when; written with the change, asked as frames."""

from __future__ import annotations

from fwdb.arguments import checks_arguments
from fwdb.audit import (
    anomalies,
    archived,
    coverage,
    following,
    holds,
    lives,
    proof,
    questions,
    recording,
    retention,
    reverting,
    time_travel,
)
from fwdb.audit.context import Context
from fwdb.audit.erasing import Erasure
from fwdb.audit.findings import Finding, Verification
from fwdb.audit.partitions import Retired
from fwdb.audit.retention import PartitionsAhead, Retention
from fwdb.audit.sealing import Sealed

__all__ = [
    "Audit",
    "Erasure",
    "Finding",
    "PartitionsAhead",
    "Retention",
    "Retired",
    "Sealed",
    "Verification",
]


@checks_arguments
class Audit(Context):
    """Who did what to what, and when: the table `audit.audit_logs`.

    The `log_…` methods belong inside ``with db.transaction()`` beside the change they describe:
    they join it, so both are kept or neither is. They raise what the database says and never
    hide it. Outside a transaction each commits by itself. A design lives in MongoDB, which a
    PostgreSQL transaction cannot include.

    Questions come back as DataFrames whose columns and types do not depend on the answer. Times
    are UTC; `since` is part of a window, `until` is not. Rows written by other programs are read
    too, also those of other kinds; passwords and the like in them are shown as ``[redacted]``.
    """

    # What callers record
    context = recording.context
    log_create = recording.log_create
    log_update = recording.log_update
    log_delete = recording.log_delete
    log_read = recording.log_read
    counts = recording.counts

    # Rows of the trail, and what they changed
    history = questions.history
    search = questions.search
    recent = questions.recent
    by_user = questions.by_user
    timeline = questions.timeline
    who_changed = questions.who_changed
    diff = questions.diff
    as_of = time_travel.as_of
    with_archives = archived.with_archives

    # Figures
    activity = questions.activity
    actors = questions.actors
    totals = questions.totals
    bursts = questions.bursts
    most_changed = lives.most_changed
    unclaimed = lives.unclaimed
    without_actor = coverage.without_actor
    anomalies = anomalies.anomalies

    # Undoing changes
    revert = reverting.revert

    # Changes of MongoDB
    follow = following.follow
    follower = following.follower
    gaps = following.gaps
    following = following.following

    # What is captured and what is not
    standing = coverage.standing
    following_standing = coverage.following_standing
    images = coverage.images
    coverage = coverage.coverage

    # How long rows are kept
    retain = retention.retain
    partitions = retention.partitions
    partitions_ahead = retention.partitions_ahead
    complete_since = retention.complete_since
    hold = holds.hold
    release = holds.release
    holds = holds.holds

    # Whether the trail is as it was recorded
    seal = proof.seal
    run_sealer = proof.run_sealer
    sealed = proof.sealed
    seal_file = proof.seal_file
    verify = proof.verify
    erase = proof.erase
