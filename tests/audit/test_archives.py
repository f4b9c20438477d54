"""Archived months in the same questions: the answers are those from before they left the table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal
from support.retention import (
    NOW,
    audit_fixture,  # noqa: F401
    days_into,
    month,
    name,
    put,
)
from support.sql import ask, do

from fwdb import errors
from fwdb.audit import Audit
from fwdb.audit.retention import archive as archives
from fwdb.stores import PostgresStore

ACTORS = [f"0190c1a0-0000-7000-8000-00000000000{n}" for n in (1, 2)]
ENTITY = "0190c1a0-0000-7000-8000-00000000000e"
DESIGN = "65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b"  # 65a1b2c3d4e5f60718293a4b as the table keeps it
SINCE, UNTIL = month(17), NOW + timedelta(seconds=1)

# Of each kind of row and value one, then many; from months that will be archived and from others.
KINDS = [
    {"action": "CREATE", "new_values": '{"name": "Ä \\"x\\"\\n,", "first_name": null, "n": 1.10}'},
    {"old_values": '{"firstName": "a", "n": 1.0}', "new_values": '{"firstName": "b", "n": 1.00}'},
    {"old_values": '{"updated_at": "x", "b": {"a": [1]}}', "new_values": '{"b": {"a": [1, 2]}}'},
    {"action": "READ", "metadata": "", "ip_address": "192.0.2.7", "user_agent": "two\nlines"},
    {"action": "DELETE", "old_values": '{"api_key": "k", "name": "Ä"}', "metadata": "NULL"},
    {"entity_type": "Design", "entity_id": DESIGN, "new_values": "[1]", "old_values": '"text"'},
    {"entity_type": "Theirs", "action": "CREATE", "new_values": "{}", "user_id": ACTORS[0]},
]


@pytest.fixture
def filled(audit: Audit) -> Audit:
    """A trail with rows from seventeen months ago to now."""
    rows = []
    for ago in (17, 16, 15, 2, 0):
        for number, kind in enumerate(KINDS * 3):
            at = min(days_into(ago, number / 3), NOW) - timedelta(microseconds=number)
            who = {"user_id": ACTORS[number % 2], "entity_id": ENTITY}
            rows.append({"created_at": max(at, month(ago)), **who, **kind})
    put(audit, *rows)
    # Rows of before have none of what the server knows of a session.
    do(audit.postgres, "UPDATE audit.audit_logs SET origin = NULL WHERE random() < .5")
    return audit


QUESTIONS: dict[str, Callable[[Audit], pd.DataFrame]] = {
    "history": lambda audit: audit.history("User", ENTITY),
    "history of a design": lambda audit: audit.history("Design", "65a1b2c3d4e5f60718293a4b"),
    "history of nothing": lambda audit: audit.history("User", ACTORS[0]),
    "by_user": lambda audit: audit.by_user(ACTORS[1]),
    "recent, of the table alone": lambda audit: audit.recent(10),
    "recent, of both": lambda audit: audit.recent(60),
    "everything": lambda audit: audit.search(limit=None),
    "a window of files": lambda audit: audit.search(since=month(16), until=month(15)),
    "a window of both": lambda audit: audit.search(since=days_into(15, 3), limit=50),
    "an action": lambda audit: audit.search(action="DELETE", entity_type="User"),
    "a field": lambda audit: audit.search(changed_field="first_name", limit=None),
    "a number that is the same": lambda audit: audit.search(changed_field="n", limit=None),
    "a type of others": lambda audit: audit.search(entity_type="Theirs"),
    "totals": lambda audit: audit.totals(SINCE, UNTIL),
    "totals of one": lambda audit: audit.totals(SINCE, UNTIL, user_id=ACTORS[0], action="UPDATE"),
    "actors": lambda audit: audit.actors(SINCE, UNTIL, top=1),
    "activity by day": lambda audit: audit.activity(SINCE, UNTIL),
    "activity by week": lambda audit: audit.activity(days_into(17, 2.3), UNTIL, "week"),
    "activity by month": lambda audit: audit.activity(SINCE, UNTIL, "month", entity_type="User"),
}


def test_an_archived_trail_answers_as_it_did_in_one_piece(filled):
    """Same rows, same columns, same types, same order, secrets redacted."""
    before = {asked: question(filled) for asked, question in QUESTIONS.items()}
    assert filled.retain().removed == 3 * 3 * len(KINDS)
    trail = filled.with_archives()

    for asked, question in QUESTIONS.items():
        assert_frame_equal(question(trail), before[asked], obj=asked)
    assert len(filled.search(limit=None)) < len(trail.search(limit=None))
    assert not trail.search(limit=None)["old_values"].str.contains('"k"').any()


def test_a_file_has_each_value_exactly(filled, archive):
    """jsonb as PostgreSQL writes it, microseconds, nulls that are no empty text; all columns."""
    names = ask(
        filled.postgres,
        "SELECT CAST(attname AS text) AS name FROM pg_attribute WHERE attnum > 0"
        " AND NOT attisdropped AND attrelid = CAST('audit.audit_logs' AS regclass)",
    )
    exact = {"created_at", "transaction_id"}
    columns = ", ".join(
        row["name"] if row["name"] in exact else f"CAST({row['name']} AS text) AS {row['name']}"
        for row in names
    )
    before = ask(
        filled.postgres,
        f"SELECT {columns} FROM audit.audit_logs WHERE created_at < :until"
        " ORDER BY audit_logs.created_at, audit_logs.id",
        until=month(14),
    )
    filled.retain()
    paths = [archive / path for path in filled.partitions()["path"].dropna()]
    found = [row for path in paths for row in pq.read_table(path).to_pylist()]

    assert found == before
    field = pq.read_schema(paths[0]).field("old_values")
    assert field.metadata[b"postgres"] == b"jsonb"


def test_months_of_any_size_and_form_are_read_together(filled, archive, monkeypatch):
    """One larger than a batch comes in several, in order, none twice."""
    stream = PostgresStore.stream
    taken: list[int] = []

    def small(self, statement, consume, /, **parameters):
        def counted(table):
            taken.append(len(table))
            consume(table)

        stream(self, statement, counted, batch_bytes=1000, **parameters)

    monkeypatch.setattr(PostgresStore, "stream", small)
    filled.retain()

    path = archive / filled.partitions()["path"].iloc[0]
    assert max(taken) < 3 * len(KINDS)
    assert pq.ParquetFile(path).num_row_groups > 2
    times = pq.read_table(path)["created_at"].to_pylist()
    assert times == sorted(times)
    assert len(times) == 3 * len(KINDS)
    # Ten years have seen more than one form of the table: its files are read together.
    do(filled.postgres, "ALTER TABLE audit.audit_logs ADD COLUMN later text")
    put(filled, {"created_at": days_into(14, 1), "later": "x"})
    filled.retain()
    assert len(filled.with_archives().search(until=month(13))) == 3 * 3 * len(KINDS) + 1


def test_a_file_that_is_not_what_was_written_is_named(filled, archive):
    """No answer without it; a window that does not need it is answered."""
    filled.retain()
    trail = filled.with_archives()
    trail.history("User", ENTITY)  # all files were well a moment ago
    path: Path = archive / filled.partitions()["path"].iloc[0]
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for harm, said in (
        (lambda: path.write_bytes(flipped), "damaged"),
        (lambda: path.write_bytes(content[:-1]), "damaged"),
        (path.unlink, "missing"),
    ):
        harm()
        with pytest.raises(errors.ArchiveError, match=rf"{name(17)} is {said}.*") as refused:
            trail.history("User", ENTITY)
        assert path.name in str(refused.value)
        with pytest.raises(errors.ArchiveError):
            trail.totals(SINCE, UNTIL)
        assert len(trail.search(since=month(16), limit=None)) == 4 * 3 * len(KINDS)


def test_what_a_question_needs_is_said_and_read_once(filled, archive, tmp_path, monkeypatch):
    """audit.archives has names, not places; ten years of files are not read for each question."""
    archive.write_text("a file and no folder")
    with pytest.raises(errors.ArchiveError, match="FWDB_AUDIT_ARCHIVE"):
        filled.retain()
    assert len(filled.search(limit=None)) == 5 * 3 * len(KINDS)
    archive.unlink()
    filled.retain()
    moved = archive.rename(tmp_path / "it's elsewhere")
    settings = filled.settings.model_copy(update={"audit_archive": moved})
    trail = Audit(filled.postgres, settings=settings).with_archives()
    assert len(trail.search(limit=None)) == 5 * 3 * len(KINDS)
    misses = archives._digest_once.cache_info().misses
    trail.recent(200)
    assert archives._digest_once.cache_info().misses == misses

    # Half an answer would look like a whole one.
    with pytest.raises(errors.FeatureUnavailable, match="'bursts' is not asked of archived"):
        trail.bursts(SINCE, UNTIL)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(errors.FeatureUnavailable, match=r"pip install 'fwdb\[archive\]'"):
        trail.recent(200)


def test_the_command_line_holds_retains_and_reads(filled, archive, fwdb):
    """`fwdb audit …`, from the hold to a file that is damaged, which is exit 1."""
    fwdb = fwdb(filled)
    assert fwdb("hold", name(17), "--reason", "case 7")[1] == f"{name(17)} is held\n"
    assert "case 7" in fwdb("holds")[1]
    would = fwdb("retain", "--dry-run")[1]
    assert f"would remove: {2 * 3 * len(KINDS)} audit logs" in would
    done = fwdb("retain")[1]
    assert "held: case 7" in done
    assert f"removed: {2 * 3 * len(KINDS)} audit logs" in done
    assert "3 months ahead" in fwdb("partitions")[1]
    since = f"{month(17):%Y-%m-%dT%H:%MZ}"
    shown = fwdb("trail", "--archives", "--since", since, "--limit", "1000")
    assert f"{5 * 3 * len(KINDS)} rows" in shown[1]
    next(archive.glob("*.parquet")).write_bytes(b"PAR1")
    code, out, said = fwdb("trail", "--archives", "--since", since)
    assert (code, out) == (1, "")
    assert "damaged" in said
    assert len(said.strip().splitlines()) == 1
    assert fwdb("release", name(17))[0] == 0
