"""Filters and paging by key against a reference in Python, over both stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from fwdb.database import Database
from fwdb.repositories import Repository

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
OWNER = "6f1dbfd0-0000-4000-8000-000000000001"

# Few values, so that ties and gaps are common.
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["a", "b", "c"]),
            "gap": st.sampled_from([None, "", "x", "y"]),
            "number": st.integers(1, 3),
            "hours": st.integers(0, 2),
            "deleted": st.booleans(),
        }
    ),
    max_size=9,
)
KEYS = st.lists(
    st.tuples(st.sampled_from(["name", "gap", "number", "created_at", "id"]), st.booleans()),
    max_size=3,
    unique_by=lambda key: key[0],
)
FILTERS = st.one_of(
    st.tuples(st.just("gap"), st.sampled_from(["", "__ne"]), st.sampled_from([None, "", "x"])),
    st.tuples(
        st.just("gap"), st.just("__in"), st.lists(st.sampled_from([None, "", "x", "z"]), max_size=3)
    ),
    st.tuples(st.just("gap"), st.just("__null"), st.booleans()),
    st.tuples(
        st.just("number"),
        st.sampled_from(["", "__ne", "__gt", "__ge", "__lt", "__le"]),
        st.integers(0, 4),
    ),
    st.tuples(
        st.sampled_from(["gap", "name"]),
        st.sampled_from(["__gt", "__ge", "__lt", "__le"]),
        st.sampled_from(["", "b", "x"]),
    ),
)
KEPT = settings(
    max_examples=60,
    deadline=None,
    # Shrinking writes hundreds of tables; the explain phase would do so again.
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)


@dataclass
class Table:
    """A repository and what the fields above are called in it."""

    repository: Repository[Any]
    fields: dict[str, str]
    required: dict[str, Any]
    clear: Any

    def fill(self, rows: list[dict[str, Any]]) -> list[Any]:
        self.clear()
        self.repository.create_many(
            {
                **self.required,
                "name": row["name"],
                self.fields["gap"]: row["gap"],
                self.fields["number"]: row["number"],
                "created_at": NOON + timedelta(hours=row["hours"]),
                "deleted_at": NOON if row["deleted"] else None,
            }
            for row in rows
        )
        return [row for row in self.repository.with_deleted().find() if row.deleted_at is None]

    def field(self, name: str) -> str:
        return self.fields.get(name, name)


@pytest.fixture(params=["postgres", "mongodb"])
def table(request: pytest.FixtureRequest, module_db: Database) -> Table:
    if request.param == "postgres":
        clear = sa.text("TRUNCATE catalog.catalog_items")
        return Table(
            module_db.catalog_items,
            {"gap": "description", "number": "price"},
            {"type": "fabric"},
            lambda: module_db.postgres.execute(clear),
        )
    return Table(
        module_db.designs,
        {"gap": "avatar_id", "number": "version"},
        {"user_id": OWNER},
        lambda: module_db.mongodb.collection("designs").delete_many({}),
    )


def before(value: Any) -> tuple[bool, Any]:
    """The place of a value in a sort order: an empty one comes before all others."""
    return (value is not None, value or "")


def in_order(rows: list[Any], keys: list[tuple[str, bool]]) -> list[Any]:
    for name, descending in reversed(keys):
        rows = sorted(rows, key=lambda row: before(getattr(row, name)), reverse=descending)
    return rows


GAPS = [
    {"name": "a", "gap": gap, "number": 1, "hours": 0, "deleted": False}
    for gap in (None, "x", None, "y", "x")
]


@given(rows=ROWS, keys=KEYS, size=st.integers(1, 4))
@example(rows=GAPS, keys=[("gap", False)], size=1)
@example(rows=GAPS, keys=[("gap", True)], size=1)
@example(rows=GAPS, keys=[("number", True), ("gap", False), ("id", True)], size=2)
@KEPT
def test_paging_by_key_visits_every_row_once_in_order(table, rows, keys, size):
    """With ties, with empty fields, in any mixture of directions."""
    stored = table.fill(rows)
    named = [(table.field(name), descending) for name, descending in keys]
    sort = ",".join(("-" if descending else "") + name for name, descending in named) or None
    last = named[-1][1] if named else False
    full = [*named, ("id", last)] if "id" not in dict(named) else named

    seen: list[Any] = []
    cursor = None
    while True:
        part = table.repository.after(cursor, size=size, sort=sort)
        seen += part.items
        cursor = part.cursor
        assert len(seen) <= len(stored)
        if cursor is None:
            break
        assert len(part.items) == size

    assert [row.id for row in seen] == [row.id for row in in_order(stored, full)]
    pages = [
        row.id
        for number in range(1, len(stored) // size + 2)
        for row in table.repository.page(size=size, number=number, sort=sort).items
    ]
    assert pages == [row.id for row in seen]


@given(rows=ROWS, filters=st.lists(FILTERS, max_size=3))
@KEPT
def test_filters_find_what_python_would(table, rows, filters):
    """Empty fields are equal to None only, and never greater or less than anything."""
    stored = table.fill(rows)
    asked = {table.field(name) + suffix: value for name, suffix, value in filters}

    found = {row.id for row in table.repository.find(**asked)}

    assert found == {row.id for row in stored if all(fits(row, key, asked[key]) for key in asked)}
    assert table.repository.count(**asked) == len(found)
    assert set(table.repository.frame(["id"], **asked)["id"]) == found


def fits(row: Any, key: str, value: Any) -> bool:
    name, _, operator = key.partition("__")
    held = getattr(row, name)
    match operator:
        case "":
            return held == value
        case "ne":
            return held != value
        case "in":
            return held in value
        case "null":
            return (held is None) is value
        case _ if held is None:
            return False
        case "gt":
            return held > value
        case "ge":
            return held >= value
        case "lt":
            return held < value
        case _:
            return held <= value
