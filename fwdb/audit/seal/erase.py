"""Erasure of personal data from the trail, so that the seals still hold and the erasure shows.

Of a row of the trail the part is emptied, and of an archived one the file is written anew: it is
whole before the transaction that records it in `audit.archives`, where the old one is noted until
it is removed. Whatever stops a run, the database names files that are there, and the next `erase`
or `retain` removes what is left over.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from fwdb.audit import arguments
from fwdb.audit.context import Context
from fwdb.audit.retention import partitions
from fwdb.audit.retention.archive import Archive, archives, known_folder, remove, sweep
from fwdb.audit.seal import canonical, sealer, seals
from fwdb.audit.seal.findings import Finding, named
from fwdb.audit.seal.rows import Batch, Removed, Tally
from fwdb.audit.seal.seals import Key, Seal
from fwdb.errors import ArchiveError, ConfigError, FeatureUnavailable, ParameterError, SealError
from fwdb.models import Id, entity_uuid
from fwdb.stores import PostgresStore

__all__ = ["Erasure", "erase", "erasures", "removals"]

_PARTS = {"actor": canonical.ACTOR, "values": canonical.VALUES}
_SALTS = {"actor": slice(0, 16), "values": slice(16, 32)}
# Of the row in which the trail itself tells of an erasure; no application can write this origin.
_ENTITY_TYPE, _ORIGIN = "AuditLog", "erase"

Say = Callable[[str], None]


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


def erase(
    self: Context,
    *,
    user_id: Id | None = None,
    entity_type: str | None = None,
    id: Id | None = None,
    reason: str,
    dry_run: bool = False,
    progress: Say | None = None,
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
    chosen = _chosen(user_id, entity_type, id)
    if not reason or not reason.strip():
        raise ParameterError(
            "'reason' is empty; say why it is erased, such as the number of the request.",
            name="reason",
        )
    store = self.postgres
    if store.in_transaction:
        raise ParameterError("erase() seals first; call it outside a transaction.")
    seals.require(store)
    say = progress or (lambda _: None)
    erasure_id = None
    if dry_run:
        files = _files(self, chosen)
        count = sa.text(f"SELECT count(*) AS n FROM audit.audit_logs WHERE {chosen.condition}")
        live = int(store.rows(count, **chosen.equal)[0]["n"])
    else:
        with partitions.alone(store):
            files = _files(self, chosen)
            with _anew(self, [old for old, _ in files], chosen, say) as written:
                live, erasure_id = _erase(self, chosen, reason, files, written, say)
    archived = sum(len(lines) for _, lines in files)
    return Erasure(
        part=chosen.part,
        rows=live + archived,
        archived_rows=archived,
        erasure_id=erasure_id,
        archives=tuple(archive.name for archive, _ in files),
        dry_run=dry_run,
    )


# -- what is chosen -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The part to erase, and of which rows: those whose columns are as `equal` says."""

    part: str
    equal: Mapping[str, str]

    @property
    def condition(self) -> str:
        """Of the rows that have anything to erase."""
        equal = (
            f"{name} = CAST(:{name} AS {'uuid' if name.endswith('_id') else 'text'})"
            for name in self.equal
        )
        return f"{' AND '.join(equal)} AND num_nonnulls({', '.join(_PARTS[self.part])}) > 0"

    def holds(self, line: bytes) -> bool:
        """Whether the row of a line has anything to erase."""
        _, _, actor, values = canonical.split(line)
        held = actor if self.part == "actor" else values
        return any(field != canonical.NULL for field in held.split(b"\t"))


def _chosen(user_id: Id | None, entity_type: str | None, id: Id | None) -> _Chosen:
    if user_id is not None and entity_type is None and id is None:
        return _Chosen("actor", {"user_id": arguments.user(user_id)})
    if user_id is not None or entity_type is None or id is None:
        raise ParameterError(
            "give 'user_id', to erase who did it, or 'entity_type' and 'id', to erase what rows "
            "about that entity hold."
        )
    if entity_type == _ENTITY_TYPE:
        raise ParameterError("what the trail tells of erasures cannot be erased.")
    return _Chosen("values", {"entity_type": entity_type, "entity_id": str(entity_uuid(id))})


