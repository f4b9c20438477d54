"""Months end in a file: export, detach, drop; with holds, and however often it is stopped."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from support.retention import (
    NOW,
    audit_fixture,  # noqa: F401
    days_into,
    files,
    month,
    name,
    put,
    states,
)
from support.sql import as_role, ask, do, value
from support.urls import url_of

from fwdb import config, errors, migrating
from fwdb.audit import Audit, Retention
from fwdb.audit.retention import archive as files_of
from fwdb.audit.retention import partitions
from fwdb.stores import PostgresStore

ACTOR = "0190c1a0-0000-7000-8000-000000000007"
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
# Of the steps of one month, those before which a run is killed; all of them in the long rounds.
STEPS = 15
KILLED_BEFORE = range(1, STEPS) if os.environ.get("FWDB_TEST_FULL") == "1" else (2, 8, 9, 14)


def total(audit: Audit) -> int:
    """Rows of table and files, as a question counts them."""
    return int(audit.with_archives().totals(month(40), NOW + SECOND)["events"].sum())


def left(kept: Retention, ago: int) -> str | None:
    """Why a month stayed."""
    return {m.month: m.left for m in kept.months}[name(ago)]


def held(audit: Audit, archive: Path, ago: int, column: str = "created_at") -> list[Any]:
    """A column of the file of a month."""
    path = audit.partitions().set_index("month")["path"][name(ago)]
    return pq.read_table(archive / path)[column].to_pylist()


def once(ago: int, act: Callable[[], Any]) -> Callable[[str], None]:
    """Acts when a month was exported, the first time."""
    waiting = [act]

    def progress(sentence: str) -> None:
        if sentence.startswith("exported") and name(ago) in sentence and waiting:
            waiting.pop()()

    return progress


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


# -- a month ends -----------------------------------------------------------------------------


def test_a_month_past_its_retention_goes_into_a_file_and_its_table_is_dropped(audit, archive):
    """The file, its manifest, audit.archives and the result say the same."""
    put(audit, days_into(15, 3), days_into(15, 1), days_into(14, 2), NOW)
    heard: list[str] = []
    kept = audit.retain(progress=heard.append)

    assert (kept.expired, kept.removed, kept.batches) == (3, 3, len(kept.months))
    assert kept.oldest_left_at == NOW
    gone = {m.month: m for m in kept.months}
    assert (gone[name(15)].rows, gone[name(15)].left) == (2, None)
    assert gone[name(15)].drop_ms is not None
    row = ask(audit.postgres, "SELECT * FROM audit.archives ORDER BY month")[0]
    path = archive / row["path"]
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["bytes"] == path.stat().st_size
    assert row["dropped_at"] is not None
    manifest = json.loads(path.with_suffix(".json").read_text())
    for fact in ("rows", "bytes", "sha256"):
        assert manifest[fact] == row[fact]
    assert (manifest["month"], manifest["file"]) == (name(15), row["path"])
    assert manifest["order"] == ["created_at", "id"]
    assert held(audit, archive, 15) == [days_into(15, 1), days_into(15, 3)]
    assert states(audit)[name(15)] == "archived"
    assert any(name(15) in sentence for sentence in heard)


def test_a_month_begins_and_ends_at_midnight_utc(audit, archive):
    """The row at the boundary belongs to the month that begins, whatever the database's zone."""
    database = audit.postgres.url.database
    do(audit.postgres, f"ALTER DATABASE {database} SET timezone = 'America/New_York'")
    audit.postgres.close()  # new sessions begin in that zone
    try:
        put(audit, month(15), month(14) - MICROSECOND, month(14), month(15) - MICROSECOND)
        audit.retain()
    finally:
        do(audit.postgres, f"ALTER DATABASE {database} RESET ALL")

    assert [held(audit, archive, ago) for ago in (16, 15, 14)] == [
        [month(15) - MICROSECOND], [month(15), month(14) - MICROSECOND], [month(14)]
    ]  # fmt: skip


