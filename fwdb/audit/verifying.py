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
from typing import Any

import sqlalchemy as sa

from fwdb.audit import (
    anchor,
    canonical,
    chains,
    coverage_findings,
    erasures,
    exported,
    partitions,
    sealing,
    seals,
)
from fwdb.audit.checking import Batch, Tally, iso, named, of_row
from fwdb.audit.exported import Export
from fwdb.audit.findings import Finding, Verification
from fwdb.audit.seals import HIGHEST_ID, Key, Seal
from fwdb.errors import ArchiveError, ParameterError
from fwdb.stores import PostgresStore

__all__ = ["verify"]

# A batch of 50,000 rows: 5 MB of seals, an index of 8 MB, and statements few enough not to count.
_BATCH_ROWS = 50_000
_BATCH_SEALS = 500
# Tables that the proof reads.
_PROVING = re.compile(r"audit\.(audit_logs|seals|erasures|archives)")


@dataclass(slots=True)
class _Run:
    """One verification on its way."""

    store: PostgresStore
    horizon: int
    removed: erasures.Removals
    tally: Tally = field(default_factory=Tally)
    archived: int = 0
    read: int = 0  # rows of the table that were compared with seals
    findings: list[Finding] = field(default_factory=list)
    progress: Callable[[str], None] | None = None

    def batch(self, covered: list[Seal], tally: Tally | None = None) -> Batch:
        numbers = [seal.number for seal in covered]
        return Batch(
            covered=covered,
            content=seals.content(self.store, numbers),
            erased=erasures.recorded(self.store, numbers),
            removed=self.removed,
            tally=self.tally if tally is None else tally,
        )

    def said(self) -> None:
        if self.progress is not None:
            self.progress(f"verified {self.tally.checked:,} rows")


