"""What a repository promises, over both stores: one suite, run for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
import sqlalchemy as sa

from fwdb.database import Database
from fwdb.errors import (
    DuplicateKey,
    InvalidData,
    NotFound,
    ParameterError,
    StaleVersion,
    UnknownName,
)
from fwdb.repositories import Repository

MISSING = {
    "postgres": "0190a3c2-0000-7000-8000-000000000000",
    "mongodb": "65a1b2c3d4e5f60718293a4b",
}


@dataclass
class Case:
    """A repository of one store, empty, and the names of comparable fields in it."""

    repository: Repository[Any]
    group: str
    groups: tuple[str, str]
    gap: str
    part: str
    required: dict[str, Any]
    transaction: Callable[[], Any]
    version: str

    def make(self, name: str = "one", group: int = 0, **more: Any) -> Any:
        values = {**self.required, "name": name, self.group: self.groups[group], **more}
        return self.repository.create(**values)

    @property
    def missing(self) -> str:
        return MISSING[self.repository.database]


@pytest.fixture(params=["postgres", "mongodb"])
def case(request: pytest.FixtureRequest, module_db: Database) -> Case:
    """Catalog items in PostgreSQL, designs in MongoDB."""
    db = module_db
    if request.param == "postgres":
        module_db.postgres.execute(sa.text("TRUNCATE catalog.catalog_items"))
        return Case(
            db.catalog_items, "type", ("fabric", "pattern"), "description", "properties",
            {}, db.transaction, "updated_at",
        )  # fmt: skip
    db.mongodb.collection("designs").delete_many({})
    return Case(
        db.designs, "status", ("draft", "published"), "avatar_id", "metadata",
        {"user_id": str(uuid4())}, db.mongodb.transaction, "version",
    )  # fmt: skip


@pytest.fixture
def items(case: Case) -> Repository[Any]:
    return case.repository


def names(rows: Any) -> list[str]:
    return [row.name for row in rows]


# -- one row ----------------------------------------------------------------------------------


def test_what_is_created_is_what_is_read(case, items):
    """`create` gives the row as the database holds it, defaults and times included."""
    made = case.make("Ärmel 'x' \"y\" $z %_ \\", **{case.part: {"tags": ["a"], "n": {"k": 1.5}}})

    assert items.get(made.id) == made
    assert pd.DataFrame([asdict(made)])["name"].tolist() == [made.name]
    with pytest.raises(AttributeError):
        made.name = "two"
    assert made.created_at.tzinfo is not None
    assert abs(datetime.now(UTC) - made.created_at) < timedelta(minutes=1)
    assert made.deleted_at is None


@pytest.mark.parametrize("id", ["", "abc", "x' OR 1=1", None, 7, {"$gt": ""}])
def test_text_that_is_no_id_is_refused(case, items, id):
    """A typing error in an id is told apart from a row that is gone, whose error has the id."""
    with pytest.raises(NotFound) as caught:
        items.get(case.missing)
    assert caught.value.id == case.missing
    with pytest.raises(ParameterError, match=r"'id' is .*; (it takes|give) a"):
        items.get(id)


# -- filters ----------------------------------------------------------------------------------


def test_find_filters_sorts_and_limits(case, items):
    """Filters hold together; a minus sorts downwards; several keys count from the left. What is
    found is counted, and exists.
    """
    for name, group in (("a", 0), ("b", 1), ("c", 1), ("d", 1)):
        case.make(name, group)
    wanted = {case.group: case.groups[1]}

    assert names(items.find(sort="-name", **wanted)) == ["d", "c", "b"]
    assert names(items.find(sort="name", limit=2, **wanted)) == ["b", "c"]
    assert names(items.find(sort=f"-{case.group}, name")) == ["b", "c", "d", "a"]
    assert items.find(name="b", **{case.group: case.groups[0]}) == []
    assert (items.count(), items.count(name__in=["a", "b", "x"])) == (4, 2)
    assert (items.exists(name="a"), items.exists(name="x")) == (True, False)
    assert [items.first(sort=sort).name for sort in ("name", "-name")] == ["a", "d"]
    assert items.first(name="x") is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a%", ["Abc", "a.c", "a%c"]),
        ("a_c", ["Abc", "a.c", "a%c"]),
        ("a.c", ["a.c"]),
        (r"a\%c", ["a%c"]),
        ("%(%", ["x(\ny"]),
        ("x%y", ["x(\ny"]),
        ("", []),
    ],
)
def test_like_fits_the_whole_text_in_either_case(case, items, pattern, expected):
    """Only % and _ are special, also where the store's own pattern language has more."""
    for name in ("Abc", "a.c", "a%c", "x(\ny"):
        case.make(name)

    assert sorted(names(items.find(name__like=pattern))) == sorted(expected)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"tags": ["b"]}, ["one"]),
        ({"tags": ["b", "a"]}, ["one"]),
        ({"size": {"width": 5}}, ["two"]),
        ({"tags": []}, ["one", "two"]),
        ({"tags": ["z"]}, []),
        ({}, ["one", "two"]),
    ],
)
def test_contains_looks_into_objects(case, items, part, expected):
    """A part fits when each of its keys, and each of its list elements, is there."""
    case.make("one", **{case.part: {"tags": ["a", "b"]}})
    case.make("two", **{case.part: {"tags": [], "size": {"width": 5, "height": 7}}})

    assert names(items.find(sort="name", **{f"{case.part}__contains": part})) == expected