def _files(self: Context, chosen: _Chosen) -> list[tuple[Archive, list[bytes]]]:
    """Archives that hold something to erase, with the lines of those rows."""
    folder = known_folder(self.settings)
    months = [one for one in archives(self.postgres, folder).values() if one.dropped]
    if months and folder is None:
        raise ConfigError(
            f"{len(months)} months of the trail are in archives, which must be erased from as "
            "well; set FWDB_AUDIT_ARCHIVE to their folder."
        )
    for archive in months:
        archive.check()
    read = ((one, [line for _, line in one.lines(**chosen.equal)]) for one in months)
    found = ((one, [line for line in lines if chosen.holds(line)]) for one, lines in read)
    return [(archive, lines) for archive, lines in found if lines]


# -- what is done ---------------------------------------------------------------------------------


@contextmanager
def _anew(
    self: Context, files: list[Archive], chosen: _Chosen, say: Say
) -> Iterator[list[Archive]]:
    """`files` written anew, for a block that records each; the old ones go after it.

    What was written goes again when a file cannot be, or when the block refuses by a `SealError`.
    After any other error it may be what the database names by now, and stays.
    """
    folder = known_folder(self.settings)
    if folder is None:
        yield []
        return
    if any(archive.replaced is None for archive in files):
        raise FeatureUnavailable(
            "this database cannot note yet which archives were replaced; run 'fwdb migrate'."
        )
    sweep(self.postgres, folder)
    written: list[Archive] = []
    try:
        for archive in files:
            say(f"writing the archive of {archive.month:%Y-%m} anew")
            written.append(archive.without(_PARTS[chosen.part], **chosen.equal))
        yield written
    except (ArchiveError, SealError):
        for archive in written:
            remove(folder, archive.month, archive.name)
        raise
    if written:
        sweep(self.postgres, folder)


def _erase(
    self: Context,
    chosen: _Chosen,
    reason: str,
    files: list[tuple[Archive, list[bytes]]],
    written: list[Archive],
    say: Say,
) -> tuple[int, str | None]:
    """Rows of the table that were emptied, and the id of the erasure, None without any row."""
    store, part, erasure_id, recorded = self.postgres, chosen.part, str(uuid4()), 0
    removed = removals(store, archives(store, known_folder(self.settings)))
    with seals.snapshot(store, "erase() seals first", sealer.LOCK):
        _refuse_kept(store, chosen, [archive.month for archive, _ in files])
        sealer.seal_here(store, seals.signing_key(self.settings), progress=say)
        live: list[bytes] = []
        seals.lines(store, live.append, chosen.condition, **chosen.equal)
        # A month that was archived before anything was sealed has no seals to be kept true.
        sealed = [
            line
            for archive, lines in files
            if next(seals.read(store, month=archive.month), None) is not None
            for line in lines
        ]
        common = {"part": part, "erasure": erasure_id, "at": store.rows(_NOW)[0]["at"]}
        for seal, lines in _by_seal(store, live + sealed):
            _record(store, Batch(store, [seal], removed, Tally()), seal, lines, common)
            recorded += len(lines)
            say(f"erased the {part} of {recorded:,} rows")
        if live:
            emptied = ", ".join(f"{name} = NULL" for name in _PARTS[part])
            rows = [line.decode().split("\t", 2) for line in live]
            store.execute(
                sa.text(_EMPTY.format(emptied)), [{"log": row[0], "at": row[1]} for row in rows]
            )
        for (old, lines), new in zip(files, written, strict=True):
            given = {"path": new.name, "bytes": new.bytes, "sha256": new.sha256, "old": old.name}
            store.execute(_REPLACE, given)
            say(f"erased the {part} of {len(lines):,} rows of {old.month:%Y-%m}, archived")
        count = len(live) + sum(len(lines) for _, lines in files)
        if not count:
            return 0, None
        # A row of the trail repeats what audit.erasures has, which are the rows with a seal.
        run = next((run for run in store.rows(_RUNS) if run["erasure_id"] == erasure_id), None)
        said = {"rows": count} if run is None else {
            "rows": run["rows"], "digest": run["digest"], "erased_at": run["first_at"]
        }  # fmt: skip
        store.execute(
            _TELL,
            {
                "type": _ENTITY_TYPE,
                "origin": _ORIGIN,
                "id": erasure_id,
                "said": json.dumps({"part": part, **said}),
                "about": f"personal data erased: {part}",
                "reason": reason,
            },
        )
    return len(live), erasure_id


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
        raise SealError(
            f"rows to erase are in {', '.join(row['month'] for row in held)}, which must be kept; "
            "release the hold first."
        )
    months = partitions.months(store) if partitions.partitioned(store) else []
    if leaving := [month.name for month in months if month.state in ("leaving", "detached")]:
        raise SealError(
            f"{', '.join(leaving)} was left on its way out of the trail; run 'fwdb audit retain' "
            "to its end first."
        )


