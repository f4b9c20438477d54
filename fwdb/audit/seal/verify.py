"""Verification: the seals against the rows, the archives, the erasures and a seal file.

Everything is read in one snapshot, a few seals at a time, by statements that need no sorting: each
row finds its place in its seal by its id. Hashes are made here and not by the server, whose
functions whoever changed rows could have changed as well. In the end the rows are counted: each is
in a seal, too new for one, or a finding.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import sqlalchemy as sa

from fwdb.arguments import File
from fwdb.audit import arguments, coverage
from fwdb.audit.context import Context
from fwdb.audit.retention import partitions
from fwdb.audit.retention.archive import Archive, archives, known_folder
from fwdb.audit.seal import canonical, erase, file, merkle, sealer, seals
from fwdb.audit.seal.findings import Finding, Verification, iso, of_row, of_seal
from fwdb.audit.seal.rows import Batch, Removed, Tally
from fwdb.audit.seal.seals import HIGHEST_ID, Key, Seal
from fwdb.errors import ArchiveError
from fwdb.stores import PostgresStore
from fwdb.timespan import Time

__all__ = ["verify"]

# A batch of 50,000 rows: 5 MB of seals, an index of 8 MB, and statements few enough not to count.
_BATCH_ROWS = 50_000
_BATCH_SEALS = 500
# Tables that the proof reads.
_PROVING = re.compile(r"audit\.(audit_logs|seals|erasures|archives)")

_INSERTED = {
    "outside": "no row of that month was there when all of its transaction was sealed",
    "begun": "its transaction has not begun yet",
    "archive": "no seal covers it",
}
_NOT_PROVEN = {
    "empty": "Nothing is sealed: run 'fwdb audit seal'.",
    "key": "FWDB_AUDIT_KEY is not set, so the signatures were not looked at: whoever may write to "
    "audit.seals could have changed rows and sealed all of it anew.",
    "signature": "The seals have no signature, because FWDB_AUDIT_KEY was not set: whoever may "
    "write to audit.seals could have changed rows and sealed all of it anew.",
    "unsigned": "{:,} seals have no signature of this key; a later one vouches for them as they "
    "were when it was made.",
    "file": "No seal file was given: that the newest seals were removed, or the database set back "
    "to an earlier state, would not show.",
    "unread": "{:,} sealed rows of months before {:%Y-%m} were not read; 'fwdb audit verify' "
    "without --since reads all.",
    "unsealed": "{:,} rows are newer than the newest seal and not covered by any.",
    "uncovered": "No seal covers audit.holds, audit.gaps, audit.followers, the dates in "
    "audit.archives, and archives of months that were never sealed: whoever owns the trail could "
    "have changed them.",
    "never": "{:,} rows of archived months were never sealed; their files were compared with the "
    "checksums in audit.archives alone.",
}
_CHAIN = {
    "twice": "Seal {0.number} is there twice.",
    "one missing": "Seal {1} is missing.",
    "missing": "Seals {1} to {2} are missing.",
    "changed": "Seal {0.number} was changed, or put in another's place: its head does not follow "
    "from the one before it.",
    "order": "Seal {0.number} does not go on where the one before it ended.",
    "signature": "The signature of seal {0.number} is not one of the key that it names, "
    "{0.key_id}.",
    "unsigned": "The newest seal, {0.number}, has no signature, and may be anyone's. If "
    "FWDB_AUDIT_KEY is new, verify without it, then sign: fwdb audit seal --sign.",
    "other key": "The newest seal, {0.number}, was signed with the key {0.key_id}, not with "
    "FWDB_AUDIT_KEY ({1}): set the right key; if it is the right one, the seals are not ours.",
}


def verify(
    self: Context,
    against: File | None = None,
    *,
    since: Time | None = None,
    progress: Callable[[str], None] | None = None,
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
    begin = None if since is None else arguments.at(since, name="since").date().replace(day=1)
    kept = None if against is None else file.read(Path(against))
    store, key = self.postgres, seals.signing_key(self.settings)
    # No month leaves while this reads.
    locks = [f"{partitions.TABLE} IN ACCESS SHARE MODE"] if partitions.partitioned(store) else []
    with seals.snapshot(store, "verify() reads by a snapshot of its own", *locks, read_only=True):
        months = archives(store, known_folder(self.settings))
        run = _Run(store, months, erase.removals(store, months), progress)
        run.follow(key, frozenset(() if kept is None else kept.heads))
        newest, sealed = run.newest, run.newest.number > 0
        for month in run.sealed:
            if begin is None or month >= begin:
                run.month(month)
        unsealed = run.count() if sealed else sealer.unsealed(store, newest)
        never = [
            archive
            for month, archive in months.items()
            if month not in run.sealed and (begin is None or month >= begin)
        ]
        for archive in never:
            run.faulty(archive)
        erasures, untold = erase.erasures(store, months)
        around = [*coverage.trail(store.rows("audit_coverage_trail"))]
        rights = [*coverage.rights(store.rows("audit_coverage_rights"))]
    about_file = kept.findings(run.heads, newest.number, key) if kept else ()
    uncovered = [one.sentence for one in around if one.status == "uncovered"]
    findings = (
        *about_file,
        *_joined(run.findings),
        *untold,
        *(Finding(kind="trail", sentence=sentence) for sentence in uncovered),
    )
    unread = sum(n for month, n in run.sealed.items() if begin is not None and month < begin)
    alone = sum(archive.rows for archive in never if archive.left)
    facts: dict[str, tuple[object, ...]] = {
        "empty": (not sealed,),
        "key": (sealed and key is None and newest.signature is not None,),
        "signature": (sealed and key is None and newest.signature is None,),
        "unsigned": (sealed and key is not None and run.unsigned,),
        "file": (sealed and kept is None,),
        "unread": (unread, begin),
        "unsealed": (sealed and unsealed,),
        "uncovered": (sealed,),
    }
    return Verification(
        intact=not findings and sealed,
        findings=findings,
        not_proven=(
            *(_NOT_PROVEN[name].format(*given) for name, given in facts.items() if given[0]),
            *(one.sentence for one in around if one.status != "uncovered"),
            # A right is no trace of what was done with it.
            *(one.sentence for one in rights if _PROVING.match(one.object)),
            *([_NOT_PROVEN["never"].format(alone)] if alone else []),
        ),
        seals=run.seals,
        sealed_rows=newest.total_rows,
        checked_rows=run.tally.checked,
        archived_rows=run.archived,
        erased_rows=run.tally.erased,
        forgotten_rows=run.tally.forgotten,
        unsealed_rows=unsealed,
        unread_rows=unread,
        since=begin,
        head=newest.head.hex() if sealed else None,
        sealed_at=newest.sealed_at if sealed else None,
        key_id=newest.key_id,
        erasures=erasures,
    )


@dataclass(slots=True)
class _Run:
    """One verification on its way.

    `sealed` are the sealed months in order with their numbers of rows, `heads` those that were
    asked for, `unsigned` the number of seals that are not signed with the key. `read` rows of the
    table were compared with seals, those of the months in `compared`.
    """

    store: PostgresStore
    archives: dict[date, Archive]
    removed: Removed
    progress: Callable[[str], None] | None
    newest: Seal = seals.NONE
    seals: int = 0
    unsigned: int = 0
    sealed: dict[date, int] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    archived: int = 0
    read: int = 0
    compared: set[date] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def follow(self, key: bytes | None, wanted: frozenset[int]) -> None:
        """Look at every seal: each follows from the one before it, and the key signed it."""

        def find(kind: str, seal: Seal, name: str, *facts: object) -> None:
            self.findings.append(of_seal(seal, kind, _CHAIN[name].format(seal, *facts)))

        last_in_month: dict[date, Key] = {}
        for seal in seals.read(self.store):
            before, last = self.newest, last_in_month.get(seal.month)
            number = before.number + 1
            goes_on = (last is None or last < seal.last) and before.horizon <= seal.horizon
            if seal.number < number:
                find("chain", seal, "twice")
            elif seal.number > number:
                name = "missing" if seal.number > number + 1 else "one missing"
                find("chain", seal, name, number, seal.number - 1)
            elif seal.chained(before.head) != seal.head:
                find("chain", seal, "changed")
            elif seal.total_rows != before.total_rows + seal.rows or not goes_on:
                find("chain", seal, "order")
            if key is not None and not seal.signed_with(key):
                if seal.signature is not None and seal.key_id == merkle.key_id(key):
                    find("signature", seal, "signature")
                else:
                    self.unsigned += 1
            if seal.number in wanted:
                self.heads[seal.number] = seal.head.hex()
            self.newest, last_in_month[seal.month] = seal, seal.last
            self.sealed[seal.month] = self.sealed.get(seal.month, 0) + seal.rows
            self.seals += 1
        self.sealed = dict(sorted(self.sealed.items()))
        if key is not None and self.seals and not self.newest.signed_with(key):
            name = "unsigned" if self.newest.signature is None else "other key"
            find("signature", self.newest, name, merkle.key_id(key))

    def month(self, month: date) -> None:
        """Compare the rows of a month, wherever they are."""
        archive = self.archives.get(month)
        faulty = archive is not None and self.faulty(archive)
        if archive is not None and archive.left:
            if not archive.is_readable:
                return
            before = self.tally.checked
            self._archive(archive, self.tally, with_table=True)
            self.archived += self.tally.checked - before
        else:
            self._table(month)
            if archive is not None and faulty and archive.is_readable:
                self._archive(archive, Tally(), with_table=False)
        self.compared.add(month)
        if self.progress is not None:
            self.progress(f"verified {self.tally.checked:,} rows")

    def faulty(self, archive: Archive) -> bool:
        """Whether its file is not what was exported, which is a finding."""
        fault = archive.fault()
        if fault is not None:
            self.findings.append(Finding(kind="archive", sentence=fault, month=archive.month))
        return fault is not None

    def _table(self, month: date) -> None:
        """The rows of a month from the table, some seals at a time."""
        after: Key | None = None
        for covered, is_last in _groups(seals.read(self.store, month=month)):
            batch = Batch(self.store, covered, self.removed, self.tally)
            # Behind the last sealed row of a month, up to the horizon, there is none.
            until = (self.newest.horizon - 1, HIGHEST_ID) if is_last else covered[-1].last
            seals.lines(self.store, batch.feed, seals.between(month, after, until))
            self.findings += batch.finish()
            self.read += batch.fed
            after = covered[-1].last

    def _archive(self, archive: Archive, tally: Tally, *, with_table: bool) -> None:
        """The rows of an exported month, which come in order of time.

        A seal is opened by its first row and closed by its last: few are open at once. A month
        that was dropped may have rows in the table again, recorded later and sealed as such.
        """
        month = archive.month
        covered = list(seals.read(self.store, month=month))
        ends, left = [seal.last for seal in covered], [seal.rows for seal in covered]
        opened: dict[int, Batch] = {}

        def feed(key: Key, line: bytes) -> None:
            place = bisect_left(ends, key)
            if place == len(ends) or left[place] == 0:
                if key[0] < self.newest.horizon:
                    fields = canonical.split(line)[0]
                    self.findings.append(of_row("inserted", None, fields, _INSERTED["archive"]))
                return
            if place not in opened:
                opened[place] = Batch(self.store, [covered[place]], self.removed, tally)
            left[place] -= opened[place].feed(line)
            if left[place] == 0:
                self.findings += opened.pop(place).finish()

        try:
            for key, line in archive.lines():
                feed(key, line)
        except ArchiveError as error:
            self.findings.append(Finding(kind="archive", sentence=f"{error}", month=month))
        if with_table:
            late: list[bytes] = []
            until = (self.newest.horizon - 1, HIGHEST_ID)
            seals.lines(self.store, late.append, seals.between(month, None, until))
            self.read += len(late)
            for line in late:
                feed(seals.key_of(canonical.split(line)[0]), line)
        for place in (place for place, rows in enumerate(left) if rows):
            batch = opened.pop(place, None)
            batch = batch or Batch(self.store, [covered[place]], self.removed, tally)
            self.findings += batch.finish()

    def count(self) -> int:
        """Rows that are too new to be sealed, in one pass that accounts for every row.

        What is in no sealed month, though it should have been sealed, was inserted, as was a row
        of a transaction that has not begun, which the sealer would never come to.
        """
        over, now = self.newest.horizon, sealer.transactions(self.store)[1]
        outside = " AND ".join(
            [
                f"coalesce(transaction_id, 0) < {over}",
                *(f"NOT ({seals.span(*span)})" for span in _spans(self.sealed)),
            ]
        )
        begun = f"transaction_id >= {now}"
        found = self.store.rows(
            sa.text(
                "SELECT count(*) AS rows,"
                f" count(*) FILTER (WHERE transaction_id >= {over}) AS unsealed,"
                f" count(*) FILTER (WHERE {begun}) AS begun,"
                f" count(*) FILTER (WHERE {outside}) AS outside FROM audit.audit_logs"
            )
        )[0]
        if found["outside"]:
            self._inserted(outside, "outside", found["outside"])
        if now < over:
            sentence = sealer.restored(now, over)
            self.findings.append(Finding(kind="chain", sentence=sentence))
        elif found["begun"]:
            self._inserted(begun, "begun", found["begun"])
        # What was not read may be less, where a month is on its way out, and never more.
        unread = 0
        for month, rows in self.sealed.items():
            archive = self.archives.get(month)
            if month not in self.compared:
                unread += max(0, rows - (archive.rows if archive and archive.left else 0))
        rest = found["rows"] - self.read - found["unsealed"] - found["outside"]
        if not 0 <= rest <= unread:
            sentence = (
                f"audit.audit_logs has {found['rows']:,} rows, of which {self.read:,} were "
                f"compared with seals and {found['unsealed']:,} are newer: {rest - unread:,} are "
                "in no month or partition where they would be found."
            )
            count = abs(rest - unread)
            self.findings.append(Finding(kind="trail", sentence=sentence, count=count))
        return int(found["unsealed"])

    def _inserted(self, condition: str, why: str, count: int) -> None:
        """The first row that `condition` chooses, which stands for `count`."""
        rows: list[bytes] = []
        seals.lines(self.store, rows.append, f"{condition} ORDER BY created_at, id LIMIT 1")
        if rows:
            found = of_row("inserted", None, canonical.split(rows[0])[0], _INSERTED[why])
        else:  # an index does not have what the table has
            found = Finding(kind="inserted", sentence=f"Rows were inserted: {_INSERTED[why]}.")
        self.findings.append(replace(found, count=count))


def _groups(found: Iterator[Seal]) -> Iterator[tuple[list[Seal], bool]]:
    """Seals in groups of about 50,000 rows, and whether a group is the last."""
    group: list[Seal] = []
    for seal in found:
        rows = sum(one.rows for one in group) + seal.rows
        if group and (rows > _BATCH_ROWS or len(group) == _BATCH_SEALS):
            yield group, False
            group = []
        group.append(seal)
    if group:
        yield group, True


def _spans(months: Iterable[date]) -> list[tuple[date, date]]:
    """The first and last of unbroken runs of months."""
    spans: list[tuple[date, date]] = []
    for month in months:
        if spans and seals.next_month(spans[-1][1]) == month:
            spans[-1] = (spans[-1][0], month)
        else:
            spans.append((month, month))
    return spans


def _joined(found: list[Finding]) -> Iterator[Finding]:
    """A row that is missing in one place and inserted in another was moved."""
    inserted = {one.row_id: one for one in found if one.kind == "inserted"}
    moved = {one.row_id for one in found if one.kind == "missing"} & inserted.keys()
    for one in found:
        if one.row_id not in moved or one.kind not in ("missing", "inserted"):
            yield one
        elif one.kind == "missing":
            there = inserted[one.row_id]
            sentence = (
                f"Row {one.row_id} was moved: it was sealed with the time {iso(one.created_at)} "
                f"and has {iso(there.created_at)}, or another transaction."
            )
            yield replace(there, kind="moved", seal=one.seal, month=one.month, sentence=sentence)
