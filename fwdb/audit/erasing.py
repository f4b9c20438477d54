"""Erasure of personal data from the trail, so that the seals still hold and the erasure shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from fwdb.audit import (
    arguments,
    canonical,
    erasures,
    exported,
    partitions,
    rewriting,
    sealing,
    seals,
)
from fwdb.audit.archives import Archive
from fwdb.audit.checking import Batch, Tally, named
from fwdb.audit.rewriting import Wanted
from fwdb.audit.seals import Key, Seal
from fwdb.errors import ConfigError, ParameterError, SealError
from fwdb.models import Id, entity_uuid
from fwdb.stores import PostgresStore

__all__ = ["Erasure", "erase"]

_PARTS = {"actor": canonical.ACTOR, "values": canonical.VALUES}
_SALTS = {"actor": slice(0, 16), "values": slice(16, 32)}

# Archives that hold something to erase, with the lines of those rows.
Files = Mapping[date, tuple[Archive, list[bytes]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What `erase` did, or would do.

    `part` is ``actor`` (who did it) or ``values`` (what it held); `rows` had anything in it,
    `archived_rows` of them in months that left the database. `archives` are the files of those,
    which were written anew under new names. `erasure_id` is the entity id of the row in which the
    trail tells of it, None without one.
    """

    part: str
    rows: int
    archived_rows: int
    erasure_id: str | None
    archives: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The part to erase, and of which rows: those whose columns are as `equal` says."""

    part: str
    equal: Mapping[str, str]

    @property
    def condition(self) -> str:
        """Of the rows that have anything to erase."""
        id = next(name for name in self.equal if name.endswith("_id"))
        of_type = " AND entity_type = :entity_type" if "entity_type" in self.equal else ""
        held = f"num_nonnulls({', '.join(_PARTS[self.part])}) > 0"
        return f"{id} = CAST(:{id} AS uuid){of_type} AND {held}"

    @property
    def wanted(self) -> Wanted:
        """The same of a file."""
        return Wanted(equal=self.equal, emptied=_PARTS[self.part])


@dataclass(slots=True)
class _Run:
    store: PostgresStore
    part: str
    erasure_id: str
    removed: erasures.Removals
    at: datetime
    recorded: int = 0


def erase(
    store: PostgresStore,
    key: bytes | None,
    *,
    user_id: Id | None,
    entity_type: str | None,
    id: Id | None,
    reason: str,
    dry_run: bool,
    archive: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Erasure:
    """Take personal data out of rows; see `Audit.erase`."""
    chosen = _chosen(user_id, entity_type, id)
    if not reason or not reason.strip():
        raise ParameterError(
            "'reason' is empty; say why it is erased, such as the number of the request.",
            name="reason",
        )
    if store.in_transaction:
        raise ParameterError("erase() seals first; call it outside a transaction.")
    seals.require(store)
    say = progress or (lambda _: None)
    erasure_id = None
    if dry_run:
        files = _files(store, archive, chosen)
        count = sa.text(f"SELECT count(*) AS n FROM audit.audit_logs WHERE {chosen.condition}")
        live = int(store.rows(count, **chosen.equal)[0]["n"])
    else:
        with partitions.alone(store):
            files = _files(store, archive, chosen)
            old = {month: file for month, (file, _) in files.items()}
            with rewriting.anew(store, archive, old, chosen.wanted, say) as written:
                live, erasure_id = _erase(store, key, chosen, reason, archive, files, written, say)
    archived = sum(len(lines) for _, lines in files.values())
    return Erasure(
        part=chosen.part,
        rows=live + archived,
        archived_rows=archived,
        erasure_id=erasure_id,
        archives=tuple(file.path for file, _ in files.values()),
        dry_run=dry_run,
    )


def _chosen(user_id: Id | None, entity_type: str | None, id: Id | None) -> _Chosen:
    if (user_id is not None) == (entity_type is not None) or (entity_type is None) != (id is None):
        raise ParameterError(
            "give 'user_id', to erase who did it, or 'entity_type' and 'id', to erase what rows "
            "about that entity hold."
        )
    if user_id is not None:
        return _Chosen("actor", {"user_id": arguments.user(user_id)})
    if entity_type == erasures.ENTITY_TYPE:
        raise ParameterError("what the trail tells of erasures cannot be erased.")
    assert entity_type is not None
    assert id is not None
    return _Chosen("values", {"entity_type": entity_type, "entity_id": str(entity_uuid(id))})


def _files(store: PostgresStore, folder: Path | None, chosen: _Chosen) -> Files:
    months = rewriting.dropped(store)
    if not months:
        return {}
    if folder is None:
        raise ConfigError(
            f"{len(months)} months of the trail are in archives, which must be erased from as "
            "well; set FWDB_AUDIT_ARCHIVE to their folder."
        )
    found = {
        month: (file, rewriting.lines(folder, file, chosen.wanted))
        for month, file in months.items()
    }
    return {month: (file, lines) for month, (file, lines) in found.items() if lines}


def _erase(
    store: PostgresStore,
    key: bytes | None,
    chosen: _Chosen,
    reason: str,
    folder: Path | None,
    files: Files,
    written: Mapping[date, Archive],
    say: Callable[[str], None],
) -> tuple[int, str | None]:
    """Rows of the table that were emptied, and the id of the erasure, None without any row."""
    months = exported.exports(store, folder)
    with store.transaction(isolation="repeatable read", timeout_ms=0) as connection:
        sealing.begin(connection)
        _refuse_kept(store, chosen, list(files))
        sealing.seal_here(store, key, progress=say)
        live: list[bytes] = []
        statement = f"SELECT {', '.join(canonical.FIELDS)} FROM audit.audit_logs"
        store.lines(sa.text(f"{statement} WHERE {chosen.condition}"), live.append, **chosen.equal)
        now = store.rows(sa.text("SELECT clock_timestamp() AS at"))[0]["at"]
        run = _Run(store, chosen.part, str(uuid4()), erasures.Removals(store, months), now)
        for covered, lines in _by_seal(store, live):
            rows = _record(run, covered, lines)
            _empty(run, rows)
            say(f"erased the {run.part} of {run.recorded:,} rows")
        for month, (old, lines) in files.items():
            # A month that was archived before anything was sealed has no seals to be kept true.
            if next(seals.read(store, month=month), None) is not None:
                for covered, part in _by_seal(store, lines):
                    _record(run, covered, part)
            rewriting.record(store, old, written[month])
            say(f"erased the {run.part} of {len(lines):,} rows of {old.month}, archived")
        count = len(live) + sum(len(lines) for _, lines in files.values())
        if count:
            _tell(run, reason, count)
    return len(live), run.erasure_id if count else None


def _refuse_kept(store: PostgresStore, chosen: _Chosen, archived: list[date]) -> None:
    """A month that must be kept is kept as it is; one on its way out is in no table to ask."""
    if not partitions.recorded(store):
        return
    held = store.rows(
        sa.text(
            "SELECT to_char(month, 'YYYY-MM') AS month FROM audit.holds"
            " WHERE released_at IS NULL AND (month = ANY(CAST(:archived AS date[])) OR month IN ("
            "SELECT CAST(date_trunc('month', created_at AT TIME ZONE 'UTC') AS date)"
            f" FROM audit.audit_logs WHERE {chosen.condition})) ORDER BY 1"
        ),
        archived=archived,
        **chosen.equal,
    )
    if held:
        months = ", ".join(row["month"] for row in held)
        raise SealError(
            f"rows to erase are in {months}, which must be kept; release the hold first."
        )
    if not partitions.partitioned(store):
        return
    leaving = [
        str(month.month)
        for month in partitions.months(store)
        if month.state in ("leaving", "detached")
    ]
    if leaving:
        raise SealError(
            f"{', '.join(leaving)} was left on its way out of the trail; run 'fwdb audit retain' "
            "to its end first."
        )


def _by_seal(store: PostgresStore, lines: list[bytes]) -> list[tuple[Seal, list[bytes]]]:
    """The lines of rows, by the seal that covers each."""
    by_month: dict[date, list[tuple[Key, bytes]]] = {}
    for line in lines:
        fields = canonical.split(line)[0]
        by_month.setdefault(canonical.month_of(fields[1]), []).append((seals.key_of(fields), line))
    found: list[tuple[Seal, list[bytes]]] = []
    for month, keyed in sorted(by_month.items()):
        rows = sorted(keyed, reverse=True)
        for seal in seals.read(store, month=month):
            covered = []
            while rows and rows[-1][0] <= seal.last:
                covered.append(rows.pop()[1])
            if covered:
                found.append((seal, covered))
        if rows:
            raise SealError(
                f"{len(rows):,} rows to erase are too new to be sealed: their transactions, or "
                "older ones, are not over, or are still in a journal. Run it again when they are."
            )
    return found


def _record(run: _Run, seal: Seal, lines: list[bytes]) -> list[dict[str, Any]]:
    """Keep the digests of the part in these rows, and drop its salts; the rows' id and time."""
    content = seals.content(run.store, [seal.number])
    batch = Batch(
        covered=[seal],
        content=content,
        erased=erasures.recorded(run.store, [seal.number]),
        removed=run.removed,
        tally=Tally(),
    )
    salts = bytearray(content[0][1])
    recorded: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for line in lines:
        fields, header, actor, values = canonical.split(line)
        place = batch.place(fields)
        digests = None if place is None else batch.digests(place, fields, header, actor, values)
        if place is None or digests is None:
            raise SealError(
                f"{named(fields)} is not as it was sealed, so nothing was erased; run 'fwdb audit "
                "verify'."
            )
        part = _SALTS[run.part]
        at = place * seals.SALTS_SIZE
        salts[at + part.start : at + part.stop] = bytes(part.stop - part.start)
        recorded.append(
            {
                "log": fields[0].decode(),
                "part": run.part,
                "seal": seal.number,
                "erasure": run.erasure_id,
                "digest": getattr(digests, run.part),
                "at": run.at,
            }
        )
        rows.append({"log": fields[0].decode(), "at": fields[1].decode()})
    run.store.execute(_RECORD, recorded)
    run.store.execute(
        sa.text("UPDATE audit.seals SET salts = :salts WHERE number = :number"),
        {"salts": bytes(salts), "number": seal.number},
    )
    run.recorded += len(rows)
    return rows