def test_times_are_asked_by_span_or_by_time(case, items):
    """A span reaches back from now; a time without a zone is refused."""
    old = case.make("old", created_at=datetime.now(UTC) - timedelta(days=3))
    case.make("new")

    assert names(items.find(created_at__ge="24h")) == ["new"]
    assert names(items.find(created_at__lt="24h")) == ["old"]
    assert names(items.find(created_at=old.created_at)) == ["old"]
    with pytest.raises(ParameterError, match="without a zone"):
        items.find(created_at__ge="2026-11-01T00:00")


def test_none_is_a_value_like_any_other(case, items):
    """Empty fields are found by None, and counted by 'not equal' as a person would."""
    case.make("empty")
    full = case.make("full", **{case.gap: "x"})

    assert names(items.find(**{case.gap: None})) == ["empty"]
    assert names(items.find(**{f"{case.gap}__ne": None})) == ["full"]
    assert names(items.find(**{f"{case.gap}__ne": "x"})) == ["empty"]
    assert names(items.find(**{f"{case.gap}__in": [None, "y"]})) == ["empty"]
    assert items.get(full.id) == full


@pytest.mark.parametrize(
    ("ask", "wrong", "right"),
    [
        (lambda r: r.find(nam="x"), "nam", "name"),
        (lambda r: r.count(name__lik="x"), "lik", "like"),
        (lambda r: r.find(sort="-created"), "created", "created_at"),
        (lambda r: r.frame(columns=["nmae"]), "nmae", "name"),
        (lambda r: r.create(nmae="x"), "nmae", "name"),
        (lambda r: r.page(total="exakt"), "exakt", "exact"),
        (lambda r: r.iterate(nam="x"), "nam", "name"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(items, ask, wrong, right):
    """Whatever is misspelt, the sentence holds it and the right one."""
    with pytest.raises(UnknownName, match=f"'{wrong}'.*did you mean '{right}'") as caught:
        ask(items)

    assert caught.value.nearest == right


@pytest.mark.parametrize(
    "filters",
    [
        {"name": 7},
        {"name": {"$ne": None}},
        {"name__in": "abc"},
        {"name__in": 7},
        {"name__like": None},
        {"name__like": "x\\"},
        {"name__gt": None},
        {"name__contains": "x"},
        {"created_at__ge": "lately"},
        {"created_at__like": "2026%"},
        {"deleted_at__null": "yes"},
        {"name": "\ud800"},
    ],
)
def test_a_value_that_does_not_fit_is_refused_before_it_is_sent(items, filters):
    """One sentence names the filter."""
    with pytest.raises(ParameterError, match=next(iter(filters))):
        items.find(**filters)


@pytest.mark.parametrize(
    "value", [{"$gt": ""}, {"a": {"$where": "1"}}, {"a.b": 1}, {"a": [{"$x": 1}]}]
)
def test_an_operator_hidden_in_a_value_is_refused(case, items, value):
    """A filter value is data in every store."""
    for suffix in ("", "__ne", "__contains"):
        with pytest.raises(ParameterError, match="keys are text"):
            items.find(**{case.part + suffix: value})


# -- pages ------------------------------------------------------------------------------------


def test_pages_know_their_neighbours(case, items):
    """The last page knows the total, the others only when asked."""
    for number in range(5):
        case.make(f"n{number}")

    first = items.page(size=2, sort="name")
    last = items.page(size=2, number=3, sort="name")

    assert names(first.items) == ["n0", "n1"]
    assert (first.previous, first.next, first.total, first.pages) == (None, 2, None, None)
    assert names(last.items) == ["n4"]
    assert (last.previous, last.next, last.total, last.pages) == (2, None, 5, 3)
    full = items.page(size=5)
    assert (full.next, full.total) == (None, 5)
    assert items.page(size=2, total="exact").total == 5
    assert items.page(size=2, total="exact", name__gt="n2").total == 2
    assert items.page(size=2, total="estimate").total >= 3
    beyond = items.page(number=9, total="exact")
    assert (beyond.items, beyond.next, beyond.previous, beyond.total) == ([], None, 8, 5)


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": -1}, {"size": 10**9}, {"number": 0}, {"size": 2.5}, {"size": True}],
)
def test_a_page_needs_a_whole_size_and_number(items, options):
    """Anything else is one sentence."""
    with pytest.raises(ParameterError, match=f"'{next(iter(options))}' is .* whole number"):
        items.page(**options)


def test_a_cursor_continues_where_it_was(case, items):
    """Rows that are added or removed meanwhile make none appear twice."""
    for number in range(6):
        case.make(f"n{number}")

    part = items.after(size=2, sort="name")
    case.make("n0a")
    items.delete(part.items[-1].id)
    rest = items.after(part.cursor, size=9, sort="name")

    assert names(part.items) == ["n0", "n1"]
    assert names(rest.items) == ["n2", "n3", "n4", "n5"]
    assert rest.cursor is None


def test_a_cursor_belongs_to_its_question(case, items):
    """Other filters, another order or a damaged cursor are refused, not answered wrongly."""
    for number in range(4):
        case.make(f"n{number}")
    cursor = items.after(size=2, sort="name").cursor

    with pytest.raises(ParameterError, match="other filters"):
        items.after(cursor, size=2, sort="-name")
    with pytest.raises(ParameterError, match="other filters"):
        items.after(cursor, size=2, sort="name", name__ne="x")
    with pytest.raises(ParameterError, match="other filters"):
        items.with_deleted().after(cursor, size=2, sort="name")
    for damaged in ("", "!!", cursor[:-3], "e30", "W10", 7):
        with pytest.raises(ParameterError, match="cursor"):
            items.after(damaged, size=2, sort="name")


def test_iterate_gives_every_row_and_holds_no_connection(case, items):
    """The rows come in batches, and the loop may write between them."""
    made = {case.make(f"n{number}").id for number in range(7)}

    seen = []
    for row in items.iterate(batch=3):
        seen.append(row.id)
        items.update(row.id, name="seen")

    assert sorted(seen) == sorted(made)
    assert items.count(name="seen") == 7


# -- writing ----------------------------------------------------------------------------------


def test_update_gives_the_changed_row(case, items):
    """Only the named fields change, and `updated_at` does."""
    made = case.make("old", **{case.gap: "x"})

    changed = items.update(made.id, name="new", **{case.gap: None})

    assert changed == items.get(made.id)
    assert (changed.name, getattr(changed, case.gap)) == ("new", None)
    assert changed.updated_at > made.updated_at
    assert changed.created_at == made.created_at


def test_a_stale_version_is_refused(case, items):
    """Who read the row before another changed it does not overwrite the change."""
    read = case.make("old")
    items.update(read.id, name="theirs")

    with pytest.raises(StaleVersion):
        items.update(read.id, version=getattr(read, case.version), name="mine")
    with pytest.raises(StaleVersion):
        items.soft_delete(read.id, version=getattr(read, case.version))
    assert items.get(read.id).name == "theirs"


def test_of_writers_with_one_version_one_wins(case, items):
    """Eight at once: one change is made, seven are told to read again."""
    read = case.make("old")
    version = getattr(read, case.version)
    start = threading.Barrier(8, timeout=30)

    def write(number: int) -> str:
        start.wait()
        try:
            return items.update(read.id, version=version, name=f"n{number}").name
        except StaleVersion:
            return "stale"

    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(write, range(8)))

    assert told.count("stale") == 7
    assert items.get(read.id).name in told


def test_changes_that_cannot_be_made(case, items):
    """Each has its own error, and none of them leaves a trace."""
    made = case.make("one")
    version = getattr(made, case.version)

    for id, error, said, changes in (
        (case.missing, NotFound, None, {"name": "x"}),
        (case.missing, NotFound, None, {"name": "x", "version": version}),
        (made.id, ParameterError, "at least one field", {}),
        (made.id, ParameterError, "'version' is", {"version": "zwei", "name": "x"}),
        (made.id, InvalidData, r"name of .* must have a value", {"name": None}),
        (made.id, InvalidData, "'name' is 7", {"name": 7}),
        (made.id, InvalidData, None, {"name": "x" * 300}),
        (made.id, InvalidData, None, {case.group: "nonsense"}),
        (made.id, InvalidData, None, {case.part: {"a": object()}}),
    ):
        with pytest.raises(error, match=said):
            items.update(id, **changes)
    assert items.get(made.id) == made


def test_a_second_row_with_the_same_key_is_refused(case, items):
    """The error names the field and not the value."""
    made = case.make("one")

    with pytest.raises(DuplicateKey) as caught:
        case.make("two", id=made.id)

    assert caught.value.fields in {("id",), ("_id",)}
    assert made.id not in str(caught.value)


def test_create_many_creates_all_or_none(case, items):
    """A refused row takes the others of its call with it."""
    made = case.make("one")
    rows = [{**case.required, case.group: case.groups[0], "name": f"n{n}"} for n in range(1_500)]

    with pytest.raises(DuplicateKey):
        items.create_many([*rows, {**rows[0], "id": made.id}])
    assert items.count() == 1
    assert items.create_many(iter(rows)) == 1_500
    assert items.count() == 1_501
    assert items.create_many([]) == 0


def test_upsert_creates_then_changes_then_leaves_alone(case, items):
    """The third call has nothing to change, so `updated_at` stays."""
    values = {
        **case.required,
        case.group: case.groups[0],
        "id": case.missing,
        case.part: {"a": [1]},
    }

    created = items.upsert(name="one", **values)
    changed = items.upsert(name="two", **values)
    same = items.upsert(name="two", **values)

    assert [created[1], changed[1], same[1]] == [True, False, False]
    assert (created[0].name, changed[0].name) == ("one", "two")
    assert same[0] == changed[0]
    assert items.count() == 1


def test_upserts_at_once_create_one_row(case, items):
    """Eight at once: one creates, none fails."""
    values = {**case.required, case.group: case.groups[0], "id": case.missing}
    start = threading.Barrier(8, timeout=30)

    def write(number: int) -> bool:
        start.wait()
        return items.upsert(name=f"n{number}", **values)[1]

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(write, range(8)))

    assert created.count(True) == 1
    assert items.count() == 1


