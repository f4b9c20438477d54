"""Archived months in the same questions: the answers are those from before they left the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal
from support.retention import (
    NOW,
    RESET,
    audit_fixture,  # noqa: F401
    days_into,
    month,
    name,
    put,
)
from support.sql import ask, do

from fwdb import errors, reports
from fwdb.audit import Audit, source
from fwdb.audit.retention import archive as archives
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

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
    question = (
        f"SELECT {columns} FROM audit.audit_logs WHERE created_at < :until"
        " ORDER BY audit_logs.created_at, audit_logs.id"
    )
    before = ask(filled.postgres, question, until=month(14))
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


# -- going back behind the months that left -----------------------------------------------------

ITEM = "0190c1a0-0000-7000-8000-00000000000e"
GONE = "0190c1a0-0000-7000-8000-00000000000f"
LAST = f'{{"id": "{GONE}", "name": "y", "price": 7, "properties": {{"a": 1.10}}}}'
BEFORE, BETWEEN = days_into(15, 1), days_into(14, 5)  # the first change, and after it


@pytest.fixture
def aged(postgres_database, template, open_trail) -> Audit:
    """An item whose price was 1, since fourteen months ago 2, and since two months ago 3.

    Another one was made and removed in months that are in files by now.
    """
    trail = open_trail(postgres_database(template=template))
    store = trail.postgres
    for statement in (
        "ALTER TABLE catalog.catalog_items DISABLE TRIGGER ALL",
        "DELETE FROM catalog.catalog_items",
        "INSERT INTO catalog.catalog_items (id, name, type, price, created_at)"
        f" VALUES ('{ITEM}', 'x', 'fabric', 3, '{month(20)}')",
        "ALTER TABLE catalog.catalog_items ENABLE TRIGGER ALL",
        f"UPDATE audit.captured SET generated_at = '{month(24)}'",
        RESET,
    ):
        do(store, statement.replace(":", r"\:"))
    put(
        trail,
        changed(days_into(14, 3), {"price": 1}, {"price": 2}),
        changed(days_into(2, 3), {"price": 2}, {"price": 3}),
        changed(days_into(14, 4), None, LAST, id=GONE),
        changed(days_into(13, 4), LAST, None, id=GONE),
    )
    trail.retain()
    return trail


def changed(at: datetime, old: Any, new: Any, *, id: str = ITEM) -> dict[str, Any]:
    values = {"old_values": old, "new_values": new}
    return {
        "created_at": at,
        "action": "CREATE" if old is None else "DELETE" if new is None else "UPDATE",
        "entity_type": "CatalogItem",
        "entity_id": id,
        "origin": "trigger",
        **{k: json.dumps(v) if isinstance(v, dict) else v for k, v in values.items()},
    }


def price(frame: pd.DataFrame) -> float:
    return float(frame.iloc[0]["price"])


def test_the_table_alone_says_from_when_on_it_knows(aged):
    """Its values of before are the oldest that it has, and `known_since` says so."""
    early, late = aged.as_of("CatalogItem", BEFORE), aged.as_of("CatalogItem", days_into(1, 1))

    assert price(late) == 3
    assert late.iloc[0]["known_since"] < days_into(1, 1)
    assert price(early) == 2
    assert early.iloc[0]["known_since"] == month(12) > BEFORE
    # Bringing back what only files know would write the state of a later time.
    with pytest.raises(errors.ParameterError, match=f"'to' .* {month(12):%Y-%m-%d}"):
        aged.revert("CatalogItem", ITEM, to=BEFORE)
    with pytest.raises(errors.ParameterError, match=r"'since' .* with_archives\(\)"):
        aged.diff("CatalogItem", ITEM, BEFORE)

    plan = aged.revert("CatalogItem", ITEM, to=month(12))
    assert plan[["field", "now", "then"]].values.tolist() == [["price", "3", "2"]]
    assert aged.diff("CatalogItem", ITEM, month(12))["field"].tolist() == ["price"]


def test_with_archives_the_past_is_whole(aged, monkeypatch):
    """As it was before the months left: states, differences, and each change."""
    trail = aged.with_archives()
    early = trail.as_of("CatalogItem", BEFORE)
    there = trail.as_of("CatalogItem", BETWEEN).set_index("id")
    gone = trail.as_of("CatalogItem", days_into(1, 1))

    assert len(early) == 1
    assert price(early) == 1
    assert early.iloc[0]["known_since"] < BEFORE
    assert {str(id): float(row["price"]) for id, row in there.iterrows()} == {ITEM: 2, GONE: 7}
    assert len(gone) == 1
    assert price(trail.as_of("CatalogItem", BEFORE, id=ITEM)) == 1
    assert trail.as_of("CatalogItem", BEFORE, id=GONE).empty
    found = trail.diff("CatalogItem", ITEM, BEFORE)
    told = found[["field", "before", "after", "changes"]].values.tolist()
    assert told == [["price", "1", "3", 2]]
    assert trail.timeline("CatalogItem", ITEM)["after"].tolist() == ["2", "3"]
    assert '{"a": 1.10}' in trail.timeline("CatalogItem", GONE)["after"].tolist()
    assert there.loc[there["price"] == 7, "properties"].tolist() == ['{"a": 1.10}']
    changes = trail.who_changed("price", since=month(15))
    assert changes["changed_at"].is_monotonic_decreasing
    assert changes["after"].isna().sum() == 1
    assert changes["after"].dropna().tolist() == ["3", "7", "2"]
    assert changes.dtypes.to_dict() == aged.who_changed("price").dtypes.to_dict()
    with pytest.raises(errors.FeatureUnavailable, match="undoing"):
        trail.revert("CatalogItem", ITEM, to=BEFORE)
    monkeypatch.setattr(source, "_MOST_CHANGES", 1)
    with pytest.raises(errors.ParameterError, match=r"more than 1 changes .* with 'entity_type'"):
        trail.as_of("CatalogItem", BEFORE)
    assert price(trail.as_of("CatalogItem", BEFORE, id=ITEM)) == 1


def test_the_answers_are_those_of_before_the_months_left(
    postgres_database, template, open_trail, monkeypatch
):
    """Of users and designs, each at some moments, column by column."""
    trail = open_trail(postgres_database(template=template))
    put(trail, *seen_before())
    moments = (month(16), days_into(15, 2), days_into(14, 9), days_into(13, 20), days_into(1, 1))

    def answers(asked: Audit) -> list[pd.DataFrame]:
        found = [asked.as_of(kind, at) for kind in ("User", "Design") for at in moments]
        changes = asked.who_changed("name", since=month(17))
        return [*found, changes, asked.timeline("Design", OBJECT_ID)]

    before = answers(trail)
    assert trail.retain().removed
    after = answers(trail.with_archives())

    assert max(len(frame) for frame in before) > 3
    for old, new in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(old, new)


OBJECT_ID = "65a1b2c3d4e5f60718293a4b"


def seen_before() -> list[dict[str, Any]]:
    """The life of a design, of a user that is gone, and of one that came back."""
    rows = []
    for number, ago in enumerate((15, 14, 13, 2)):
        old = None if number == 0 else {"name": f"n{number - 1}", "version": number}
        new = {"name": f"n{number}", "version": number + 1, "tags": ["ä", number]}
        rows.append(changed(days_into(ago, 3), old, new, id=DESIGN) | {"entity_type": "Design"})
    for number in range(3):
        life = f"0190c1a0-0000-7000-8000-00000000010{number}"
        user = {"id": life, "email": f"{number}@example.com", "name": "u"}
        later = user | {"name": "v"}
        steps = [(15, None, user), (14, user, later), (13, later, None)]
        rows += [
            changed(days_into(ago, number), old, new, id=life) | {"entity_type": "User"}
            for ago, old, new in steps[: number + 1]
        ]
    return rows


def test_the_command_line_goes_back_with_archives(aged, fwdb):
    """And says which time is too early without."""
    fwdb = fwdb(aged)
    then = f"{BEFORE:%Y-%m-%dT%H:%MZ}"
    late = fwdb("as-of", "CatalogItem", then, "--json")
    whole = fwdb("as-of", "CatalogItem", then, "--archives", "--json")
    refused = fwdb("diff", "CatalogItem", ITEM, "--since", then)
    different = fwdb("diff", "CatalogItem", ITEM, "--since", then, "--archives", "--json")

    assert [json.loads(found[1])[0]["price"] for found in (late, whole)] == [2, 1]
    assert (refused[0], refused[1]) == (2, "")
    assert "archived months" in refused[2]
    assert [row["before"] for row in json.loads(different[1])] == ["1"]
    assert len(json.loads(fwdb("timeline", "CatalogItem", ITEM, "--archives", "--json")[1])) == 2
    assert len(json.loads(fwdb("history", "CatalogItem", ITEM, "--archives", "--json")[1])) == 2
    changed = fwdb("who-changed", "price", "--archives", "--json")[1]
    assert len(json.loads(changed)) == 4


@pytest.mark.parametrize("report", ["audit_trail", "entity_history"])
def test_a_report_says_that_a_part_of_its_window_is_in_archives(aged, servers, report):
    """And nothing of it when the window begins later."""
    more = {"entity_type": "CatalogItem", "entity_id": ITEM} if report == "entity_history" else {}
    with Database(aged.postgres, MongoStore(servers.mongodb), settings=aged.settings) as db:
        long, short = (
            reports.open_report(report, db=db, since=since, **more).result.checks
            for since in (f"{BEFORE:%Y-%m-%dT%H:%MZ}", "30d")
        )
    (said,) = [check for check in long if check.id == f"{report}.archived"]

    assert said.status == "not_available"
    assert f"before {month(12):%Y-%m-%d} are in archived months" in said.sentence
    assert not [check for check in short if check.id == f"{report}.archived"]
    assert aged.complete_since() == month(12)