def _empty(run: _Run, rows: list[dict[str, Any]]) -> None:
    """Empty the part of rows in the table."""
    emptied = ", ".join(f"{name} = NULL" for name in _PARTS[run.part])
    run.store.execute(
        sa.text(
            f"UPDATE audit.audit_logs SET {emptied} WHERE id = CAST(:log AS uuid)"
            " AND created_at = CAST(:at AS timestamptz)"
        ),
        rows,
    )


def _tell(run: _Run, reason: str, rows: int) -> None:
    """A row of the trail that repeats what audit.erasures has, which are the rows with a seal."""
    recorded = erasures.said_of(run.store, run.erasure_id) if run.recorded else {"rows": rows}
    said = {"part": run.part, **recorded}
    run.store.execute(
        sa.text(
            "INSERT INTO audit.audit_logs"
            " (entity_type, entity_id, action, old_values, metadata, reason, origin, created_at)"
            " VALUES (:type, CAST(:id AS uuid), 'DELETE', CAST(:said AS jsonb), :about, :reason,"
            " :origin, clock_timestamp())"
        ),
        {
            "type": erasures.ENTITY_TYPE,
            "origin": erasures.ORIGIN,
            "id": run.erasure_id,
            "said": json.dumps(said),
            "about": f"personal data erased: {run.part}",
            "reason": reason,
        },
    )


_RECORD = sa.text(
    "INSERT INTO audit.erasures (log_id, part, seal, erasure_id, digest, erased_at) VALUES"
    " (CAST(:log AS uuid), :part, :seal, CAST(:erasure AS uuid), :digest, :at)"
)
