"""What is not captured is named, with what would help; what is captured is not complained of."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
import typer
from support.sql import do

from fwdb import config
from fwdb.audit import Audit
from fwdb.audit import coverage as findings
from fwdb.cli import audit as commands
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

COLUMNS = ["database", "object", "kind", "status", "sentence", "remedy"]

TABLES = {"shared.users", "avatar.avatars", "catalog.catalog_items"}


class _Undo(Exception):
    """Ends the transaction of a test."""


@pytest.fixture
def db(module_db: Database) -> Iterator[Database]:
    """The database of this file in a transaction that is undone at the end."""
    with contextlib.suppress(_Undo), module_db.postgres.transaction():
        yield module_db
        raise _Undo


def found(db: Database, **wanted: str) -> pd.DataFrame:
    """What coverage says of PostgreSQL; `wanted` are values of columns."""
    frame = db.audit.coverage()
    frame = frame[frame["database"] == "postgres"]
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_a_migrated_database_is_covered(db: Database) -> None:
    """The check of CI: nothing of PostgreSQL is uncovered, and what is left out is said."""
    frame = db.audit.coverage()
    tables = found(db, kind="table", status="covered")

    assert list(frame.columns) == COLUMNS
    assert found(db, status="uncovered")["sentence"].tolist() == []
    assert set(tables["object"]) == TABLES
    assert found(db, status="redacted")["object"].str.contains("password_hash").any()
    assert not frame["object"].str.contains("monitoring|alembic").any()
    assert found(db, kind="partition_ahead")["status"].tolist() == ["covered"]


# What somebody may do, and what is said then: the object, its kind, words of sentence and remedy.
FAULTS = [
    ('ALTER TABLE shared.users DISABLE TRIGGER "00_fwdb_audit"',
     "shared.users 00_fwdb_audit", "trigger", "is switched off",
     'ALTER TABLE shared.users ENABLE ALWAYS TRIGGER "00_fwdb_audit"'),
    ('ALTER TABLE shared.users ENABLE TRIGGER "00_fwdb_audit"',
     "shared.users 00_fwdb_audit", "trigger", "session_replication_role = replica",
     "ENABLE ALWAYS"),
    ('DROP TRIGGER "00_fwdb_audit_truncate" ON avatar.avatars',
     "avatar.avatars 00_fwdb_audit_truncate", "trigger", "TRUNCATE would leave no trace",
     "fwdb migrate"),
    ("CREATE OR REPLACE FUNCTION audit.capture_shared_users() RETURNS trigger LANGUAGE plpgsql"
     " SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN NULL; END $$",
     "shared.users 00_fwdb_audit", "trigger", "not as it was generated",
     "SELECT audit.capture('shared.users')"),
    ("ALTER FUNCTION audit.capture_shared_users() SECURITY INVOKER",
     "shared.users 00_fwdb_audit", "trigger", "without the rights of its owner",
     "SELECT audit.capture('shared.users')"),
    ("CREATE TABLE shared.vouchers (id int)",
     "shared.vouchers", "table", "Changes of shared.vouchers are not captured",
     "op.audit_table('shared.vouchers')"),
    ("GRANT DELETE, SELECT ON audit.audit_logs TO PUBLIC",
     "audit.audit_logs PUBLIC", "right", "Everybody may DELETE on audit.audit_logs",
     "REVOKE DELETE ON audit.audit_logs FROM PUBLIC"),
    ("GRANT UPDATE (reason) ON audit.audit_logs TO PUBLIC",
     "audit.audit_logs PUBLIC", "right", "may UPDATE", "REVOKE UPDATE"),
    ("ALTER FUNCTION audit.add_partitions(date, date) SET search_path = pg_catalog",
     "audit.add_partitions(date,date)", "right", "can run what a caller made",
     "SET search_path = pg_catalog, pg_temp"),
    ("GRANT EXECUTE ON FUNCTION audit.add_partitions TO PUBLIC",
     "audit.add_partitions(date,date)", "right", "Everybody may call audit.add_partitions",
     "REVOKE ALL ON FUNCTION audit.add_partitions"),
    ("GRANT EXECUTE ON FUNCTION audit.forget_user TO pg_monitor",
     "audit.forget_user()", "right", "The role pg_monitor may call", 'FROM "pg_monitor"'),
    ("CREATE TRIGGER nothing BEFORE UPDATE ON audit.audit_logs FOR EACH ROW"
     " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
     "audit.audit_logs nothing", "trigger", "may change or drop them",
     'DROP TRIGGER "nothing" ON audit.audit_logs'),
    ("CREATE RULE nothing AS ON INSERT TO audit.seals DO INSTEAD NOTHING",
     "audit.seals nothing", "trigger", "stands in for what is written",
     'DROP RULE "nothing" ON audit.seals'),
    ("ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY",
     "audit.audit_logs security", "right", "Row security is on", "DISABLE ROW LEVEL SECURITY"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "object", "kind", "words", "remedy"), FAULTS)
def test_a_fault_is_named_with_its_remedy(db, statement, object, kind, words, remedy) -> None:
    do(db.postgres, statement)
    frame = found(db, status="uncovered")

    # A function is run by the triggers for rows and for TRUNCATE.
    assert frame["object"].tolist() in ([object], [object, f"{object}_truncate"])
    assert set(frame["kind"]) == {kind}
    assert words in frame["sentence"].iloc[0]
    assert remedy in frame["remedy"].iloc[0]
    if "SECURITY INVOKER" in statement:  # what is said puts it right
        do(db.postgres, frame["remedy"].iloc[0].split("`")[1])
        assert found(db, status="uncovered").empty


def test_a_column_that_nobody_has_judged_is_told(db: Database) -> None:
    """Its changes are recorded, in clear; `fwdb migrate` makes it one that is known."""
    for table, name in (("catalog.catalog_items", "weight"), ("audit.audit_logs", "shop")):
        # One that the trail itself got is no fault: triggers name the columns that they write.
        do(db.postgres, f"ALTER TABLE {table} ADD COLUMN {name} int")
    frame = found(db, kind="column", status="behind")

    assert frame["object"].tolist() == ["catalog.catalog_items.weight"]
    assert "newer than its trigger" in frame["sentence"].iloc[0]
    assert found(db, status="uncovered").empty


HOW = {
    "entity_type": "Visit", "columns": '["id", "seen_at"]', "redact": "{}",
    "ignored": "[]", "function": "audit.capture_shared_visits", "body_md5": "x",
}  # fmt: skip


def column(table: str, name: str, part_of: str | None = None, computed: bool = False) -> Any:
    return {"table_name": table, "part_of": part_of, "column_name": name, "computed": computed}


def trigger(table: str, name: str, **changed: Any) -> Any:
    return {
        "table_name": table, "trigger_name": name, "state": "A", "as_owner": True,
        "function": HOW["function"], "body_md5": "x", **changed,
    }  # fmt: skip


def test_a_partition_is_written_to_directly() -> None:
    """Its own triggers decide then, and a computed column is never missing."""
    whole, part = "shared.visits", "shared.visits_2026"
    columns = [column(whole, "id"), column(whole, "week", computed=True), column(part, "id", whole)]
    both = [findings.ROWS, findings.TRUNCATE]
    fine = [trigger(name, one) for name in (whole, part) for one in both]
    lost = [*fine[:2], fine[2]]
    off = [*fine[:2], {**fine[2], "state": "D"}, fine[3]]
    said = [
        [f for f in findings.tables(columns, {whole: HOW}, triggers) if f.object == part]
        for triggers in (fine, lost, off)
    ]

    assert [[(f.kind, f.status) for f in found] for found in said] == [
        [("partition", "covered")],
        [("partition", "uncovered")],
        [("partition", "uncovered")],
    ]
    assert "TRUNCATE would leave no trace" in said[1][0].sentence
    assert "is switched off" in said[2][0].sentence
    assert not [f for f in findings.tables(columns, {whole: HOW}, fine) if f.status != "covered"]


def test_months_that_are_missing_are_said_before_they_are_needed(db: Database) -> None:
    """The next one is urgent, one after it is late; this month and a hole count too."""
    rows = db.postgres.rows("audit_coverage_months", months=3)
    names = [row["table_name"] for row in rows]
    ready = [db.audit.standing().months_ahead]
    for name in reversed(names):
        do(db.postgres, f"DROP TABLE {name}")
        ready.append(db.audit.standing().months_ahead)
    frame = found(db, kind="partition_ahead")

    assert ready == [3, 2, 1, 0, -1]
    assert frame["status"].tolist() == ["uncovered", "uncovered", "behind", "behind"]
    assert set(frame["object"]) == set(names)
    assert frame["remedy"].str.contains("fwdb audit retain").all()
    # With a default partition a change of a month without a table of its own does not fail.
    do(db.postgres, "CREATE TABLE audit.rest PARTITION OF audit.audit_logs DEFAULT")
    assert db.audit.standing().months_ahead == 3


def test_rights_on_a_table_that_fwdb_found_are_exposed_and_not_a_fault(postgres_database) -> None:
    """Its programs write to it, and have to, until they do not."""
    with closing(PostgresStore(postgres_database())) as store:
        do(
            store,
            "CREATE SCHEMA shared; CREATE TABLE shared.users (id uuid PRIMARY KEY);"
            "CREATE SCHEMA audit; CREATE TABLE audit.audit_logs (id uuid PRIMARY KEY);"
            "GRANT INSERT, UPDATE ON audit.audit_logs TO PUBLIC",
        )
        frame = Audit(store).coverage()
    right = frame[frame["kind"] == "right"]

    assert right["status"].tolist() == ["exposed"]
    assert "INSERT, UPDATE" in right["sentence"].iloc[0]
    assert "partition_ahead" not in set(frame["kind"])
    assert frame[frame["kind"] == "table"]["object"].tolist() == ["shared.users"]


def test_a_database_without_a_trail_says_so(postgres_database: Callable[..., str]) -> None:
    with closing(PostgresStore(postgres_database())) as store:
        frame = Audit(store).coverage()

    assert frame["object"].tolist() == ["audit.audit_logs"]
    assert frame["status"].tolist() == ["uncovered"]


def test_a_collection_without_images_is_named(db: Database) -> None:
    """What a change replaced could not be recorded."""
    images = "changeStreamPreAndPostImages"
    said = []
    for enabled in (False, True):
        db.mongodb.database.command("collMod", "designs", **{images: {"enabled": enabled}})
        said.append(db.audit.images()[0].status)
    db.mongodb.database.drop_collection("designs")

    assert said == ["uncovered", "covered"]
    assert "There is no collection designs" in db.audit.images()[0].sentence


def test_a_mongodb_that_is_down_is_not_known(db: Database) -> None:
    """The rest is there, and no row says that all is well."""
    quick = config.settings().model_copy(update={"connect_timeout_seconds": 0.2})
    down = MongoStore("mongodb://127.0.0.1:1/none", settings=quick)
    frame = Audit(db.postgres, down).coverage()
    down.close()
    row = frame[frame["kind"] == "collection"].iloc[0]

    assert row["status"] == "not_known"
    assert "no answer from mongodb" in row["sentence"]
    assert set(frame["database"]) == {"postgres", "mongodb"}


STOPPED = datetime(2026, 11, 1, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        (None, "uncovered", "Changes of designs are not followed"),
        ({"running": False, "behind_seconds": 1.0}, "uncovered", "not run since 2026-11-01 03:00"),
        ({"running": True, "behind_seconds": None}, "behind", "first look"),
        ({"running": True, "behind_seconds": 60.0}, "covered", "are followed"),
        ({"running": True, "behind_seconds": 61.0}, "behind", "61 s behind"),
        ({"running": True, "behind_seconds": 300.0}, "behind", "300 s behind"),
        ({"running": True, "behind_seconds": 301.0}, "uncovered", "301 s behind"),
    ],
)
def test_a_follower_is_judged_by_its_lag(state, status, words) -> None:
    """One that does not run is as bad as one that is far behind, however recent its last word."""
    row = None if state is None else {"saved_at": STOPPED, **state}
    finding = findings.follower("designs", row)

    assert finding.status == status
    assert words in finding.sentence
    assert bool(finding.remedy) == (status == "uncovered" or "61" in words or "300" in words)


def test_a_gap_is_told_with_its_reason() -> None:
    row = {
        "name": "designs", "since": STOPPED, "until": STOPPED.replace(hour=4),
        "reason": "MongoDB had forgotten the changes.", "differences": 12,
    }  # fmt: skip
    (told,) = findings.gaps([row])
    (blind,) = findings.gaps([{**row, "since": None, "differences": None}])

    assert told.status == "gap"
    assert "from 2026-11-01 03:00:00 to 2026-11-01 04:00:00 UTC" in told.sentence
    assert "MongoDB had forgotten the changes. A comparison afterwards added 12" in told.sentence
    assert "from" not in blind.sentence.split("could")[0]


def test_the_command_says_what_is_not_captured_and_fails(db, monkeypatch, capsys) -> None:
    """Exit 1 while something is uncovered; JSON for programs."""
    monkeypatch.setattr(commands, "database", lambda **_: nullcontext(db))
    do(db.postgres, "CREATE TABLE shared.vouchers (id int)")
    with pytest.raises(typer.Exit) as ended:
        commands.audit_coverage()
    printed = capsys.readouterr().out
    with pytest.raises(typer.Exit):
        commands.audit_coverage(as_json=True)
    rows = json.loads(capsys.readouterr().out)

    assert ended.value.exit_code == 1
    assert "uncovered  postgres  Changes of shared.vouchers are not captured." in printed
    assert set(rows[0]) == set(COLUMNS)