def test_upsert_needs_a_unique_key_and_no_deleted_row(case, items):
    """It neither guesses which row is meant nor brings one back."""
    made = case.make("one")
    items.soft_delete(made.id)

    with pytest.raises(DuplicateKey, match="deleted row"):
        items.upsert(**{**case.required, case.group: case.groups[0], "id": made.id, "name": "x"})
    with pytest.raises(ParameterError, match="no unique key"):
        items.upsert(on="name", name="x")
    with pytest.raises(InvalidData, match="needs a value for id"):
        items.upsert(name="x")
    assert items.with_deleted().get(made.id).name == "one"


def test_soft_delete_restore_and_delete(case, items):
    """Hidden, shown again, removed for good."""
    made = case.make("one")

    hidden = items.soft_delete(made.id)
    assert hidden.deleted_at is not None
    for ask in (items.get, items.soft_delete):
        with pytest.raises(NotFound):
            ask(made.id)
    with pytest.raises(NotFound):
        items.update(made.id, name="x")
    assert (items.count(), items.find(), items.exists(), len(items.frame())) == (0, [], False, 0)

    shown = items.restore(made.id)
    assert shown == items.get(made.id)
    assert shown.deleted_at is None
    with pytest.raises(NotFound):
        items.restore(made.id)

    items.soft_delete(made.id)
    assert items.delete(made.id).name == "one"
    assert items.with_deleted().count() == 0
    with pytest.raises(NotFound):
        items.delete(made.id)