def test_a_month_that_ended_within_the_retention_stays_with_all_its_rows(audit):
    put(audit, month(2), NOW)
    end_of_it = month(1)
    age = (NOW - end_of_it).days

    assert audit.retain(age + 2).removed == 0
    assert states(audit)[name(2)] == "live"
    kept = audit.retain(max(age - 1, 1))
    assert (kept.removed, states(audit)[name(2)]) == (1, "archived")


def test_the_months_ahead_are_made_and_told(audit):
    """Three of them; one that is missing shows as the first moment without a partition."""
    ahead = audit.partitions_ahead()
    assert (ahead.status, ahead.value, ahead.until) == ("ok", 3, month(-4))

    do(audit.postgres, f"DROP TABLE audit.audit_logs_{month(-2):%Y_%m}")
    ahead = audit.partitions_ahead()
    assert (ahead.value, ahead.until) == (1, month(-2))
    assert audit.retain().partitions_made == 1
    assert audit.partitions_ahead().value == 3

    do(audit.postgres, f"DROP TABLE audit.audit_logs_{NOW:%Y_%m}")
    ahead = audit.partitions_ahead()
    assert (ahead.value, ahead.until) == (0, month(0))
    assert "writes fail now" in ahead.reason


def test_a_dry_run_says_what_would_go_and_does_nothing(audit, archive):
    put(audit, days_into(15, 1), days_into(14, 1), days_into(14, 2))
    audit.hold(name(14))
    before = states(audit)
    kept = audit.retain(dry_run=True)

    assert (kept.expired, kept.removed, kept.partitions_made) == (3, 0, 0)
    assert {m.month: (m.rows, m.left) for m in kept.months}[name(14)] == (2, "held")
    # The service's own function is no way around: it says which command knows holds and files.
    with pytest.raises(errors.QueryError, match="fwdb audit retain"):
        ask(audit.postgres, "SELECT audit.cleanup_old_audit_logs()")
    assert states(audit) == before
    assert not archive.exists()


@contextmanager
def writing(audit: Audit) -> Iterator[list[str]]:
    """What a thread records, one row after the other, until the block ends."""
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            written.append(audit.log_read("User", ACTOR).id)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join()


def test_others_write_while_old_rows_are_removed(audit, adopted, wait_until):
    """Detaching waits for open transactions only; each batch of rows is a short one of its own."""
    put(audit, days_into(15, 1))
    put(adopted, *[NOW - timedelta(days=400)] * 3000)
    for trail, removed in ((audit, 1), (adopted, 3000)):
        seen: list[int] = []
        with writing(trail) as written:
            wait_until(lambda written=written: written)
            kept = trail.retain(
                batch=100, progress=lambda _, seen=seen, to=written: seen.append(len(to))
            )
        assert kept.removed == removed
        assert len(trail.search(limit=None)) == len(written)

    assert kept.batches == 30
    assert seen[-1] > seen[0], "the writer wrote nothing between the batches"


# -- what must not be lost --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "agents"),
    [
        (None, [None, None]),
        ("UPDATE audit.audit_logs SET user_agent = 'x'", ["x"]),
        ("DELETE FROM audit.audit_logs", []),
    ],
)
def test_a_row_changed_after_the_export_is_exported_again(audit, archive, change, agents):
    """A row came late, a user is forgotten: the file has it, and must not keep what is gone."""
    put(audit, days_into(15, 1))
    late = {"created_at": days_into(15, 2)}
    kept = audit.retain(
        progress=once(15, lambda: do(audit.postgres, change) if change else put(audit, late))
    )

    assert {m.month: m.rows for m in kept.months}[name(15)] == len(agents)
    assert held(audit, archive, 15, "user_agent") == agents
    # The file of the first export is gone: nothing refers to it any more.
    assert len([f for f in files(archive) if f.startswith(f"audit_logs_{month(15):%Y_%m}")]) == 2


def test_a_month_that_was_made_again_is_left_with_its_rows_and_its_file(audit):
    """Someone writes history into a month that is archived: neither part is lost."""
    put(audit, days_into(15, 1))
    audit.retain()
    put(audit, days_into(15, 2))

    assert "added after it was archived" in str(left(audit.retain(), 15))
    assert total(audit) == 2

    do(audit.postgres, "DELETE FROM audit.audit_logs")
    audit.retain()
    assert states(audit)[name(15)] == "archived"
    assert total(audit) == 1


