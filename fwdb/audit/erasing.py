"""Erasure of personal data from the trail, so that the seals still hold and the erasure shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from fwdb.audit import canonical, checks, erasures, exported, sealing, seals
from fwdb.audit.checking import Batch, Tally, named
from fwdb.audit.seals import Key, Seal
from fwdb.errors import ParameterError, SealError
from fwdb.models import entity_uuid
from fwdb.stores import PostgresStore

__all__ = ["Erasure", "erase"]

_PARTS = {"actor": canonical.ACTOR, "values": canonical.VALUES}
_SALTS = {"actor": slice(0, 16), "values": slice(16, 32)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What `erase` did, or would do.

    `part` is ``actor`` (who did it) or ``values`` (what it held); `rows` had anything in it.
    `erasure_id` is the entity id of the row in which the trail tells of it, None without one.
    `archives` are the files of months that left the database: what they hold is not erased.
    """

    part: str
    rows: int
    erasure_id: str | None
    archives: tuple[str, ...]
    dry_run: bool


@dataclass(slots=True)
class _Run:
    store: PostgresStore
    part: str
    erasure_id: str
    removed: erasures.Removals
    rows: int = 0


def erase(
    store: PostgresStore,
    key: bytes | None,
    *,
    user_id: str | UUID | None,
    entity_type: str | None,
    id: str | UUID | None,
    reason: str,
    dry_run: bool,
    archive: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Erasure:
    """Take personal data out of rows; see `Audit.erase`."""
    part, condition, given = _chosen(user_id, entity_type, id)
    if not reason or not reason.strip():
        raise ParameterError(
            "'reason' is empty; say why it is erased, such as the number of the request.",
            name="reason",
        )
    if store.in_transaction:
        raise ParameterError("erase() seals first; call it outside a transaction.")
    seals.require(store)
    condition += f" AND num_nonnulls({', '.join(_PARTS[part])}) > 0"
    months = exported.exports(store, archive)
    gone = tuple(str(export.path) for export in months.values() if export.dropped_at is not None)
    if dry_run:
        found = store.rows(
            sa.text(f"SELECT count(*) AS n FROM audit.audit_logs WHERE {condition}"), **given
        )
        return Erasure(
            part=part, rows=int(found[0]["n"]), erasure_id=None, archives=gone, dry_run=True
        )
    with store.transaction(isolation="repeatable read") as connection:
        sealing.begin(connection)
        _refuse_held(store, condition, given)
        sealing.seal_here(store, key, progress=progress)
        run = _Run(store, part, str(uuid4()), erasures.Removals(store, months))
        for covered, lines in _by_seal(store, condition, given):
            _erase_in(run, covered, lines)
            if progress is not None:
                progress(f"erased the {part} of {run.rows:,} rows")
        if run.rows:
            _tell(run, reason)
    return Erasure(
        part=part,
        rows=run.rows,
        erasure_id=run.erasure_id if run.rows else None,
        archives=gone,
        dry_run=False,
    )


def _chosen(
    user_id: str | UUID | None, entity_type: str | None, id: str | UUID | None
) -> tuple[str, str, dict[str, Any]]:
    """The part, and the condition for the rows."""
    if (user_id is not None) == (entity_type is not None) or (entity_type is None) != (id is None):
        raise ParameterError(
            "give 'user_id', to erase who did it, or 'entity_type' and 'id', to erase what rows "
            "about that entity hold."
        )
    if user_id is not None:
        return "actor", "user_id = CAST(:user AS uuid)", {"user": checks.user(user_id)}
    if entity_type == erasures.ENTITY_TYPE:
        raise ParameterError("what the trail tells of erasures cannot be erased.")
    assert id is not None
    about = "entity_type = :type AND entity_id = CAST(:entity AS uuid)"
    return "values", about, {"type": entity_type, "entity": str(entity_uuid(id))}


def _refuse_held(store: PostgresStore, condition: str, given: Mapping[str, Any]) -> None:
    """A month that must be kept is kept as it is."""
    known = store.rows(sa.text("SELECT to_regclass('audit.holds') AS name"))
    if known[0]["name"] is None:
        return
    held = store.rows(
        sa.text(
            "SELECT to_char(month, 'YYYY-MM') AS month FROM audit.holds"
            " WHERE released_at IS NULL AND month IN ("
            "SELECT CAST(date_trunc('month', created_at AT TIME ZONE 'UTC') AS date)"
            f" FROM audit.audit_logs WHERE {condition}) ORDER BY 1"
        ),
        **given,
    )
    if held:
        months = ", ".join(row["month"] for row in held)
        raise SealError(
            f"rows to erase are in {months}, which must be kept; release the hold first."
        )


def _by_seal(
    store: PostgresStore, condition: str, given: Mapping[str, Any]
) -> list[tuple[Seal, list[bytes]]]:
    """The lines of the rows, by the seal that covers each."""
    lines: list[bytes] = []
    statement = f"SELECT {', '.join(canonical.FIELDS)} FROM audit.audit_logs WHERE {condition}"
    store.lines(sa.text(statement), lines.append, **given)
    by_month: dict[date, list[tuple[Key, bytes]]] = {}
    for line in lines:
        fields = canonical.split(line)[0]
        month = date.fromisoformat(fields[1][:7].decode() + "-01")
        by_month.setdefault(month, []).append((seals.key_of(fields), line))
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


def _erase_in(run: _Run, seal: Seal, lines: list[bytes]) -> None:
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
            }
        )
        rows.append({"log": fields[0].decode(), "at": fields[1].decode()})
    run.store.execute(_RECORD, recorded)
    emptied = ", ".join(f"{name} = NULL" for name in _PARTS[run.part])
    run.store.execute(
        sa.text(
            f"UPDATE audit.audit_logs SET {emptied} WHERE id = CAST(:log AS uuid)"
            " AND created_at = CAST(:at AS timestamptz)"
        ),
        rows,
    )
    run.store.execute(
        sa.text("UPDATE audit.seals SET salts = :salts WHERE number = :number"),
        {"salts": bytes(salts), "number": seal.number},
    )
    run.rows += len(rows)


def _tell(run: _Run, reason: str) -> None:
    said = {"part": run.part, **erasures.said_of(run.store, run.erasure_id)}
    run.store.execute(
        sa.text(
            "INSERT INTO audit.audit_logs"
            " (entity_type, entity_id, action, old_values, metadata, reason, created_at)"
            " VALUES (:type, CAST(:id AS uuid), 'DELETE', CAST(:said AS jsonb), :about, :reason,"
            " clock_timestamp())"
        ),
        {
            "type": erasures.ENTITY_TYPE,
            "id": run.erasure_id,
            "said": json.dumps(said),
            "about": f"personal data erased: {run.part}",
            "reason": reason,
        },
    )


_RECORD = sa.text(
    "INSERT INTO audit.erasures (log_id, part, seal, erasure_id, digest) VALUES"
    " (CAST(:log AS uuid), :part, :seal, CAST(:erasure AS uuid), :digest)"
)
