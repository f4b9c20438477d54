"""Erasure from months that are in files: the files are written anew, and the seals still hold."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.retention import NOW, RESET, days_into, files, name, put
from support.sql import ask, do, value
from support.urls import url_of

from fwdb import errors
from fwdb.audit import Audit
from fwdb.audit.retention import archive as archive_module
from fwdb.audit.retention import partitions
from fwdb.audit.retention.archive import Archive
from fwdb.audit.seal import canonical, erase

USER, OTHER = str(uuid.UUID(int=7)), str(uuid.UUID(int=8))
ENTITY = str(uuid.UUID(int=9))
ADDRESS = "192.0.2.77"


@pytest.fixture
def audit(postgres_database, template, open_trail) -> Audit:
    """A trail with two months past their retention and one of now, in which USER did some."""
    trail = open_trail(postgres_database(template=template))
    do(trail.postgres, RESET)
    rows = []
    for at in (days_into(14, 1), days_into(13, 1), days_into(13, 2), NOW):
        rows += [
            {"created_at": at, "user_id": USER, "ip_address": ADDRESS, "new_values": '{"n": 1.10}'},
            {"created_at": at, "user_id": OTHER, "entity_id": ENTITY, "old_values": '{"n": 2}'},
        ]
    put(trail, *rows)
    return trail


@pytest.fixture
def retired(audit: Audit) -> Audit:
    """The same, sealed, and the two months in files."""
    audit.seal()
    audit.retain()
    return audit


def stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def held(archive: Path, column: str) -> list[Any]:
    """What the files hold of a column, without what is empty."""
    columns = [
        pq.read_table(path)[column].to_pylist() for path in sorted(archive.glob("*.parquet"))
    ]
    return [value for part in columns for value in part if value is not None]


def test_who_did_it_is_erased_from_table_and_files_and_the_seals_hold(retired, archive):
    """Only of that user; the changes themselves stay, and so do all other columns."""
    before = {path: pq.read_table(archive / path) for path in files(archive) if path[-1] == "t"}
    trail = retired.with_archives()
    assert len(trail.by_user(USER)) == 4
    planned = retired.erase(user_id=USER, reason="request 7", dry_run=True)
    unchanged = files(archive)
    said: list[str] = []
    done = retired.erase(user_id=USER, reason="request 7", progress=said.append)
    again = retired.erase(user_id=USER, reason="request 7")
    nobody = retired.erase(user_id=str(uuid.uuid4()), reason="request 9")
    answered = trail.by_user(USER), trail.by_user(OTHER), trail.search(entity_type="User")
    retired.seal()
    found = retired.verify()

    assert unchanged == sorted([*before, *(f"{path[:-8]}.json" for path in before)])
    assert (planned.rows, planned.archived_rows, planned.archives) == (4, 3, tuple(before))
    assert (done.rows, done.archived_rows, done.archives) == (4, 3, tuple(before))
    assert (again.rows, again.archives) == (0, ())
    assert (nobody.rows, nobody.archives, nobody.erasure_id) == (0, (), None)
    assert [len(frame) for frame in answered] == [0, 4, 8], "from the files as from the table"
    assert retired.retain().months == ()
    assert found.intact, found.findings
    assert (found.erased_rows, found.archived_rows, found.checked_rows) == (4, 6, 9)
    assert [run["rows"] for run in found.erasures] == [4]
    assert not set(files(archive)) & set(before), "the old files are gone"
    assert len(files(archive)) == 4
    assert held(archive, "user_id") == [OTHER] * 3
    assert held(archive, "ip_address") == []
    assert len(held(archive, "new_values")) == 3
    assert f"writing the archive of {name(14)} anew" in said
    for old, new in zip(before.values(), sorted(archive.glob("*.parquet")), strict=True):
        table = pq.read_table(new)
        assert table.schema.equals(old.schema, check_metadata=True)
        kept = [column for column in old.column_names if column not in canonical.ACTOR]
        assert table.select(kept).equals(old.select(kept))


def test_what_rows_held_of_an_entity_is_erased(retired, archive):
    done = retired.erase(entity_type="User", id=ENTITY, reason="request 8")

    assert (done.rows, done.archived_rows) == (4, 3)
    assert held(archive, "old_values") == []
    assert len(held(archive, "new_values")) == 3
    assert held(archive, "user_id").count(OTHER) == 3
    assert retired.verify().intact


HARM: dict[str, tuple[Callable[[Audit, Path], Any], type[errors.FwdbError], str]] = {
    "a row was altered": (
        lambda audit, _: do(
            audit.postgres, "UPDATE audit.seals SET leaves = sha256('x') WHERE number = 1"
        ),
        errors.SealError,
        "not as it was sealed",
    ),
    "a file is damaged": (
        lambda _, path: path.write_bytes(path.read_bytes()[:-9]), errors.ArchiveError, "damaged",
    ),
    "a file is missing": (lambda _, path: path.unlink(), errors.ArchiveError, "missing"),
    "the disk is full": (lambda *_: None, errors.ArchiveError, "cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARM)
def test_what_stops_it_leaves_all_as_it_was(retired, archive, monkeypatch, name):
    """Nobody should think that rows were erased; what was written anew is gone again."""
    write = Archive.write

    def full(folder: Path, month: date, *rest: Any, **more: Any) -> Archive:
        if month == days_into(13, 0).date():  # the second file
            raise errors.ArchiveError(f"the month {month} cannot be written")
        return write(folder, month, *rest, **more)

    harm, refusal, said = HARM[name]
    harm(retired, sorted(archive.glob("*.parquet"))[-1])
    before = files(archive)
    if name == "the disk is full":
        monkeypatch.setattr(Archive, "write", staticmethod(full))
    with pytest.raises(refusal, match=said):
        retired.erase(user_id=USER, reason="x")

    assert files(archive) == before
    assert value(retired.postgres, "SELECT count(*) AS n FROM audit.erasures") == 0
    assert len(retired.by_user(USER)) == 1


def test_it_is_refused_without_the_folder_while_held_and_beside_retention(
    retired, archive, open_trail, monkeypatch
):
    """Retention and erasure both write files and drop them; they take turns."""
    before = files(archive)
    with monkeypatch.context() as patch:
        patch.setattr(erase, "known_folder", lambda _: None)
        with pytest.raises(errors.ConfigError, match=r"2 months .* set FWDB_AUDIT_ARCHIVE"):
            retired.erase(user_id=USER, reason="x")
    with (
        partitions.alone(open_trail(url_of(retired.postgres)).postgres),
        pytest.raises(errors.Conflict, match="at work"),
    ):
        retired.erase(user_id=USER, reason="x")
    retired.hold(name(13), reason="case 12")
    with pytest.raises(errors.SealError, match=f"{name(13)}, which must be kept"):
        retired.erase(user_id=USER, reason="x")
    assert files(archive) == before
    retired.release(name(13))

    assert retired.erase(user_id=USER, reason="x").rows == 4
    do(retired.postgres, "ALTER TABLE audit.archives DROP COLUMN replaced")  # not migrated yet
    with pytest.raises(errors.FeatureUnavailable, match="fwdb migrate"):
        retired.erase(user_id=OTHER, reason="x")
    assert retired.retain().months == ()


def test_a_month_on_its_way_out_must_leave_first(audit, monkeypatch):
    """Its rows are in no table that anybody asks."""
    audit.seal()
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "_drop", stopped)
        with pytest.raises(KeyboardInterrupt):
            audit.retain()
    with pytest.raises(errors.SealError, match=r"on its way out .* run 'fwdb audit retain'"):
        audit.erase(user_id=USER, reason="x")
    audit.retain()

    assert audit.erase(user_id=USER, reason="x").rows == 4


def test_a_month_archived_before_anything_was_sealed_is_erased_from(audit, archive):
    """There is no seal to keep true; the trail tells of it all the same."""
    audit.retain()
    done = audit.erase(user_id=USER, reason="request 7")

    assert (done.rows, done.archived_rows) == (4, 3)
    assert held(archive, "user_id") == [OTHER] * 3
    told = ask(audit.postgres, "SELECT reason FROM audit.audit_logs WHERE entity_type = 'AuditLog'")
    assert told == [{"reason": "request 7"}]
    found = audit.verify()
    assert found.intact, found.findings
    assert any("6 rows of archived months were never sealed" in s for s in found.not_proven)
    (path := archive / done.archives[0]).with_suffix(".json").unlink(missing_ok=True)
    assert not path.exists()
    newest = sorted(archive.glob("*.parquet"))[0]
    newest.write_bytes(newest.read_bytes() + b"x")
    assert [f.kind for f in audit.verify().findings] == ["archive"]


@pytest.mark.parametrize("next_run", ["erase", "retain"])
def test_old_files_that_a_stopped_run_left_go_with_the_next(
    retired, archive, monkeypatch, next_run
):
    """The database names the new ones by then, and notes the old ones."""
    old = {path for path in files(archive) if path.endswith(".parquet")}
    with monkeypatch.context() as patch:
        patch.setattr(archive_module, "remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            retired.erase(user_id=USER, reason="request 7")
    assert old < set(files(archive))
    assert retired.verify().intact
    if next_run == "erase":
        retired.erase(user_id=OTHER, reason="request 8")
    else:
        retired.retain()

    assert not old & set(files(archive))
    assert len(files(archive)) == 4
    assert retired.verify().intact
    assert ask(retired.postgres, "SELECT DISTINCT replaced FROM audit.archives") == [
        {"replaced": []}
    ]


def test_an_old_file_stays_while_the_new_one_is_not_whole(retired, archive, monkeypatch):
    """Else nothing would be left of the month."""
    old = {path for path in files(archive) if path.endswith(".parquet")}
    with monkeypatch.context() as patch:
        patch.setattr(erase, "sweep", lambda *_: None)
        retired.erase(user_id=USER, reason="request 7")
    for path in set(files(archive)) - old:
        if path.endswith(".parquet"):
            (archive / path).unlink()
    with pytest.raises(errors.ArchiveError, match="missing"):
        retired.retain()

    assert old < set(files(archive))


def test_only_an_older_export_of_that_month_is_ever_removed(retired, archive):
    """Whatever the database says: no file elsewhere, none of another month, none that counts."""
    outside = archive.parent / "outside.parquet"
    outside.write_text("of somebody else")
    (archive / "other.parquet").write_text("of somebody else")
    path, later = (
        row["path"] for row in ask(retired.postgres, "SELECT path FROM audit.archives ORDER BY 1")
    )
    before = files(archive)
    names = [str(outside), "../outside.parquet", "other.parquet", later, path, "..", ""]
    replaced = "UPDATE audit.archives SET replaced = ARRAY[CAST(:name AS text)] WHERE path = :path"
    renamed = "UPDATE audit.archives SET path = :said WHERE path = :path"
    for said in names:
        do(retired.postgres, replaced, name=said, path=path)
        with pytest.raises(errors.ArchiveError, match="Find out who did"):
            retired.retain()
        assert files(archive) == before, said
    do(retired.postgres, "UPDATE audit.archives SET replaced = DEFAULT")
    for said in set(names) - {path}:
        do(retired.postgres, renamed, said=said, path=path)
        with pytest.raises(errors.ArchiveError):
            retired.erase(user_id=USER, reason="x")
        assert not retired.verify().intact
        assert files(archive) == before, said
        do(retired.postgres, renamed, said=path, path=said)

    assert outside.exists()