def test_an_export_that_the_disk_changes_is_refused_and_the_table_stays(audit, monkeypatch):
    """What is read back is not what was written."""
    put(audit, days_into(15, 1))
    write = files_of._Hashed.write

    def flip(self, data):
        block = bytearray(data)
        if self.tell() > 100:
            block[0] ^= 1
        self.sha256.update(data)
        return io.BufferedWriter.write(self, block)

    monkeypatch.setattr(files_of._Hashed, "write", flip)
    with pytest.raises(errors.ArchiveError, match="did not keep"):
        audit.retain()
    monkeypatch.setattr(files_of._Hashed, "write", write)

    assert states(audit)[name(15)] == "live"
    assert len(audit.search(limit=None)) == 1
    assert audit.retain().removed == 1


def test_a_month_that_another_part_needs_is_left_with_its_reason(audit, one_piece):
    """The proof of the trail has not sealed it yet."""
    put(audit, days_into(15, 1), days_into(14, 1))
    audit.seal()
    for trail in (audit, one_piece):
        put(trail, days_into(14, 2))
        kept = trail.retain()

        assert "1 of its rows are not sealed yet" in str(left(kept, 14))
        assert left(kept, 15) is None
    assert states(audit)[name(14)] == "live"


# -- a run is stopped -------------------------------------------------------------------------

# Runs retain once for each URL, each in a process of its own that is killed before a step.
STOPPED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
import sqlalchemy as sa
from fwdb import config
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

folder, *runs = sys.argv[1:]
settings = config.settings().model_copy(update={"audit_archive": Path(folder)})
done, stop, dropping = 0, 0, False

def step(*ignored):
    global done
    done += 1
    if done == stop:
        os.kill(os.getpid(), signal.SIGKILL)

def before(connection, cursor, statement, *ignored):
    global dropping
    dropping = statement.startswith("DROP")
    if statement.split()[0] in {"INSERT", "UPDATE", "ALTER", "DROP", "LOCK"}:
        step()

def stepping(owner, name):
    original = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: (step(), original(*given, **named))[1])

stepping(os, "fsync")
stepping(os, "replace")
stepping(pq.ParquetWriter, "write_table")
sa.event.listen(sa.Engine, "before_cursor_execute", before)
sa.event.listen(sa.Engine, "commit", lambda connection: step() if dropping else None)
for number, url in zip(runs[::2], runs[1::2]):
    if not (child := os.fork()):
        stop = int(number)
        Audit(PostgresStore(url), settings=settings).retain()
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_a_run_killed_before_any_step_is_gone_on_with(
    template, postgres_database, open_trail, archive
):
    """No row is lost or doubled: not in the table, not in the files."""
    rows = [days_into(15, 1), days_into(15, 2)]
    runs = {stop: postgres_database(template=template) for stop in (*KILLED_BEFORE, STEPS)}
    for stop, url in runs.items():
        trail = open_trail(url)
        seeded = len(trail.search(limit=None))
        old = {"entity_id": f"0190c1a0-0000-7000-8000-{stop:012}"}  # no two files are the same
        put(trail, *({"created_at": at, **old} for at in rows), NOW)
        spare = sa.text("SELECT to_regclass('audit.audit_logs_' || :month) AS name")
        for ago in range(14, 11, -1):  # only one month is past its retention
            if trail.postgres.rows(spare, month=f"{month(ago):%Y_%m}")[0]["name"]:
                do(trail.postgres, f"DROP TABLE audit.audit_logs_{month(ago):%Y_%m}")
    given = [str(part) for run in runs.items() for part in run]
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED, str(archive), *given],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.split()

    assert ended == ["9"] * len(KILLED_BEFORE) + ["0"], "the number of steps has changed"
    for stop, url in runs.items():
        trail = open_trail(url)
        kept = trail.retain()
        assert all(m.left is None for m in kept.months), (stop, kept)
        assert states(trail)[name(15)] == "archived", stop
        assert total(trail) == 3, stop
        assert len(trail.search(limit=None)) == seeded + 1, stop
        rows_said = ask(trail.postgres, "SELECT rows, dropped_at FROM audit.archives")
        assert [(r["rows"], r["dropped_at"] is None) for r in rows_said] == [(2, False)], stop


