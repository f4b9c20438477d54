"""The life of one entity: every change of it, in order, and where one is missing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from support.faults import check

from fwdb import charts, reports
from fwdb.audit.history import breaks, field_changes
from fwdb.database import Database
from fwdb.errors import UnknownName
from fwdb.models.registry import is_personal

ITEM = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
OTHER = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2c"
DESIGN = "65a1b2c3d4e5f60718293a4b"
SECRETS = {"email": "anna@example.com", "first_name": "Annabella", "role": "admin"}


def history(*rows: tuple[str, Any, Any]) -> pd.DataFrame:
    """Rows of (action, old, new), a minute apart, oldest first."""
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    return pd.DataFrame(
        [
            (begin + timedelta(minutes=n), action, *(v and json.dumps(v) for v in values))
            for n, (action, *values) in enumerate(rows)
        ],
        columns=["created_at", "action", "old_values", "new_values"],
    )


def changed(*rows: tuple[str, Any, Any]) -> list[tuple[str, Any, Any]]:
    return [(c.field, c.before, c.after) for c in field_changes(history(*rows))]


def test_a_change_is_told_field_by_field() -> None:
    """Objects down to what differs in them; a list as a whole; bookkeeping not at all."""
    old = {"price": 1, "tags": ["a"], "look": {"hair": "red", "skin": 3}, "updated_at": "x"}
    new = {"price": 2, "tags": ["a", "b"], "look": {"hair": "blue", "skin": 3}, "updated_at": "y"}

    assert changed(("UPDATE", old, new)) == [
        ("price", 1, 2),
        ("tags", ["a"], ["a", "b"]),
        ("look.hair", "red", "blue"),
    ]
    assert changed(("CREATE", None, {"price": 1}), ("DELETE", {"price": 1}, None)) == [
        ("price", None, 1),
        ("price", 1, None),
    ]
    assert changed(("UPDATE", {"note": None}, {"note": "x"})) == [("note", None, "x")]
    assert changed(("READ", None, None)) == []


MADE = ("CREATE", None, {"price": 1, "name": "x", "updated_at": "2026-11-01T00:00:00+00:00"})


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        ([MADE, ("UPDATE", {"price": 1}, {"price": 2}), ("DELETE", {"price": 2}, None)], []),
        ([MADE, ("UPDATE", {"price": 5}, {"price": 2})], ["price"]),
        ([MADE, ("DELETE", {"price": 9, "name": "y"}, None)], ["price", "name"]),
        ([MADE, ("READ", None, None), ("UPDATE", {"price": 1}, {"price": 2})], []),
        # A soft deletion has both sides; what comes after goes on from there.
        ([MADE, ("DELETE", {"gone": None}, {"gone": 1}), ("UPDATE", {"price": 3}, {"price": 4})],
         ["price"]),
        # After a removal anything may be made anew.
        ([MADE, ("DELETE", {"price": 1}, None), ("CREATE", None, {"price": 7})], []),
        ([("UPDATE", {"price": 5}, {"price": 2})], []),
        ([("CREATE", None, {"x": "[redacted]"}), ("UPDATE", {"x": "a"}, {"x": "b"})], []),
        ([("CREATE", None, {"at": "2026-11-01T00:00:00.10+00:00"}),
          ("UPDATE", {"at": "2026-11-01T00:00:00.1+00:00"}, {"at": "2026-12-01"})], []),
        ([MADE, ("UPDATE", {"price": "1"}, {"price": 2})], []),
        ([MADE, ("UPDATE", {"updated_at": "2020"}, {"updated_at": "2021"})], []),
    ],
)  # fmt: skip
def test_a_missing_change_shows_as_a_break(rows: Any, fields: list[str]) -> None:
    """Each change begins with what the one before left, as far as that can be compared."""
    assert [b.field for b in breaks(history(*rows))] == fields


@pytest.mark.parametrize(
    ("kind", "field", "hidden"),
    [
        ("User", "email", True),
        ("User", "role", False),
        ("User", "shoe_size", True),  # of an existing table, unknown to fwdb
        ("Avatar", "measurements.height", True),
        ("Avatar", "name", True),
        ("Avatar", "user_id", False),
        ("CatalogItem", "name", False),
        ("Design", "metadata.description", False),
        ("Invoice", "total", True),
    ],
)
def test_of_persons_only_what_is_known_to_be_harmless_is_shown(
    kind: str, field: str, hidden: bool
) -> None:
    """A report may be passed on, and a table may have columns that nobody thought of."""
    assert is_personal(kind, field) == hidden


# -- the report ------------------------------------------------------------------------------------


@pytest.fixture
def told(db: Database) -> Database:
    """An item with a life, a user with one change, and a design, over the last hours."""
    actor = str(db.users.find(role="admin")[0].id)
    db.postgres.execute(sa.text("TRUNCATE audit.audit_logs"))
    db.audit.log_create("CatalogItem", ITEM, {"price": 1, "name": "Coat"}, user_id=actor)
    db.audit.log_update("CatalogItem", ITEM, {"price": 1}, {"price": 2}, user_id=actor)
    db.audit.log_read("CatalogItem", ITEM, user_id=actor)
    db.audit.log_update("User", OTHER, SECRETS, {**SECRETS, "email": "b@example.com"})
    db.audit.log_create("Design", DESIGN, {"name": "Dress"}, ip_address="192.0.2.7")
    db.postgres.execute(
        sa.text("UPDATE audit.audit_logs SET created_at = created_at - interval '5 seconds'")
    )
    return db


def ask(db: Database, **given: Any) -> reports.Report:
    return reports.open_report("entity_history", db=db, **given)


def test_without_an_id_the_entity_that_changed_most_is_told(told: Database) -> None:
    """So that the report can be made with no parameter; others are listed."""
    report = ask(told)
    changes = report.table("changes").frame

    assert report.result.verdict == "ok"
    assert report.result.summary.startswith("CatalogItem 0190a1b2… was changed 2 times by 1 user")
    assert "read 1 time" in report.result.summary
    assert changes["field"].tolist() == ["price", "name", "price"]
    assert changes["before"].tolist()[0] == "1"
    assert changes["after"].tolist()[0] == "2"
    assert report.table("others").frame["entity_type"].tolist()[0] == "CatalogItem"
    assert len(report.table("others").frame) == 3
    assert len(report.table("events").frame) == 3
    assert check(report, "origin").status == "ok"
    assert charts.title_of(report.chart("entity_history").figure) == (
        "CatalogItem 0190a1b2… changed 2 times"
    )
    assert charts.title_of(report.chart("entity_actors").figure) == (
        "1 user changed CatalogItem 0190a1b2…"
    )


def test_an_id_alone_finds_its_type(told: Database) -> None:
    """An ObjectId as well as a uuid, in any spelling."""
    design = ask(told, entity_id=DESIGN.upper())
    item = ask(told, entity_id=ITEM.replace("-", ""))

    assert "Design 65a1b2c3…" in design.result.summary
    assert "nothing says by whom" in design.result.summary
    assert "CatalogItem 0190a1b2…" in item.result.summary
    assert charts.title_of(design.chart("entity_actors").figure).startswith("Nothing says who")


def test_personal_data_is_shown_only_when_asked_for(told: Database) -> None:
    """Not in a table, a chart or a file; that something changed is seen all the same."""
    hidden = ask(told, entity_type="User")
    shown = ask(told, entity_type="User", show_personal=True)
    design = ask(told, entity_type="Design").table("events").frame

    row = hidden.table("changes").frame.iloc[0]
    assert (row["field"], row["before"], row["after"]) == ("email", "[personal]", "[personal]")
    text = hidden.result.json() + "".join(table.csv() for table in hidden.result.tables)
    text += "".join(charts.to_svg(figure) for figure in hidden.result.charts.values())
    assert "example.com" not in text
    assert "Annabella" not in text
    assert shown.table("changes").frame["before"].tolist() == ["anna@example.com"]
    assert design["said_address"].tolist() == ["[personal]"]
    assert "mind who gets this" in str(shown.provenance)


def test_a_change_that_left_no_row_is_a_warning(told: Database) -> None:
    """Two values that do not follow from each other: the field and the time between are said."""
    told.audit.log_update("CatalogItem", ITEM, {"price": 9}, {"price": 10})
    told.postgres.execute(
        sa.text("UPDATE audit.audit_logs SET created_at = created_at - interval '5 seconds'")
    )
    report = ask(told)

    assert report.result.verdict == "warning"
    assert "price of CatalogItem 0190a1b2… changed between" in report.result.summary
    assert "fwdb audit verify" in check(report, "breaks").action


def test_a_window_shows_its_part_of_a_life(told: Database) -> None:
    """What was before counts for where it came from, and is not in the tables."""
    told.postgres.execute(
        sa.text(
            "UPDATE audit.audit_logs SET created_at = created_at - interval '2 hours' "
            "WHERE action = 'CREATE'"
        )
    )
    report = ask(told, since="1h", entity_type="CatalogItem")

    assert report.table("changes").frame["action"].tolist() == ["UPDATE"]
    assert "It was made at" in check(report, "origin").sentence
    kpis = {kpi.id: kpi.value for kpi in report.result.kpis}
    assert kpis["earlier"] == 1
    assert kpis["changes"] == 1


def test_an_entity_without_history_has_no_data(told: Database) -> None:
    """One that nobody knows, one that is quiet in the window, and a window without changes."""
    nobody = ask(told, entity_id="0190a1b2-c3d4-7e5f-8a6b-000000000000")
    quiet = ask(told, entity_id=ITEM, entity_type="CatalogItem", since="2h", until="1h")
    nothing = ask(told, since="2h", until="1h")

    for report, words in (
        (nobody, "The trail knows nothing of 0190a1b2-c3d4-7e5f-8a6b-000000000000"),
        (quiet, f"The trail knows nothing of {ITEM} up to the end of this window"),
        (nothing, "Nothing was changed in this window"),
    ):
        assert report.result.verdict == "no_data"
        assert words in report.result.summary
        drawn = [t.get_text() for t in report.chart("entity_history").figure.texts]
        assert "No data in this window" in drawn
        assert report.table("changes").frame.empty


def test_most_changed_refuses_what_it_does_not_know(told: Database) -> None:
    """With the nearest right name."""
    with pytest.raises(UnknownName, match="did you mean 'User'"):
        told.audit.most_changed(entity_type="Usr")


def test_changes_that_nobody_claims_are_told_by_session(told: Database) -> None:
    """The server knows who had logged in; reads are no changes."""
    found = told.audit.unclaimed("1h")

    assert found["changes"].sum() == 2
    assert set(found["entity_type"]) == {"User", "Design"}
    assert found["db_user"].notna().all()