def _by_seal(store: PostgresStore, lines: list[bytes]) -> Iterator[tuple[Seal, list[bytes]]]:
    """The lines of rows, by the seal that covers each."""
    by_month: dict[date, list[tuple[Key, bytes]]] = {}
    for line in lines:
        fields = canonical.split(line)[0]
        by_month.setdefault(canonical.month_of(fields[1]), []).append((seals.key_of(fields), line))
    for month, keyed in sorted(by_month.items()):
        rows = sorted(keyed, reverse=True)
        for seal in seals.read(store, month=month):
            covered = []
            while rows and rows[-1][0] <= seal.last:
                covered.append(rows.pop()[1])
            if covered:
                yield seal, covered
        if rows:
            raise SealError(
                f"{len(rows):,} rows to erase are too new to be sealed: their transactions, or "
                "older ones, are not over. Run it again when they are."
            )


def _record(
    store: PostgresStore, batch: Batch, seal: Seal, lines: list[bytes], common: Mapping[str, Any]
) -> None:
    """Keep the digests of the part in rows of a seal, and drop its salts."""
    salts, part = bytearray(batch.salts), _SALTS[common["part"]]
    recorded: list[dict[str, Any]] = []
    for line in lines:
        fields = canonical.split(line)[0]
        place = batch.place(fields)
        digests = None if place is None else batch.digests(place, line)
        if place is None or digests is None:
            raise SealError(
                f"{named(fields)} is not as it was sealed, so nothing was erased; run 'fwdb audit "
                "verify'."
            )
        at = place * seals.SALTS_SIZE
        salts[at + part.start : at + part.stop] = bytes(part.stop - part.start)
        digest = getattr(digests, common["part"])
        recorded.append(
            {**common, "log": fields[0].decode(), "seal": seal.number, "digest": digest}
        )
    store.execute(_RECORD, recorded)
    store.execute(_DROP_SALTS, {"salts": bytes(salts), "number": seal.number})


_NOW = sa.text("SELECT clock_timestamp() AS at")
_EMPTY = """
UPDATE audit.audit_logs SET {}
WHERE id = CAST(:log AS uuid) AND created_at = CAST(:at AS timestamptz)
"""
_RECORD = sa.text("""
INSERT INTO audit.erasures (log_id, part, seal, erasure_id, digest, erased_at)
VALUES (CAST(:log AS uuid), :part, :seal, CAST(:erasure AS uuid), :digest, :at)
""")
_DROP_SALTS = sa.text("UPDATE audit.seals SET salts = :salts WHERE number = :number")
_REPLACE = sa.text("""
UPDATE audit.archives SET path = :path, bytes = :bytes, sha256 = :sha256,
    replaced = array_append(replaced, path) WHERE path = :old
""")
_TELL = sa.text("""
INSERT INTO audit.audit_logs
    (entity_type, entity_id, action, old_values, metadata, reason, origin, created_at)
VALUES (:type, CAST(:id AS uuid), 'DELETE', CAST(:said AS jsonb), :about, :reason, :origin,
    clock_timestamp())
""")


# -- what may differ from the seals with reason ---------------------------------------------------
# A row of the trail excuses something only if the application cannot have written it: a removal
# if a trigger recorded it, an erasure if `erase` told of it.


def removals(store: PostgresStore, months: Mapping[date, Archive]) -> Removed:
    """Users whose removal a trigger recorded, asked for when first needed.

    Their ids as a line has them, and the last transaction in which they went. Whether there is a
    user of that id again does not matter.
    """

    @functools.cache
    def ask() -> list[tuple[bytes, int]]:
        last = {row["id"]: row["transaction_id"] for row in store.rows(_REMOVED)}
        for row in _archived(months, entity_type="User", action="DELETE"):
            if row["new_values"] is None and row["origin"] == "trigger":
                id, transaction = str(row["entity_id"]), int(row["transaction_id"] or 0)
                last[id] = max(transaction, last.get(id, transaction))
        return [(id.encode(), transaction) for id, transaction in last.items()]

    return ask