def test_a_part_that_a_dead_process_left_is_removed(audit, archive):
    """Not at once, for another process may be writing it; after a day."""
    put(audit, days_into(15, 1))
    archive.mkdir()
    fresh, stale = (archive / f".audit_logs_{month(15):%Y_%m}.{n}.part" for n in ("new", "old"))
    for path in (fresh, stale):
        path.write_bytes(b"PAR1")
    os.utime(stale, (0, 0))
    audit.retain()

    assert fresh.exists()
    assert not stale.exists()


def test_a_detach_that_waited_too_long_is_finished_by_the_next_run(audit, open_trail):
    """An open transaction holds it up; the next one ends it, or puts the month back for a hold."""
    put(audit, days_into(15, 1), NOW)
    url = url_of(audit.postgres)
    hasty = Audit(
        PostgresStore(url, settings=audit.settings.model_copy(
            update={"statement_timeout_seconds": 0.5})),
        settings=audit.settings,
    )  # fmt: skip
    try:
        with audit.postgres.transaction() as reader:
            reader.execute(sa.text("SELECT count(*) FROM audit.audit_logs"))
            with pytest.raises(errors.QueryTimeout, match=rf"{name(15)} could not be detached"):
                hasty.retain()
            assert states(hasty)[name(15)] == "leaving"
            assert total(hasty) == 2
        hasty.hold(name(15))
        hasty.retain()
        assert states(hasty)[name(15)] == "live"
        hasty.release(name(15))
        assert hasty.retain().removed == 1
    finally:
        hasty.postgres.close()
    assert states(audit)[name(15)] == "archived"


def test_two_runs_do_not_meet(audit):
    put(audit, days_into(15, 1))
    seen: list[str] = []

    def progress(_: str) -> None:
        with pytest.raises(errors.Conflict, match="another 'fwdb audit retain'") as refused:
            audit.retain()
        seen.append(str(refused.value))

    assert audit.retain(progress=progress).removed == 1
    assert seen
    assert audit.retain().removed == 0


# -- holds ------------------------------------------------------------------------------------


def test_a_held_month_stays_until_it_is_released(audit):
    """The result names it; release lets it go; both stay on record."""
    put(audit, days_into(15, 1), days_into(14, 1))
    audit.hold(name(15), reason="case 7")
    kept = audit.retain()

    assert kept.held == (name(15),)
    assert left(kept, 15) == "held: case 7"
    for slip, said in (  # else the month that was meant would go
        ("October", "such as 2025-10"),
        ("2025-13", "such as 2025-10"),
        ("2999-01", "which is to come"),
        ("2001-01", "has nothing"),
    ):
        with pytest.raises(errors.ParameterError, match=said):
            audit.hold(slip)
    with pytest.raises(errors.Conflict, match="held already"):
        audit.hold(name(15))
    with pytest.raises(errors.UnknownName, match=name(15)):
        audit.release(name(14))
    assert states(audit)[name(15)] == "live"
    assert list(audit.holds()["reason"]) == ["case 7"]
    found = audit.partitions().set_index("month").loc[name(15)]
    assert (bool(found["held"]), found["hold_reason"]) == (True, "case 7")

    audit.release(name(15))
    assert audit.holds().empty
    assert list(audit.holds(released=True)["month"]) == [name(15)]
    assert audit.retain().removed == 1


