"""The audit trail: what changed, who did it, when; written with the change, asked as frames."""

from __future__ import annotations

from fwdb.arguments import checks_arguments
from fwdb.audit import (
    as_of,
    cdc,
    coverage,
    figures,
    record,
    revert,
    trail,
)
from fwdb.audit.context import Context
from fwdb.audit.retention import holds, retain
from fwdb.audit.retention.partitions import Retired
from fwdb.audit.retention.retain import PartitionsAhead, Retention
from fwdb.audit.seal import erase, file, sealer, verify
from fwdb.audit.seal.erase import Erasure
from fwdb.audit.seal.findings import Finding, Verification
from fwdb.audit.seal.sealer import Sealed

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
    context = record.context
    log_create = record.log_create
    log_update = record.log_update
    log_delete = record.log_delete
    log_read = record.log_read
    counts = record.counts

    # Rows of the trail, and what they changed
    history = trail.history
    search = trail.search
    recent = trail.recent
    by_user = trail.by_user
    timeline = trail.timeline
    who_changed = trail.who_changed
    diff = trail.diff
    as_of = as_of.as_of
    with_archives = Context.with_archives

    # Figures
    activity = figures.activity
    actors = figures.actors
    totals = figures.totals
    bursts = figures.bursts
    most_changed = figures.most_changed
    unclaimed = figures.unclaimed
    without_actor = figures.without_actor
    anomalies = figures.anomalies

    # Undoing changes
    revert = revert.revert

    # Changes of MongoDB
    follow = cdc.follow
    follower = cdc.follower
    gaps = cdc.gaps
    following = cdc.following

    # What is captured and what is not
    standing = coverage.standing
    following_standing = coverage.following_standing
    images = coverage.images
    coverage = coverage.coverage

    # How long rows are kept
    partitions = retain.partitions
    partitions_ahead = retain.partitions_ahead
    complete_since = retain.complete_since
    retain = retain.retain
    hold = holds.hold
    release = holds.release
    holds = holds.holds

    # Whether the trail is as it was recorded
    seal = sealer.seal
    run_sealer = sealer.run_sealer
    sealed = sealer.sealed
    seal_file = file.seal_file
    verify = verify.verify
    erase = erase.erase
