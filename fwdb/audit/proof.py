"""Proof: seals over the trail, their verification, and erasure that they survive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from fwdb.arguments import File, Seconds
from fwdb.audit import anchor, archives, checks, erasing, sealing, seals, verifying
from fwdb.audit.context import Context
from fwdb.audit.erasing import Erasure
from fwdb.audit.findings import Verification
from fwdb.audit.questions import Moment
from fwdb.audit.sealing import Sealed
from fwdb.errors import ConfigError, DuplicateKey, StoreUnavailable, Transient
from fwdb.models import Id

__all__ = ["erase", "run_sealer", "seal", "seal_file", "sealed", "verify"]

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]


def seal(self: Context, *, sign: bool = False, progress: Progress | None = None) -> Sealed:
    """Seal what is not sealed yet: all rows of transactions before the oldest that runs.

    Takes no lock that a writer meets; of two sealers one waits. With FWDB_AUDIT_KEY the new
    head is signed; `sign` also signs a newest seal that another key, or none, made. Needs the
    rights of the owner. Raises `SealError` when the newest seal is not sound, the key is not
    the one it was signed with, or the trail was restored from a dump into a server whose
    transactions count anew.
    """
    return sealing.seal(self.postgres, _key(self), sign=sign, progress=progress)


def run_sealer(
    self: Context,
    *,
    interval: Seconds = 60,
    stop: threading.Event | None = None,
    sealed: Callable[[Sealed], None] | None = None,
) -> None:
    """`seal` every `interval` seconds until `stop` is set; `sealed` hears of each run.

    A server that is down, or another sealer in the way, is logged and tried again.
    """
    ended = stop or threading.Event()
    while not ended.is_set():
        try:
            found = seal(self)
        except (StoreUnavailable, Transient, DuplicateKey) as error:
            _log.warning("not sealed now: %s", error)
        else:
            if sealed is not None:
                sealed(found)
        ended.wait(interval)


def sealed(self: Context) -> Sealed | None:
    """The newest seal and what is not sealed yet, None where nothing ever was.

    `seals` and `rows`, those of a run, are 0.
    """
    return sealing.state(self.postgres, _key(self))


def seal_file(self: Context, path: File) -> Path:
    """Write the heads of all seals to `path`, for someone who keeps it elsewhere.

    JSON: number of seals and rows, head, time, earlier heads, the name of the key and its
    signature; nothing secret. Raises `SealError` when nothing is sealed, or the file cannot be
    written.
    """
    return anchor.write(self.postgres, Path(path), _key(self)).path


def verify(
    self: Context,
    against: File | None = None,
    *,
    since: Moment | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare every sealed row, seal, archive and erasure with what was sealed.

    `against` is a seal file of earlier. With `since`, rows of the month of that time and of
    later ones are read, and of the months before only the seals. Nothing is raised for what is
    found: `intact` is False and `findings` say what, `first` the first row that was altered, is
    missing or was inserted. `not_proven` says what could not be shown. Memory does not grow
    with the trail.
    Raises `SealError` for a seal file that cannot be read, `ParameterError` for a `since` in
    the future or without a time zone.
    """
    first = None if since is None else checks.at(since, name="since").date().replace(day=1)
    return verifying.verify(
        self.postgres,
        _key(self),
        against=None if against is None else Path(against),
        since=first,
        archive=_archive_folder(self),
        progress=progress,
    )


def erase(
    self: Context,
    *,
    user_id: Id | None = None,
    entity_type: str | None = None,
    id: Id | None = None,
    reason: str,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Erasure:
    """Take personal data out of the trail for good; the seals still hold.

    With `user_id`, who did it, in all rows of that user: the id, address, program, reason.
    With `entity_type` and `id`, what the rows about that entity hold: old and new values and
    metadata. That a row was, when, and of which kind, stays. Everything is sealed first; the
    trail gets a row of its own about the erasure. Archives that hold such rows are written
    anew, and the old files removed. Raises `SealError` for rows that are not as they were
    sealed, are not sealed yet, or are in a month that must be kept, `ArchiveError` for a file
    that is missing or damaged, `ConfigError` without the folder of archives, `Conflict` while
    `retain` is at work; nothing is erased then.
    """
    return erasing.erase(
        self.postgres,
        _key(self),
        user_id=user_id,
        entity_type=entity_type,
        id=id,
        reason=reason,
        dry_run=dry_run,
        archive=_archive_folder(self),
        progress=progress,
    )


def _key(self: Context) -> bytes | None:
    return seals.signing_key(self.settings)


def _archive_folder(self: Context) -> Path | None:
    """Where exported months are; None where nobody said. Their absence is then a finding."""
    try:
        return archives.folder(self.settings)
    except ConfigError:
        return None