def test_a_hold_set_while_its_month_leaves_brings_it_back(audit):
    """It was exported already, or detached by a run that was stopped, and not yet dropped."""
    put(audit, days_into(15, 1))

    kept = audit.retain(progress=once(15, lambda: audit.hold(name(15))))

    assert left(kept, 15) == "held"
    assert states(audit)[name(15)] == "live"
    assert len(audit.search(limit=None)) == 1
    assert total(audit) == 1
    audit.release(name(15))
    assert audit.retain().removed == 1
    put(audit, days_into(16, 1))
    with pytest.raises(KeyboardInterrupt):
        audit.retain(progress=once(16, stop))
    table = f"audit.audit_logs_{month(16):%Y_%m}"
    do(audit.postgres, f"ALTER TABLE audit.audit_logs DETACH PARTITION {table} CONCURRENTLY")
    assert states(audit)[name(16)] == "detached"
    audit.hold(name(16))
    audit.retain()
    assert states(audit)[name(16)] == "live"
    assert len(audit.search(limit=None)) == 1


def test_a_month_that_a_stopped_run_detached_is_verified_from_its_file(audit, monkeypatch):
    put(audit, days_into(15, 1))
    audit.seal()

    with monkeypatch.context() as patch:
        patch.setattr(partitions, "_drop", stop)
        with pytest.raises(KeyboardInterrupt):
            audit.retain()
    found = audit.verify()
    audit.retain()

    assert found.intact, found.findings
    assert found.archived_rows == found.checked_rows == 1
    assert audit.verify().intact


# -- other ways, other shapes -----------------------------------------------------------------


def test_a_role_that_may_not_remove_is_refused_before_anything_is_done(audit, adopted):
    """Dropping a month is the owner's; of a table in one piece the missing GRANT is named."""
    for trail in (audit, adopted):
        put(trail, days_into(15, 1))
    usage = "GRANT USAGE ON SCHEMA audit TO {}; GRANT SELECT"
    with as_role(audit.postgres, usage + " ON ALL TABLES IN SCHEMA audit TO {}") as store:
        trail = Audit(store, settings=audit.settings)
        with pytest.raises(errors.PermissionDenied, match="connect as the owner"):
            trail.retain()
        assert trail.retain(dry_run=True).expired == 1
        with pytest.raises(errors.PermissionDenied):
            trail.hold(name(15))
    with as_role(adopted.postgres, usage + ", INSERT ON audit.audit_logs TO {}") as store:
        trail = Audit(store, settings=audit.settings)
        with pytest.raises(errors.PermissionDenied, match=r'GRANT DELETE .* TO "limited_\d+"'):
            trail.retain()
        assert trail.retain(dry_run=True).expired == 1
    assert len(adopted.search(limit=None)) == 1


def test_what_cannot_be_removed_so_is_refused(audit, adopted):
    """A slip must not remove the whole trail; one long transaction would be no batches."""
    for days in (0, -1, 1.5, True, "365"):
        with pytest.raises(errors.ParameterError, match=r"'older_than_days' is .* whole number"):
            audit.retain(days)
    for trail in (audit, adopted):
        with (
            trail.postgres.transaction(),
            pytest.raises(errors.ParameterError, match="outside a transaction"),
        ):
            trail.retain()
    # On a server of one's own a folder of the moment would be nobody's.
    own = config.Settings(postgres_url="postgresql://db.example/fashion_wallet")
    with pytest.raises(errors.ConfigError, match="FWDB_AUDIT_ARCHIVE"):
        Audit(audit.postgres, settings=own).retain()
    assert files_of.folder_of(config.Settings()).name == "audit-archive"


@pytest.fixture
def adopted(postgres_database, open_trail, existing) -> Audit:
    """The service's table in one piece, as fwdb found it."""
    audit = open_trail(postgres_database())
    do(audit.postgres, existing)
    return audit


def test_rows_of_an_existing_table_that_are_older_than_a_year_go(adopted):
    """The counts tell what was there, what went and what is oldest now."""
    put(adopted, *(NOW - timedelta(days=age) for age in (400, 366, 365.01, 364.99, 1)))
    would, more = adopted.retain(dry_run=True), adopted.retain(5, dry_run=True)
    heard: list[str] = []
    kept = adopted.retain(batch=2, progress=heard.append)

    assert (would.expired, would.removed, more.expired) == (3, 0, 4)
    assert (kept.expired, kept.removed, kept.batches) == (3, 3, 2)
    assert kept.oldest_left_at == NOW - timedelta(days=364.99)
    assert len(adopted.search(limit=None)) == 2
    assert heard == ["removed 2 of 3 audit rows", "removed 3 of 3 audit rows"]
    assert adopted.retain().removed == 0