def test_with_deleted_sees_all_rows(case, items):
    """It is another view: the repository itself goes on hiding them."""
    made = case.make("one")
    case.make("two")
    items.soft_delete(made.id)

    everything = items.with_deleted()

    assert everything.count() == 2
    assert everything.get(made.id).deleted_at is not None
    assert everything.count(deleted_at__null=False) == 1
    assert everything.update(made.id, name="three").name == "three"
    assert items.count() == 1


# -- transactions -----------------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_nothing(case, items):
    """Every write of the block is undone, and the error comes out as it was raised."""
    kept = case.make("kept")

    with pytest.raises(ZeroDivisionError), case.transaction():  # noqa: PT012
        case.make("gone")
        items.update(kept.id, name="changed")
        items.create_many([{**case.required, case.group: case.groups[0], "name": "gone"}])
        assert items.count() == 3
        _ = 1 / 0

    assert items.find() == [kept]


def test_a_transaction_is_unseen_by_others_until_it_ends(case, items):
    """Another thread is outside of it."""
    with ThreadPoolExecutor(1) as other:
        with case.transaction():
            case.make("one")
            assert other.submit(items.count).result() == 0
        assert other.submit(items.count).result() == 1


# -- frames -----------------------------------------------------------------------------------


def test_a_frame_has_the_same_types_full_and_empty(case, items):
    """So that frames of several windows can be put together."""
    case.make("one", **{case.part: {"tags": ["ä"]}})
    case.make("two", **{case.gap: "x"})

    full, empty = items.frame(sort="name"), items.frame(name="none")

    assert full.dtypes.to_dict() == empty.dtypes.to_dict()
    assert list(full.columns) == list(items.fields)
    assert full["id"].tolist() == [row.id for row in items.find(sort="name")]
    assert str(full["created_at"].dtype) == "datetime64[us, UTC]"
    assert full[case.part].tolist() == ['{"tags": ["ä"]}', "{}"]
    assert full[case.gap].isna().tolist() == [True, False]


