"""Verification: the seals against the rows, the archives, the erasures and a seal file.

Everything is read in one snapshot, a few seals at a time, by statements that need no sorting: each
row finds its place in its seal by its id. Hashes are made here and not by the server, whose
functions whoever changed rows could have changed as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fwdb.audit import anchor, canonical, chains, erasures, exported, sealing, seals
from fwdb.audit.checking import Batch, Tally, named, of_row
from fwdb.audit.exported import Export
from fwdb.audit.findings import Finding, Verification
from fwdb.audit.seals import HIGHEST_ID, Key, Seal
from fwdb.errors import ParameterError
from fwdb.stores import PostgresStore

__all__ = ["verify"]

# A batch of 50,000 rows: 5 MB of seals, an index of 8 MB, and statements few enough not to count.
_BATCH_ROWS = 50_000
_BATCH_SEALS = 500
_LOWEST: Key = (-1, HIGHEST_ID)


@dataclass(slots=True)
class _Run:
    """One verification on its way."""

    store: PostgresStore
    horizon: int
    removed: erasures.Removals
    tally: Tally = field(default_factory=Tally)
    archived: int = 0
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
    with store.transaction(isolation="repeatable read", read_only=True) as connection:
        for setting in ("TimeZone = 'UTC'", "DateStyle = 'ISO'", "statement_timeout = 0"):
            connection.execute(sa.text(f"SET LOCAL {setting}"))
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
        if newest is not None:
            _months(run, read, months)
            run.findings += [*_outside(run, chain.months), *_impossible(run)]
        known = erasures.listed(store, months)
        findings = [
            *about_file,
            *chain.findings,
            *_joined(run.findings),
            *known.findings,
        ]
        unsealed = sealing.unsealed(store, newest)
    unread = sum(rows for month, rows in chain.months.items() if month not in read)
    return Verification(
        intact=not findings and newest is not None,
        findings=tuple(findings),
        not_proven=tuple(_not_proven(chain, key, kept is None, unsealed, unread, since)),
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


def _months(run: _Run, months: Iterable[date], archives: dict[date, Export]) -> None:
    for month in months:
        export = archives.get(month)
        trouble = None if export is None else export.trouble()
        if trouble:
            run.findings.append(Finding(kind="archive", sentence=trouble, month=month))
        if export is None or export.dropped_at is None:
            _table(run, month)
            if trouble and export is not None and export.is_readable():
                _streamed(run, month, export, tally=Tally(), with_table=False)
        elif export.is_readable():
            before = run.tally.checked
            _streamed(run, month, export, tally=run.tally, with_table=True)
            run.archived += run.tally.checked - before
        run.said()


def _table(run: _Run, month: date) -> None:
    """The rows of a month from the table, some seals at a time."""
    after = _LOWEST
    for covered, is_last in _groups(seals.read(run.store, month=month)):
        batch = run.batch(covered)
        # Behind the last sealed row of a month, up to the horizon, there is none.
        until = (run.horizon - 1, HIGHEST_ID) if is_last else covered[-1].last
        statement, parameters = seals.rows_between(month, after, until)
        run.store.lines(statement, batch.feed, **parameters)
        run.findings += batch.finish()
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
    for key, line in canonical.from_parquet(export.path):
        opened.feed(key, line)
    if with_table:
        late: list[bytes] = []
        statement, parameters = seals.rows_between(month, _LOWEST, (run.horizon - 1, HIGHEST_ID))
        run.store.lines(statement, late.append, **parameters)
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
        self._open[place].feed(line)
        self._left[place] -= 1
        if self._left[place] == 0:
            self._findings += self._open.pop(place).finish()

    def finish(self) -> list[Finding]:
        for place, left in enumerate(self._left):
            if left:
                batch = self._open.pop(place, None)
                batch = batch or self._run.batch([self._covered[place]], self._tally)
                self._findings += batch.finish()
        return self._findings


def _outside(run: _Run, months: Iterable[date]) -> list[Finding]:
    """Rows of months in which nothing was sealed, of transactions that were."""
    conditions = ["coalesce(transaction_id, 0) < :horizon"]
    given: dict[str, Any] = {"horizon": run.horizon}
    for n, (start, end) in enumerate(_spans(months)):
        conditions.append(
            f"NOT (created_at >= CAST(:from{n} AS timestamptz)"
            f" AND created_at < CAST(:to{n} AS timestamptz))"
        )
        given |= {f"from{n}": f"{start} 00:00+00", f"to{n}": f"{end} 00:00+00"}
    why = "no row of that month was there when all of its transaction was sealed"
    return _inserted(run, " AND ".join(conditions), given, why)


def _spans(months: Iterable[date]) -> list[tuple[date, date]]:
    """First days of unbroken runs of months, and of the months behind them."""
    spans: list[tuple[date, date]] = []
    for month in months:
        following = seals.following(month)
        if spans and spans[-1][1] == month:
            spans[-1] = (spans[-1][0], following)
        else:
            spans.append((month, following))
    return spans


def _impossible(run: _Run) -> list[Finding]:
    """Rows of transactions that have not begun, which the sealer would never come to."""
    now = sealing.next_transaction(run.store)
    if now < run.horizon:
        return [Finding(kind="chain", sentence=sealing.restored(now, run.horizon))]
    why = "its transaction has not begun yet"
    return _inserted(run, "transaction_id >= :now", {"now": now}, why)


def _inserted(run: _Run, condition: str, given: dict[str, Any], why: str) -> list[Finding]:
    rows: list[bytes] = []
    chosen = f"FROM audit.audit_logs WHERE {condition}"
    first = f"SELECT {', '.join(canonical.FIELDS)} {chosen} ORDER BY created_at, id LIMIT 1"
    run.store.lines(sa.text(first), rows.append, **given)
    if not rows:
        return []
    count = run.store.rows(sa.text(f"SELECT count(*) AS n {chosen}"), **given)[0]["n"]
    fields = canonical.split(rows[0])[0]
    found = of_row("inserted", None, fields, f"{named(fields)} was inserted: {why}.")
    return [replace(found, count=count)]


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
            f"{one.created_at:%Y-%m-%dT%H:%M:%S.%fZ} and has "
            f"{there.created_at:%Y-%m-%dT%H:%M:%S.%fZ}, or another transaction.",
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