def test_an_existing_table_keeps_rows_of_held_months(adopted):
    """In one piece there is no month to drop: rows go in batches, held ones stay."""
    audit = adopted
    put(audit, days_into(15, 1), days_into(14, 1), days_into(14, 2), NOW)
    with pytest.raises(errors.FeatureUnavailable, match="fwdb migrate"):
        audit.hold(name(14))
    migrating.migrate(audit.postgres, None)
    assert audit.partitions_ahead().status == "not_applicable"
    assert audit.partitions().empty
    with pytest.raises(errors.ParameterError, match="has nothing"):
        audit.hold(name(20))
    audit.hold(name(14), reason="case 7")
    kept = audit.retain(batch=1)

    assert (kept.expired, kept.removed, kept.held) == (3, 1, (name(14),))
    assert len(audit.search(limit=None)) == 3
    cleanup = "SELECT audit.cleanup_old_audit_logs() AS removed"
    assert value(audit.postgres, cleanup) == 0
    audit.release(name(14))
    assert audit.retain(dry_run=True).expired == 2
    assert value(audit.postgres, cleanup) == 2
    assert len(audit.search(limit=None)) == 1


@pytest.fixture
def one_piece(adopted):
    """It, migrated, with rows of three months; what was there is sealed."""
    migrating.migrate(adopted.postgres, None)
    do(adopted.postgres, f"INSERT INTO shared.users (id, email) VALUES ('{ACTOR}', 'a')")
    times = (days_into(15, 1), days_into(15, 2), days_into(14, 1), NOW)
    put(adopted, *({"created_at": at, "user_id": ACTOR, "old_values": "{}"} for at in times))
    adopted.seal()
    return adopted


def test_what_leaves_a_table_in_one_piece_is_in_files_and_the_seals_hold(one_piece, archive):
    """Month by month, with all that reads and erases from archives."""
    progress = once(15, lambda: do(one_piece.postgres, "DELETE FROM shared.users"))
    one_piece.hold(name(14))
    kept = one_piece.retain(progress=progress)
    found = one_piece.verify()

    assert (kept.expired, kept.removed, kept.batches, kept.held) == (3, 2, 1, (name(14),))
    assert found.intact, found.findings
    assert (found.archived_rows, found.forgotten_rows) == (2, 4)
    assert one_piece.complete_since() == month(14)
    assert total(one_piece) == 4
    assert held(one_piece, archive, 15, "user_id") == [None, None]
    assert states(one_piece) == {name(15): "archived"}
    entity = held(one_piece, archive, 15, "entity_id")[0]
    assert one_piece.erase(entity_type="User", id=entity, reason="request 7").archived_rows == 1
    put(one_piece, days_into(15, 3))
    one_piece.release(name(14))
    one_piece.seal()
    again = one_piece.retain()
    assert {m.month: (m.rows, m.left and m.left[:12]) for m in again.months} == {
        name(15): (1, "1 rows were "), name(14): (1, None)
    }  # fmt: skip
    assert one_piece.verify().intact


def test_a_run_on_a_table_in_one_piece_that_was_stopped_is_gone_on_with(one_piece, monkeypatch):
    """The rows are in the table until they are recorded as gone; never in both, or in neither."""
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "_drop", stop)
        with pytest.raises(KeyboardInterrupt):
            one_piece.retain()
    between, counted = one_piece.verify(), total(one_piece)
    heard = []
    kept = one_piece.retain(progress=heard.append)

    assert between.intact, between.findings
    assert between.archived_rows == 0
    assert (counted, total(one_piece), kept.removed) == (4, 4, 3)
    assert f"exporting {name(15)}" not in heard
    assert one_piece.verify().intact