def verify(
    store: PostgresStore,
    key: bytes | None,
    *,
    against: Path | None = None,
    since: date | None = None,
    archive: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Compare everything with the seals; see `Audit.verify`."""
    if store.in_transaction:
        raise ParameterError(
            "verify() reads by a snapshot of its own; call it outside a transaction."
        )
    kept = None if against is None else anchor.read(against)
    seals.require(store)
    by_months = partitions.partitioned(store)
    with store.transaction(isolation="repeatable read", read_only=True, timeout_ms=0) as connection:
        # Before the first question, which takes the snapshot: no month leaves while this reads.
        stay = [f"LOCK TABLE {partitions.TABLE} IN ACCESS SHARE MODE"] if by_months else []
        for setting in (*sealing.SETTINGS, *stay):
            connection.execute(sa.text(setting))
        wanted = frozenset(() if kept is None else kept.heads)
        chain = chains.follow(store, key, wanted)
        newest = chain.newest
        about_file = (
            []
            if kept is None
            else kept.findings(chain.heads, 0 if newest is None else newest.number, key)
        )
        months = exported.exports(store, archive)
        run = _Run(
            store,
            0 if newest is None else newest.horizon,
            erasures.Removals(store, months),
            progress=progress,
        )
        read = [month for month in chain.months if since is None or month >= since]
        unsealed = sealing.unsealed(store, newest) if newest is None else 0
        if newest is not None:
            unsealed = _counted(run, chain.months, [*_months(run, read, months)], months)
        never = [
            export
            for month, export in months.items()
            if month not in chain.months and (since is None or month >= since)
        ]
        run.findings += [
            Finding(kind="archive", sentence=said, month=export.month)
            for export in never
            if (said := export.trouble()) is not None
        ]
        known = erasures.listed(store, months)
        around = [*coverage_findings.trail(store.rows("audit_coverage_trail"))]
        rights = coverage_findings.rights(store.rows("audit_coverage_rights"))
        # A right is no trace of what was done with it.
        trusted = [one.sentence for one in rights if _PROVING.match(one.object)]
        findings = [
            *about_file,
            *chain.findings,
            *_joined(run.findings),
            *known.findings,
            *(
                Finding(kind="trail", sentence=one.sentence)
                for one in around
                if one.status == "uncovered"
            ),
        ]
    unread = sum(rows for month, rows in chain.months.items() if month not in read)
    return Verification(
        intact=not findings and newest is not None,
        findings=tuple(findings),
        not_proven=(
            *_not_proven(chain, key, kept is None, unsealed, unread, since),
            *(one.sentence for one in around if one.status != "uncovered"),
            *trusted,
            *_unsealed(sum(export.rows for export in never if export.dropped)),
        ),
        seals=chain.seals,
        sealed_rows=0 if newest is None else newest.total_rows,
        checked_rows=run.tally.checked,
        archived_rows=run.archived,
        erased_rows=run.tally.erased,
        forgotten_rows=run.tally.forgotten,
        unsealed_rows=unsealed,
        unread_rows=unread,
        since=since,
        head=None if newest is None else newest.head.hex(),
        sealed_at=None if newest is None else newest.sealed_at,
        key_id=None if newest is None else newest.key_id,
        erasures=known.runs,
    )


def _months(run: _Run, months: Iterable[date], archives: dict[date, Export]) -> Iterator[date]:
    """Read `months`; those that could be."""
    for month in months:
        export = archives.get(month)
        trouble = None if export is None else export.trouble()
        if trouble:
            run.findings.append(Finding(kind="archive", sentence=trouble, month=month))
        if export is None or not export.dropped:
            _table(run, month)
            if trouble and export is not None and export.is_readable():
                _streamed(run, month, export, tally=Tally(), with_table=False)
        elif export.is_readable():
            before = run.tally.checked
            _streamed(run, month, export, tally=run.tally, with_table=True)
            run.archived += run.tally.checked - before
        else:
            continue
        run.said()
        yield month


def _table(run: _Run, month: date) -> None:
    """The rows of a month from the table, some seals at a time."""
    after: Key | None = None
    for covered, is_last in _groups(seals.read(run.store, month=month)):
        batch = run.batch(covered)
        # Behind the last sealed row of a month, up to the horizon, there is none.
        until = (run.horizon - 1, HIGHEST_ID) if is_last else covered[-1].last
        statement, parameters = seals.rows_between(month, after, until)
        run.store.lines(statement, batch.feed, **parameters)
        run.findings += batch.finish()
        run.read += batch.fed
        after = covered[-1].last


def _groups(found: Iterator[Seal]) -> Iterator[tuple[list[Seal], bool]]:
    """Seals in groups of about 50,000 rows, and whether a group is the last."""
    group: list[Seal] = []
    for seal in found:
        if group and (
            sum(one.rows for one in group) + seal.rows > _BATCH_ROWS or len(group) == _BATCH_SEALS
        ):
            yield group, False
            group = []
        group.append(seal)
    if group:
        yield group, True


def _streamed(run: _Run, month: date, export: Export, *, tally: Tally, with_table: bool) -> None:
    """The rows of an exported month, which come in order of time.

    A seal is opened by its first row and closed by its last: few are open at once. A month that
    was dropped may have rows in the table again, recorded later and sealed as such.
    """
    opened = _Opened(run, list(seals.read(run.store, month=month)), tally)
    try:
        for key, line in canonical.from_parquet(export.path):
            opened.feed(key, line)
    except ArchiveError as error:
        run.findings.append(Finding(kind="archive", sentence=f"{error}", month=month))
    if with_table:
        late: list[bytes] = []
        statement, parameters = seals.rows_between(month, None, (run.horizon - 1, HIGHEST_ID))
        run.store.lines(statement, late.append, **parameters)
        run.read += len(late)
        for line in late:
            opened.feed(seals.key_of(canonical.split(line)[0]), line)
    run.findings += opened.finish()


class _Opened:
    """Seals of one month, each with its content while rows of it come."""

    def __init__(self, run: _Run, covered: list[Seal], tally: Tally) -> None:
        self._run, self._covered, self._tally = run, covered, tally
        self._ends = [seal.last for seal in covered]
        self._open: dict[int, Batch] = {}
        self._left = [seal.rows for seal in covered]
        self._findings: list[Finding] = []

    def feed(self, key: Key, line: bytes) -> None:
        place = bisect_left(self._ends, key)
        if place == len(self._ends) or self._left[place] == 0:
            if key[0] < self._run.horizon:
                fields = canonical.split(line)[0]
                sentence = f"{named(fields)} was inserted: no seal covers it."
                self._findings.append(of_row("inserted", None, fields, sentence))
            return
        if place not in self._open:
            self._open[place] = self._run.batch([self._covered[place]], self._tally)
        self._left[place] -= self._open[place].feed(line)
        if self._left[place] == 0:
            self._findings += self._open.pop(place).finish()

    def finish(self) -> list[Finding]:
        for place, left in enumerate(self._left):
            if left:
                batch = self._open.pop(place, None)
                batch = batch or self._run.batch([self._covered[place]], self._tally)
                self._findings += batch.finish()
        return self._findings


def _counted(
    run: _Run, months: dict[date, int], read: list[date], archives: dict[date, Export]
) -> int:
    """Rows that are too new to be sealed, in one pass that accounts for every row.

    What is in no sealed month, though it should have been sealed, was inserted, as was a row of a
    transaction that has not begun, which the sealer would never come to.
    """
    spans = [seals.span(*span, n) for n, span in enumerate(_spans(months))]
    given: dict[str, Any] = {"horizon": run.horizon, "now": sealing.next_transaction(run.store)}
    for _, of_span in spans:
        given |= of_span
    outside = " AND ".join(
        ["coalesce(transaction_id, 0) < :horizon", *(f"NOT ({where})" for where, _ in spans)]
    )
    begun = "transaction_id >= :now"
    found = run.store.rows(
        sa.text(
            "SELECT count(*) AS rows,"
            " count(*) FILTER (WHERE transaction_id >= :horizon) AS unsealed,"
            f" count(*) FILTER (WHERE {begun}) AS begun,"
            f" count(*) FILTER (WHERE {outside}) AS outside FROM audit.audit_logs"
        ),
        **given,
    )[0]
    if found["outside"]:
        why = "no row of that month was there when all of its transaction was sealed"
        run.findings.append(_inserted(run, outside, given, why, found["outside"]))
    if given["now"] < run.horizon:
        sentence = sealing.restored(given["now"], run.horizon)
        run.findings.append(Finding(kind="chain", sentence=sentence))
    elif found["begun"]:
        why = "its transaction has not begun yet"
        run.findings.append(_inserted(run, begun, given, why, found["begun"]))
    # What was not read may be less, where a month is on its way out, and never more.
    unread = sum(
        max(
            0, rows - (archives[month].rows if month in archives and archives[month].dropped else 0)
        )
        for month, rows in months.items()
        if month not in read
    )
    rest = found["rows"] - run.read - found["unsealed"] - found["outside"]
    if not 0 <= rest <= unread:
        sentence = (
            f"audit.audit_logs has {found['rows']:,} rows, of which {run.read:,} were compared "
            f"with seals and {found['unsealed']:,} are newer: {rest - unread:,} are in no month "
            "or partition where they would be found."
        )
        run.findings.append(Finding(kind="trail", sentence=sentence, count=abs(rest - unread)))
    return int(found["unsealed"])


def _spans(months: Iterable[date]) -> list[tuple[date, date]]:
    """The first and last of unbroken runs of months."""
    spans: list[tuple[date, date]] = []
    for month in months:
        if spans and seals.following(spans[-1][1]) == month:
            spans[-1] = (spans[-1][0], month)
        else:
            spans.append((month, month))
    return spans


def _inserted(run: _Run, condition: str, given: dict[str, Any], why: str, count: int) -> Finding:
    rows: list[bytes] = []
    chosen = f"FROM audit.audit_logs WHERE {condition}"
    first = f"SELECT {', '.join(canonical.FIELDS)} {chosen} ORDER BY created_at, id LIMIT 1"
    run.store.lines(sa.text(first), rows.append, **given)
    if not rows:  # an index does not have what the table has
        return Finding(kind="inserted", sentence=f"Rows were inserted: {why}.", count=count)
    fields = canonical.split(rows[0])[0]
    found = of_row("inserted", None, fields, f"{named(fields)} was inserted: {why}.")
    return replace(found, count=count)


def _joined(found: list[Finding]) -> list[Finding]:
    """A row that is missing in one place and inserted in another was moved."""
    inserted = {one.row_id: one for one in found if one.kind == "inserted"}
    moved = {
        one.row_id: replace(
            there,
            kind="moved",
            seal=one.seal,
            month=one.month,
            sentence=f"Row {one.row_id} was moved: it was sealed with the time "
            f"{iso(one.created_at)} and has {iso(there.created_at)}, or another transaction.",
        )
        for one in found
        if one.kind == "missing" and (there := inserted.get(one.row_id)) is not None
    }
    return [
        moved[one.row_id] if one.kind == "missing" and one.row_id in moved else one
        for one in found
        if not (one.kind == "inserted" and one.row_id in moved)
    ]


def _not_proven(
    chain: chains.Chain,
    key: bytes | None,
    no_file: bool,
    unsealed: int,
    unread: int,
    since: date | None,
) -> Iterator[str]:
    newest = chain.newest
    if newest is None:
        yield "Nothing is sealed: run 'fwdb audit seal'."
        return
    if key is None:
        signed = newest.signature is not None
        yield (
            "FWDB_AUDIT_KEY is not set, so the signatures were not looked at: "
            if signed
            else "The seals have no signature, because FWDB_AUDIT_KEY was not set: "
        ) + "whoever may write to audit.seals could have changed rows and sealed all of it anew."
    elif chain.unsigned:
        yield (
            f"{chain.unsigned:,} seals have no signature of this key; a later one vouches for them "
            "as they were when it was made."
        )
    if no_file:
        yield (
            "No seal file was given: that the newest seals were removed, or the database set back "
            "to an earlier state, would not show."
        )
    if unread:
        yield (
            f"{unread:,} sealed rows of months before {since:%Y-%m} were not read; "
            "'fwdb audit verify' without --since reads all."
        )
    if unsealed:
        yield f"{unsealed:,} rows are newer than the newest seal and not covered by any."
    yield (
        "No seal covers audit.holds, audit.gaps, audit.followers, the dates in audit.archives, and "
        "archives of months that were never sealed: whoever owns the trail could have changed them."
    )


def _unsealed(rows: int) -> Iterator[str]:
    if rows:
        yield (
            f"{rows:,} rows of archived months were never sealed; their files were compared with "
            "the checksums in audit.archives alone."
        )
