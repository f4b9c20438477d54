"""What is unusual: found with its figure, and nothing else found."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from support.sql import ask, value

from fwdb.audit import Audit
from fwdb.seeding import volume
from fwdb.stores import PostgresStore, without_capture

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
NIGHT = TODAY - timedelta(days=2) + timedelta(hours=3)


@pytest.fixture
def people(store: PostgresStore) -> list[str]:
    """The ids of users who do things."""
    made = (
        "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
        " SELECT 'p' || n || '@example.com', 'x', 'A', 'B' FROM generate_series(1, 12) AS n"
        " RETURNING id"
    )
    with without_capture(store, ["shared.users"]):
        return [str(row["id"]) for row in ask(store, made)]


def days(user: str | None, count: int, *, each: int = 3, **more: Any) -> list[dict[str, Any]]:
    """Rows of `count` days up to yesterday at ten in the morning."""
    ten = timedelta(hours=10)
    return [
        {"user_id": user, "created_at": TODAY - timedelta(days=day, minutes=-20 * n) + ten, **more}
        for day in range(1, count + 1)
        for n in range(each)
    ]


def many(user: str | None, count: int, at: datetime, **more: Any) -> list[dict[str, Any]]:
    """`count` rows within as many seconds from `at` on."""
    return [
        {"user_id": user, "created_at": at + timedelta(seconds=n), **more} for n in range(count)
    ]


def found(audit: Audit, kind: str, since: str = "7d") -> pd.DataFrame:
    frame = audit.anomalies(since)
    return frame[frame["kind"] == kind].reset_index(drop=True)


def test_a_quiet_trail_has_nothing_unusual(audit, put, people):
    """Columns and types are there all the same."""
    empty = audit.anomalies("7d")
    put([row for user in people for row in days(user, 40)])
    quiet = audit.anomalies("7d")
    put(many(people[0], 60, NIGHT))
    odd = audit.anomalies("7d")

    assert empty.empty
    assert quiet.empty
    assert not odd.empty
    assert list(empty.columns) == list(odd.columns)
    assert dict(empty.dtypes) == dict(quiet.dtypes) == dict(odd.dtypes)
    assert str(odd["transaction_id"].dtype) == "Int64"


def test_the_year_of_the_demonstration_has_what_was_planted_and_no_more(store, audit, put):
    """The night of the deletions and the Sunday of the sweep."""
    plan = volume.Plan.of(250, seed=4, audit_rows=None, until=None)
    trail = pd.concat([part.audit_logs for part in volume.parts(plan)])
    people = pd.concat([part.users for part in volume.parts(plan)])
    keep = ["id", "email", "password_hash", "first_name", "last_name"]
    with without_capture(store, ["shared.users"]):
        store.copy("shared.users", people[keep])
    store.copy("audit.audit_logs", trail)
    frame = audit.anomalies("365d")

    assert set(frame["kind"]) - {"new_kind"} == {"mass_delete", "odd_hour", "burst"}
    night = frame[frame["kind"] != "burst"]
    assert (night["started_at"].dt.hour == 2).all()
    assert night["user_id"].nunique() == 1
    sweep = frame[frame["kind"] == "burst"]
    assert sweep[["entity_type", "action"]].values.tolist() == [["User", "READ"]]
    assert sweep["started_at"].dt.day_of_week.tolist() == [6]
    assert len(audit.anomalies("7d")) == len(night)


def test_an_hour_is_odd_for_whom_it_is_odd(audit, put, people):
    """Who always works at night is not told of."""
    owl, lark = people[:2]
    put(days(lark, 40))
    put([{**row, "created_at": row["created_at"] - timedelta(hours=7)} for row in days(owl, 40)])
    put([*many(owl, 12, NIGHT), *many(lark, 12, NIGHT)])
    odd = found(audit, "odd_hour")

    assert list(odd["user_id"]) == [lark]
    assert odd.loc[0, ["events", "usual"]].tolist() == [12, 0]
    assert odd["started_at"][0] == pd.Timestamp(NIGHT)


def test_a_first_time_is_odd_when_it_is_much(audit, put, people):
    """One of a new kind is nothing; so is much of a kind that was done before."""
    once, much, used = people[:3]
    for user in (once, much, used):
        put(days(user, 40))
    put(days(used, 40, each=1, entity_type="CatalogItem"))
    put(many(once, 3, NIGHT, entity_type="CatalogItem"))
    put(many(much, 25, NIGHT, entity_type="CatalogItem"))
    put(many(used, 25, NIGHT, entity_type="CatalogItem"))
    odd = found(audit, "new_kind")

    assert list(odd["user_id"]) == [much]
    assert odd.loc[0, ["events", "usual", "entity_type"]].tolist() == [25, 0, "CatalogItem"]
    assert pd.isna(odd["times_usual"][0])


def test_a_newcomer_is_compared_with_newcomers(audit, put, people):
    """To come is usual; to make 50 rows on the first day is not."""
    *earlier, calm, wild = people
    put([row for user in earlier for row in days(user, 60)])
    at = TODAY - timedelta(days=3) + timedelta(hours=10)
    put([*many(calm, 5, at), *many(wild, 60, at)])
    odd = found(audit, "new_actor")

    assert list(odd["user_id"]) == [wild]
    assert odd.loc[0, ["events", "usual", "times_usual"]].tolist() == [60, 3, 20]


def test_a_mass_deletion_is_found_whoever_did_it(audit, put, people):
    put([row for user in people for row in days(user, 30, each=1, action="DELETE")])
    put(many(people[0], 15, NIGHT, action="DELETE", entity_type="Avatar"))
    put(many(None, 12, NIGHT, action="DELETE", entity_type="Design"))
    odd = found(audit, "mass_delete").sort_values("events", ignore_index=True)

    assert odd["events"].tolist() == [12, 15]
    assert odd["entity_type"].tolist() == ["Design", "Avatar"]
    assert odd["user_id"].fillna("nobody").tolist() == ["nobody", people[0]]
    assert odd["sentence"].str.contains("removed").all()


def test_clearing_out_what_one_made_oneself_is_no_mass_deletion(audit, put, people):
    """Whoever leaves takes their own along; of others' things it is one."""
    mine, theirs = ([str(uuid.uuid4()) for _ in range(30)] for _ in range(2))
    made = TODAY - timedelta(days=20)
    for owner, ids in ((people[0], mine), (people[1], theirs)):
        made_by = {"user_id": owner, "action": "CREATE", "created_at": made}
        put([{**made_by, "entity_id": id} for id in ids])
    for ids, at in ((mine, NIGHT), (theirs, NIGHT + timedelta(hours=5))):
        gone = {"user_id": people[0], "action": "DELETE", "created_at": at}
        put([{**gone, "entity_id": id} for id in ids])
    odd = found(audit, "mass_delete")

    assert list(odd["started_at"]) == [pd.Timestamp(NIGHT + timedelta(hours=5))]


