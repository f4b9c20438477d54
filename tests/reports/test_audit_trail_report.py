"""The report `audit_trail` on what it cannot see: what is not covered, not claimed, not proven."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from support.faults import check

from fwdb import reports
from fwdb.database import Database

ITEM = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"


@pytest.fixture
def told(db: Database) -> Database:
    """A trail with three changes, two of which nobody claims."""
    db.postgres.execute(sa.text("TRUNCATE audit.audit_logs"))
    actor = str(db.users.find(role="admin")[0].id)
    db.audit.log_create("CatalogItem", ITEM, {"price": 1}, user_id=actor)
    db.audit.log_update("CatalogItem", ITEM, {"price": 1}, {"price": 2})
    db.audit.log_update("CatalogItem", ITEM, {"price": 2}, {"price": 3})
    db.audit.log_read("CatalogItem", ITEM)
    db.postgres.execute(
        sa.text("UPDATE audit.audit_logs SET created_at = created_at - interval '5 seconds'")
    )
    return db


def ask(db: Database, **given: Any) -> reports.Report:
    return reports.open_report("audit_trail", db=db, since="1h", **given)


def test_what_is_not_covered_is_a_warning_with_its_remedy(told: Database) -> None:
    """Nobody follows designs, and a table was made that nobody captures."""
    told.postgres.execute(sa.text("CREATE TABLE shared.vouchers (id int)"))
    report = ask(told)
    table = report.table("not_covered").frame

    assert report.result.verdict == "warning"
    assert check(report, "coverage", "mongodb").status == "warning"
    assert "fwdb audit follow" in check(report, "coverage", "mongodb").action
    assert {"shared.vouchers", "designs"} <= set(table["object"])
    assert "covered" not in set(table["status"])
    assert table["status"].iloc[0] == "uncovered"


def test_changes_without_an_actor_are_listed_by_session(told: Database) -> None:
    """Reads are not, and with one user asked for there is nothing to list."""
    all_of_them = ask(told).table("unclaimed").frame
    of_one = ask(told, user_id=str(told.users.find(role="admin")[0].id)).table("unclaimed").frame

    assert all_of_them["changes"].tolist() == [2]
    assert all_of_them["action"].tolist() == ["UPDATE"]
    assert of_one.empty


def test_a_trail_that_was_never_sealed_proves_nothing(told: Database) -> None:
    """Not measured is no good sign and no bad one; how to seal is said."""
    report = ask(told)

    assert check(report, "integrity").status == "not_measured"
    assert "fwdb audit seal" in check(report, "integrity").action
    assert "proves that rows were not changed" in str(report.provenance)
    assert report.table("integrity").frame.empty


def test_a_row_that_was_altered_after_it_was_sealed_is_critical(told: Database) -> None:
    """The first sentence of the verdict is the finding; untouched, the head is on the page."""
    told.audit.seal()
    intact = ask(told)
    told.postgres.execute(
        sa.text(
            "UPDATE audit.audit_logs SET new_values = jsonb_build_object('price', 9) "
            "WHERE action = 'UPDATE'"
        )
    )
    altered = ask(told)
    facts = intact.table("integrity").frame.set_index("fact")["value"]

    assert check(intact, "integrity").status == "ok"
    assert len(facts["head"]) == 64
    assert facts["head"] in str(intact.provenance)
    assert check(altered, "integrity").status == "critical"
    assert altered.result.verdict == "critical"
    assert altered.result.summary.startswith(check(altered, "integrity").sentence[:40])
