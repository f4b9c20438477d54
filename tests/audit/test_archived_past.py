"""Going back behind the months that left for files: what the table alone cannot tell is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pandas as pd
import pytest
from support.retention import (
    RESET,
    days_into,
    month,
    put,
)
from support.sql import do

from fwdb import errors, reports
from fwdb.audit import Audit, source
from fwdb.database import Database
from fwdb.stores import MongoStore

ITEM = "0190c1a0-0000-7000-8000-00000000000e"
GONE = "0190c1a0-0000-7000-8000-00000000000f"
LAST = f'{{"id": "{GONE}", "name": "y", "price": 7, "properties": {{"a": 1.10}}}}'
BEFORE, BETWEEN = days_into(15, 1), days_into(14, 5)  # the first change, and after it


@pytest.fixture
def audit(
    postgres_database: Callable[..., str], template: str, open_trail: Callable[[str], Audit]
) -> Audit:
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
    action = "CREATE" if old is None else "DELETE" if new is None else "UPDATE"
    given = {"old_values": old, "new_values": new}
    return {
        "created_at": at,
        "action": action,
        "entity_type": "CatalogItem",
        "entity_id": id,
        "origin": "trigger",
        **{k: json.dumps(v) if isinstance(v, dict) else v for k, v in given.items()},
    }


def price(frame: pd.DataFrame) -> float:
    return float(frame.iloc[0]["price"])


def test_the_table_alone_says_from_when_on_it_knows(audit):
    """Its values of before are the oldest that it has, and `known_since` says so."""
    early, late = audit.as_of("CatalogItem", BEFORE), audit.as_of("CatalogItem", days_into(1, 1))

    assert price(late) == 3
    assert late.iloc[0]["known_since"] < days_into(1, 1)
    assert price(early) == 2
    assert early.iloc[0]["known_since"] == month(12) > BEFORE
    # Bringing back what only files know would write the state of a later time.
    with pytest.raises(errors.ParameterError, match=f"'to' .* {month(12):%Y-%m-%d}"):
        audit.revert("CatalogItem", ITEM, to=BEFORE)
    with pytest.raises(errors.ParameterError, match=r"'since' .* with_archives\(\)"):
        audit.diff("CatalogItem", ITEM, BEFORE)

    plan = audit.revert("CatalogItem", ITEM, to=month(12))
    assert plan[["field", "now", "then"]].values.tolist() == [["price", "3", "2"]]
    assert audit.diff("CatalogItem", ITEM, month(12))["field"].tolist() == ["price"]


def test_with_archives_the_past_is_whole(audit, monkeypatch):
    """As it was before the months left: states, differences, and each change."""
    trail = audit.with_archives()
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
    assert found[["field", "before", "after", "changes"]].values.tolist() == [
        ["price", "1", "3", 2]
    ]
    assert trail.timeline("CatalogItem", ITEM)["after"].tolist() == ["2", "3"]
    assert '{"a": 1.10}' in trail.timeline("CatalogItem", GONE)["after"].tolist()
    assert there.loc[there["price"] == 7, "properties"].tolist() == ['{"a": 1.10}']
    changes = trail.who_changed("price", since=month(15))
    assert changes["changed_at"].is_monotonic_decreasing
    assert changes["after"].isna().sum() == 1
    assert changes["after"].dropna().tolist() == ["3", "7", "2"]
    assert changes.dtypes.to_dict() == audit.who_changed("price").dtypes.to_dict()
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
        return [
            *found,
            asked.who_changed("name", since=month(17)),
            asked.timeline("Design", OBJECT_ID),
        ]

    before = answers(trail)
    assert trail.retain().removed
    after = answers(trail.with_archives())

    assert max(len(frame) for frame in before) > 3
    for old, new in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(old, new)


OBJECT_ID = "65a1b2c3d4e5f60718293a4b"
DESIGN = "65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b"  # the same as the table keeps it


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
        steps = [
            (15, None, user),
            (14, user, user | {"name": "v"}),
            (13, user | {"name": "v"}, None),
        ]
        rows += [
            changed(days_into(ago, number), old, new, id=life) | {"entity_type": "User"}
            for ago, old, new in steps[: number + 1]
        ]
    return rows


def test_the_command_line_goes_back_with_archives(audit, fwdb):
    """And says which time is too early without."""
    fwdb = fwdb(audit)
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
def test_a_report_says_that_a_part_of_its_window_is_in_archives(audit, servers, report):
    """And nothing of it when the window begins later."""
    more = {"entity_type": "CatalogItem", "entity_id": ITEM} if report == "entity_history" else {}
    with Database(audit.postgres, MongoStore(servers.mongodb), settings=audit.settings) as db:
        long, short = (
            reports.open_report(report, db=db, since=since, **more).result.checks
            for since in (f"{BEFORE:%Y-%m-%dT%H:%MZ}", "30d")
        )
    (said,) = [check for check in long if check.id == f"{report}.archived"]

    assert said.status == "not_available"
    assert f"before {month(12):%Y-%m-%d} are in archived months" in said.sentence
    assert not [check for check in short if check.id == f"{report}.archived"]
    assert audit.complete_since() == month(12)