@pytest.fixture
def own(store: PostgresStore) -> None:
    """Only on a table that keeps what the server knows, and refuses no unknown user."""
    if not value(store, "SELECT to_regproc('audit.add_partitions') AS f"):
        pytest.skip("the service's table has a foreign key and no login")


def test_an_actor_without_an_account_is_unknown(own, audit, put, people):
    """A forged user id; whoever was removed since left none behind."""
    ghost = str(uuid.uuid4())
    put([*days(people[0], 40), *many(ghost, 2, NIGHT)])
    odd = found(audit, "unknown_actor")

    assert list(odd["user_id"]) == [ghost]
    assert odd["events"].tolist() == [2]


def test_a_login_that_does_not_fit_the_user_shows(own, audit, put, people):
    """A new login once, not once for each user; and a known one in a name that is not its own."""
    anna, bob = people[:2]
    put([*days(anna, 40, db_user="app"), *days(bob, 40, db_user="batch")])
    put(many(anna, 2, NIGHT, db_user="batch"))
    put([*many(anna, 1, NIGHT, db_user="psql"), *many(bob, 2, NIGHT, db_user="psql")])
    new, other = found(audit, "new_login"), found(audit, "other_login")

    assert new[["db_user", "events"]].values.tolist() == [["psql", 3]]
    assert other[["user_id", "db_user", "events"]].values.tolist() == [[anna, "batch", 2]]
    assert "in the name of" in other["sentence"][0]


def test_changes_without_an_actor_are_odd_where_all_had_one(own, audit, put, people):
    """A service that never says who is no anomaly each day; its totals show it."""
    put(days(people[0], 40, db_user="app"))
    put(days(None, 40, db_user="job", entity_type="Design"))
    put(many(None, 11, NIGHT, db_user="app"))
    put(many(None, 11, NIGHT, db_user="app", action="READ"))
    odd = found(audit, "missing_actor")

    assert odd[["db_user", "entity_type", "events"]].values.tolist() == [["app", "User", 11]]
