"""What is not captured is named, with what would help; what is captured is not complained of."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from fwdb.audit import Audit
from fwdb.audit import coverage_findings as findings
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

COLUMNS = ["database", "object", "kind", "status", "sentence", "remedy"]

# As the revision of capture leaves them, for as long as a table of their names is not there.
CAPTURE = """
CREATE TABLE audit.captured (
    relation text PRIMARY KEY, entity_type text NOT NULL, redact jsonb NOT NULL DEFAULT '{}',
    ignore text[] NOT NULL DEFAULT '{}', mode text NOT NULL DEFAULT 'direct',
    columns text[] NOT NULL, generated_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION audit.capture_nothing() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog AS $$ BEGIN RETURN NULL; END $$;
"""
TABLE = """
INSERT INTO audit.captured (relation, entity_type, redact, ignore, columns)
SELECT '{name}', '{entity}', '{redact}', ARRAY['updated_at'], array_agg(CAST(attname AS text))
FROM pg_attribute WHERE attrelid = CAST('{name}' AS regclass) AND attnum > 0;
CREATE TRIGGER "00_fwdb_audit" AFTER INSERT OR UPDATE OR DELETE ON {name}
    FOR EACH ROW EXECUTE FUNCTION audit.capture_nothing();
CREATE TRIGGER "00_fwdb_audit_truncate" BEFORE TRUNCATE ON {name}
    FOR EACH STATEMENT EXECUTE FUNCTION audit.capture_nothing();
ALTER TABLE {name} ENABLE ALWAYS TRIGGER "00_fwdb_audit";
ALTER TABLE {name} ENABLE ALWAYS TRIGGER "00_fwdb_audit_truncate";
"""
TABLES = {
    "shared.users": ("User", '{"password_hash": "mask"}'),
    "avatar.avatars": ("Avatar", "{}"),
    "catalog.catalog_items": ("CatalogItem", "{}"),
}


class _Undo(Exception):
    """Ends the transaction of a test."""


@pytest.fixture
def db(module_db: Database) -> Iterator[Database]:
    """The database of this file in a transaction that is undone at the end."""
    with contextlib.suppress(_Undo), module_db.postgres.transaction():
        yield module_db
        raise _Undo


@pytest.fixture
def captured(db: Database) -> Database:
    """A database whose tables are captured."""
    there = db.postgres.rows(sa.text("SELECT to_regclass('audit.captured') AS t"))[0]["t"]
    if there is None:
        db.postgres.execute(sa.text(CAPTURE))
        for name, (entity, redact) in TABLES.items():
            statements = TABLE.format(name=name, entity=entity, redact=redact)
            db.postgres.execute(sa.text(statements.replace(":", r"\:")))
    return db


def found(db: Database, **wanted: str) -> pd.DataFrame:
    """What coverage says of PostgreSQL; `wanted` are values of columns."""
    frame = db.audit.coverage()
    frame = frame[frame["database"] == "postgres"]
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_a_migrated_database_is_covered(captured: Database) -> None:
    """The check of CI: nothing of PostgreSQL is uncovered, and what is left out is said."""
    frame = captured.audit.coverage()
    tables = found(captured, kind="table", status="covered")

    assert list(frame.columns) == COLUMNS
    assert found(captured, status="uncovered")["sentence"].tolist() == []
    assert set(tables["object"]) == set(TABLES)
    assert found(captured, status="redacted")["object"].str.contains("password_hash").any()
    assert not frame["object"].str.contains("monitoring|alembic").any()
    assert found(captured, kind="partition_ahead")["status"].tolist() == ["covered"]


@pytest.mark.parametrize(
    ("statement", "object", "kind", "words", "remedy"),
    [
        (
            'ALTER TABLE shared.users DISABLE TRIGGER "00_fwdb_audit"',
            "shared.users 00_fwdb_audit",
            "trigger",
            "is switched off",
            'ALTER TABLE shared.users ENABLE ALWAYS TRIGGER "00_fwdb_audit"',
        ),
        (
            'ALTER TABLE shared.users ENABLE TRIGGER "00_fwdb_audit"',
            "shared.users 00_fwdb_audit",
            "trigger",
            "session_replication_role = replica",
            "ENABLE ALWAYS",
        ),
        (
            'DROP TRIGGER "00_fwdb_audit_truncate" ON avatar.avatars',
            "avatar.avatars 00_fwdb_audit_truncate",
            "trigger",
            "TRUNCATE would leave no trace",
            "fwdb migrate",
        ),
        (
            "ALTER TABLE catalog.catalog_items ADD COLUMN weight int",
            "catalog.catalog_items.weight",
            "column",
            "column weight of catalog.catalog_items are not captured",
            "fwdb migrate",
        ),
        (
            "CREATE TABLE shared.vouchers (id int)",
            "shared.vouchers",
            "table",
            "Changes of shared.vouchers are not captured",
            "fw.audit_table('shared.vouchers')",
        ),
        (
            "CREATE TABLE catalog.old_items () INHERITS (catalog.catalog_items)",
            "catalog.old_items",
            "partition",
            "written to catalog.old_items directly are not captured",
            "fwdb migrate",
        ),
        (
            "GRANT DELETE, SELECT ON audit.audit_logs TO PUBLIC",
            "audit.audit_logs PUBLIC",
            "right",
            "Everybody may DELETE on audit.audit_logs",
            "REVOKE DELETE ON audit.audit_logs FROM PUBLIC",
        ),
        (
            "GRANT UPDATE (reason) ON audit.audit_logs TO PUBLIC",
            "audit.audit_logs PUBLIC",
            "right",
            "may UPDATE",
            "REVOKE UPDATE",
        ),
    ],
    ids=["off", "origin", "truncate", "column", "table", "partition", "right", "column_right"],
)
def test_a_fault_is_named_with_its_remedy(
    captured: Database, statement: str, object: str, kind: str, words: str, remedy: str
) -> None:
    """The one thing that somebody changed, and no other."""
    captured.postgres.execute(sa.text(statement))
    frame = found(captured, status="uncovered")

    assert frame["object"].tolist() == [object]
    assert frame["kind"].tolist() == [kind]
    assert words in frame["sentence"].iloc[0]
    assert remedy in frame["remedy"].iloc[0]


def test_what_the_server_computes_is_not_missed(captured: Database) -> None:
    """A virtual column has no value in a trigger; it follows from the others (PostgreSQL 18)."""
    captured.postgres.execute(
        sa.text(
            "ALTER TABLE shared.users ADD COLUMN initial text GENERATED ALWAYS AS (left(first_name, 1)) VIRTUAL"
        )
    )

    assert found(captured, status="uncovered")["object"].tolist() == []


def test_months_that_are_missing_are_said_before_they_are_needed(db: Database) -> None:
    """The next one is urgent, one after it is late; this month and a hole count too."""
    rows = db.postgres.rows("audit_coverage_months", months=3)
    names = [row["table_name"] for row in rows]
    ready = [db.audit.standing().months_ahead]
    for name in reversed(names):
        db.postgres.execute(sa.text(f"DROP TABLE {name}"))
        ready.append(db.audit.standing().months_ahead)
    frame = found(db, kind="partition_ahead")

    assert ready == [3, 2, 1, 0, -1]
    assert frame["status"].tolist() == ["uncovered", "uncovered", "behind", "behind"]
    assert set(frame["object"]) == set(names)
    assert frame["remedy"].str.contains("fwdb audit retain").all()


def test_a_default_partition_takes_every_month(db: Database) -> None:
    """A change of a month without a table of its own does not fail there."""
    last = db.postgres.rows("audit_coverage_months", months=3)[-1]["table_name"]
    db.postgres.execute(sa.text(f"DROP TABLE {last}"))
    db.postgres.execute(sa.text("CREATE TABLE audit.rest PARTITION OF audit.audit_logs DEFAULT"))

    assert db.audit.standing().months_ahead == 3


def test_rights_on_a_table_that_fwdb_found_are_exposed_and_not_a_fault(
    existing: PostgresStore,
) -> None:
    """Its programs write to it, and have to, until they do not."""
    existing.execute(sa.text("GRANT INSERT, UPDATE ON audit.audit_logs TO PUBLIC"))
    frame = Audit(existing).coverage()
    right = frame[frame["kind"] == "right"]

    assert right["status"].tolist() == ["exposed"]
    assert "INSERT, UPDATE" in right["sentence"].iloc[0]
    assert "partition_ahead" not in set(frame["kind"])
    assert frame[frame["kind"] == "table"]["object"].tolist() == ["shared.users"]


def test_a_database_without_a_trail_says_so(postgres_database: Callable[..., str]) -> None:
    """An empty one, and the oldest server that there is."""
    store = PostgresStore(postgres_database())
    frame = Audit(store).coverage()
    store.close()

    assert frame["object"].tolist() == ["audit.audit_logs"]
    assert frame["status"].tolist() == ["uncovered"]


@pytest.fixture
def existing(postgres_database: Callable[..., str]) -> Any:
    """A database of the existing service."""
    from conftest import EXISTING  # tests/audit

    store = PostgresStore(postgres_database())
    store.execute(sa.text(EXISTING))
    yield store
    store.close()


# -- MongoDB ---------------------------------------------------------------------------------------


def test_a_collection_without_images_is_named(db: Database) -> None:
    """What a change replaced could not be recorded."""
    images = "changeStreamPreAndPostImages"
    said = []
    for enabled in (False, True):
        db.mongodb.database.command("collMod", "designs", **{images: {"enabled": enabled}})
        said.append(db.audit.images().status)
    db.mongodb.database.drop_collection("designs")

    assert said == ["uncovered", "covered"]
    assert "There is no collection designs" in db.audit.images().sentence


def test_a_mongodb_that_is_down_is_not_known(db: Database) -> None:
    """The rest is there, and no row says that all is well."""
    from fwdb import config

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
def test_a_follower_is_judged_by_its_lag(
    state: dict[str, Any] | None, status: str, words: str
) -> None:
    """One that does not run is as bad as one that is far behind, however recent its last word."""
    row = None if state is None else {"saved_at": STOPPED, **state}
    finding = findings.follower("designs", row)

    assert finding.status == status
    assert words in finding.sentence
    assert bool(finding.remedy) == (status == "uncovered" or "61" in words or "300" in words)


def test_a_gap_is_told_with_its_reason() -> None:
    """From when to when, why, and what a comparison found."""
    row = {
        "follower": "designs", "since": STOPPED, "until": STOPPED.replace(hour=4),
        "reason": "MongoDB had forgotten the changes.", "differences": 12,
    }  # fmt: skip
    (told,) = findings.gaps([row])
    (blind,) = findings.gaps([{**row, "since": None, "differences": None}])

    assert told.status == "gap"
    assert "from 2026-11-01 03:00:00 to 2026-11-01 04:00:00 UTC" in told.sentence
    assert "MongoDB had forgotten the changes. A comparison afterwards added 12" in told.sentence
    assert "from" not in blind.sentence.split("could")[0]


def test_the_command_says_what_is_not_captured_and_fails(
    captured: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 while something is uncovered; JSON for programs."""
    from contextlib import nullcontext

    import typer

    from fwdb.cli import auditing

    monkeypatch.setattr(auditing, "database", lambda **_: nullcontext(captured))
    captured.postgres.execute(sa.text("CREATE TABLE shared.vouchers (id int)"))
    with pytest.raises(typer.Exit) as ended:
        auditing.audit_coverage()
    printed = capsys.readouterr().out
    with pytest.raises(typer.Exit):
        auditing.audit_coverage(as_json=True)
    rows = json.loads(capsys.readouterr().out)

    assert ended.value.exit_code == 1
    assert "uncovered  postgres  Changes of shared.vouchers are not captured." in printed
    assert set(rows[0]) == set(COLUMNS)