def test_a_frame_takes_the_named_columns_in_order(case, items):
    """One name will do; a name twice will not."""
    case.make("one")

    assert list(items.frame(["name", "id"]).columns) == ["name", "id"]
    assert items.frame("name")["name"].tolist() == ["one"]
    for columns in ([], ["name", "name"]):
        with pytest.raises(ParameterError, match="'columns'"):
            items.frame(columns)


def test_a_frame_is_bounded_by_since_and_until(case, items):
    """The first moment is inside, the last is not."""
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for hour in range(4):
        case.make(f"h{hour}", created_at=noon + timedelta(hours=hour))

    def found(**bounds: Any) -> list[str]:
        return items.frame(["name"], sort="name", **bounds)["name"].tolist()

    assert found(since=noon + timedelta(hours=1), until="2026-11-01T15:00Z") == ["h1", "h2"]
    assert found(since="2026-11-01", limit=1) == ["h0"]
    assert items.head(2)["name"].tolist() == ["h3", "h2"]
    with pytest.raises(ParameterError, match="'until' is '31 days ago'; give an ISO time"):
        found(until="31 days ago")
    with pytest.raises(ParameterError, match=r"'since' is .* without a zone"):
        found(since=datetime(2026, 11, 1))


# -- what was there before --------------------------------------------------------------------


def test_unknown_columns_are_left_alone_and_left_out(case, items, module_db):
    """An existing database may hold more than the model knows."""
    made = case.make("one")
    if items.database == "postgres":
        module_db.postgres.execute(
            sa.text("ALTER TABLE catalog.catalog_items ADD IF NOT EXISTS colour text DEFAULT 'red'")
        )
    else:
        module_db.mongodb.collection("designs").update_many({}, {"$set": {"colour": "red"}})

    assert items.get(made.id) == made
    assert "colour" not in items.frame()
    assert items.update(made.id, name="two").name == "two"


def test_a_repository_shows_its_fields_without_asking_the_database(items, module_db, monkeypatch):
    """`repr` in a notebook costs nothing, whatever the table holds."""
    for store in (module_db.postgres, module_db.mongodb):
        monkeypatch.setattr(store, "errors", pytest.fail)

    assert "created_at" in repr(items)
    assert "<td>created_at</td><td>time</td>" in items._repr_html_()


@pytest.fixture(autouse=True)
def _no_thread_is_left_in_a_transaction(module_db: Database) -> Iterator[None]:
    yield
    assert not module_db.postgres.in_transaction
    assert module_db.mongodb.session is None