def erasures(
    store: PostgresStore, months: Mapping[date, Archive]
) -> tuple[tuple[Mapping[str, Any], ...], list[Finding]]:
    """All runs of `erase`, each compared with the row in which the trail tells of it.

    `erasure_id`, `erased_at` (the time of that row, which is sealed), `rows`, `digest`.
    """
    runs = store.rows(_RUNS)
    findings = []
    told = _told(store, months) if runs else {}
    for run in runs:
        kept = {str(run.pop("first_at")), str(run.pop("last_at"))}
        at = told.get((run["erasure_id"], run["rows"], run["digest"]))
        if at is not None:
            run["erased_at"], said = at
        if at is None or (said is not None and [*kept] != [said]):
            findings.append(
                Finding(
                    kind="erasure",
                    sentence=f"The erasure {run['erasure_id']} of {run['rows']:,} rows is not "
                    "recorded in the trail as it stands in audit.erasures.",
                )
            )
    return tuple(runs), findings


def _told(
    store: PostgresStore, months: Mapping[date, Archive]
) -> dict[tuple[str, int, str], tuple[datetime, str | None]]:
    """What the trail says of erasures (id, rows, digest): when, and the time that it repeats.

    Rows of before `_ORIGIN` count if their login was the owner's, or is none any more.
    """
    rows = store.rows(_TOLD, type=_ENTITY_TYPE)
    rows += _archived(months, entity_type=_ENTITY_TYPE, action="DELETE")
    others = {row["role"] for row in store.rows(_OTHERS)}
    told = {}
    # The word of `erase` itself comes last, and counts.
    for row in sorted(rows, key=lambda row: row["origin"] == _ORIGIN):
        ours = row["origin"] == _ORIGIN
        if not ours and (row["db_user"] is None or row["db_user"] in others):
            continue
        try:
            said = json.loads(row["old_values"] or "")
            erasure = (str(row["entity_id"]), said["rows"], said["digest"])
            told[erasure] = (row["created_at"], said["erased_at"] if ours else None)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # tells of none
    return told


def _archived(months: Mapping[date, Archive], **equal: str) -> Iterator[dict[str, Any]]:
    """Rows of the months that are in files only; as far as those can be read."""
    columns = [name for name in canonical.FIELDS if name not in canonical.ACTOR]
    for archive in months.values():
        if archive.left and archive.is_readable:
            try:
                for batch in archive.batches(columns, **equal):
                    yield from ({**dict.fromkeys(columns), **row} for row in batch.to_pylist())
            except ArchiveError:
                continue  # what it would tell is told by nobody: that is a finding


# Not of the view audit.trail, which the owner can replace.
_REMOVED = sa.text("""
SELECT CAST(entity_id AS text) AS id, coalesce(max(transaction_id), 0) AS transaction_id
FROM audit.audit_logs
WHERE entity_type = 'User' AND origin = 'trigger' AND action = 'DELETE' AND new_values IS NULL
GROUP BY entity_id
""")
# Times that Python has none for are none of `erase`.
_AT = "least(greatest({}, '0001-01-02Z'), '9999-12-30Z')"

_TOLD = sa.text(f"""
SELECT CAST(entity_id AS text) AS entity_id, CAST(old_values AS text) AS old_values,
    origin, db_user, {_AT.format("created_at")} AS created_at
FROM audit.audit_logs
WHERE entity_type = :type AND action = 'DELETE'
    AND entity_id = ANY(ARRAY(SELECT DISTINCT erasure_id FROM audit.erasures))
""")

_OTHERS = sa.text("""
SELECT CAST(rolname AS text) AS role FROM pg_roles WHERE NOT pg_has_role(oid, (
    SELECT relowner FROM pg_class WHERE oid = CAST('audit.erasures' AS regclass)), 'MEMBER')
""")

_RUNS = sa.text(f"""
SELECT CAST(erasure_id AS text) AS erasure_id, {_AT.format("min(erased_at)")} AS erased_at,
    count(*) AS rows, encode(sha256(convert_to(string_agg(
        concat_ws(' ', log_id, part, seal, encode(digest, 'hex')), ','
        ORDER BY log_id, part COLLATE "C", seal
    ), 'UTF8')), 'hex') AS digest,
    CAST(min(erased_at) AS text) AS first_at, CAST(max(erased_at) AS text) AS last_at
FROM audit.erasures GROUP BY erasure_id ORDER BY min(erased_at), erasure_id
""")
