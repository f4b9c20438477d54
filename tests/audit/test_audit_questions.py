"""Questions to the audit trail, over a table of ours and one of the existing service."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import sqlalchemy as sa

from fwdb import errors
from fwdb.audit import Audit

OBJECT_ID = "65a1b2c3d4e5f60718293a4b"
NOBODY = str(uuid.uuid4())
NOW = datetime.now(UTC)


ASK: dict[str, Callable[[Audit], pd.DataFrame]] = {
    "history": lambda audit: audit.history("User", uuid.uuid4()),
    "by_user": lambda audit: audit.by_user(uuid.uuid4()),
    "recent": lambda audit: audit.recent(),
    "search": lambda audit: audit.search(since="1d", action="DELETE", changed_field="email"),
    "activity": lambda audit: audit.activity("1d"),
    "actors": lambda audit: audit.actors("1d"),
    "bursts": lambda audit: audit.bursts("1d"),
    "totals": lambda audit: audit.totals("1d"),
}


@pytest.mark.parametrize("question", ASK)
def test_columns_and_types_do_not_depend_on_the_answer(audit, put, actor, question):
    """A chart over an empty trail meets the same frame as one over a full one."""
    empty = ASK[question](audit)
    at = NOW - timedelta(hours=3)
    put([{"action": "DELETE", "created_at": at, "user_id": actor}] * 50)
    audit.log_delete("User", uuid.uuid4(), {"email": "x"}, user_id=actor)
    full = ASK[question](audit)

    assert list(empty.columns) == list(full.columns)
    assert dict(empty.dtypes) == dict(full.dtypes)
    times = [c for c in full if c.endswith("_at")]
    assert times
    assert all(str(full[c].dtype) == "datetime64[us, UTC]" for c in times)


def test_search_lets_each_filter_through_alone(audit, put, actor):
    """Every filter narrows; without any, all rows come, newest first."""
    audit.log_create("User", uuid.uuid4(), {"email": "a"}, user_id=actor)
    audit.log_update("Avatar", uuid.uuid4(), {"name": "a"}, {"name": "b"}, user_id=actor)
    audit.log_delete("Design", OBJECT_ID, {"name": "a"})
    put([{"action": "READ", "created_at": NOW - timedelta(days=3)}])

    assert list(audit.search()["action"]) == ["DELETE", "UPDATE", "CREATE", "READ"]
    assert list(audit.search(since="1d")["action"]) == ["DELETE", "UPDATE", "CREATE"]
    assert list(audit.search(until="1d")["action"]) == ["READ"]
    assert list(audit.search(entity_type="Design")["entity_id"]) == [OBJECT_ID]
    assert list(audit.search(action="update")["action"]) == ["UPDATE"]
    assert list(audit.search(changed_field="name")["action"]) == ["DELETE", "UPDATE"]
    two = audit.search(actions=["create", "DELETE"], entity_types=["User", "Design"])
    assert list(two["action"]) == ["DELETE", "CREATE"]
    assert len(audit.search(users=[actor, NOBODY])) == len(audit.search(user_id=actor)) == 2
    assert len(audit.search(actions="READ")) == len(audit.search(action="READ")) == 1
    assert audit.search(users=[NOBODY]).empty
    assert list(audit.search(limit=1)["action"]) == ["DELETE"]
    assert list(audit.by_user(actor)["action"]) == ["UPDATE", "CREATE"]
    assert list(audit.by_user(actor, limit=1)["action"]) == ["UPDATE"]
    assert list(audit.recent(2)["action"]) == ["DELETE", "UPDATE"]


def test_a_window_holds_its_start_and_not_its_end(audit, put):
    """Two windows that meet count each event once."""
    at = (NOW - timedelta(days=2)).replace(minute=0, second=0, microsecond=0)
    put([{"created_at": at}])

    assert audit.totals(at, at + timedelta(hours=1))["events"].sum() == 1
    assert audit.totals(at - timedelta(hours=1), at)["events"].sum() == 0
    assert len(audit.search(since=at, until=at + timedelta(hours=1))) == 1
    assert len(audit.search(since=at - timedelta(hours=1), until=at)) == 0


def test_activity_counts_per_bucket_kind_and_action(audit, put):
    """Buckets begin in UTC; the sums of all bucket sizes agree."""
    day = (NOW - timedelta(days=10)).replace(hour=0, minute=0, second=0, microsecond=0)
    for minutes, more in (
        (119.9, {}), (120, {}), (150, {}), (120, {"action": "READ"}),
        (26 * 60, {"entity_type": "Avatar"}),
    ):  # fmt: skip
        put([{"created_at": day + timedelta(minutes=minutes), **more}])
    window = (day, day + timedelta(days=3))
    hours = audit.activity(*window)
    found = list(hours[["bucket_at", "entity_type", "action", "events"]].itertuples(index=False))

    assert found == [
        (pd.Timestamp(day + timedelta(hours=1)), "User", "UPDATE", 1),
        (pd.Timestamp(day + timedelta(hours=2)), "User", "READ", 1),
        (pd.Timestamp(day + timedelta(hours=2)), "User", "UPDATE", 2),
        (pd.Timestamp(day + timedelta(hours=26)), "Avatar", "UPDATE", 1),
    ]
    assert list(audit.activity(*window, bucket="day")["events"]) == [1, 3, 1]
    week = audit.activity(*window, bucket="week")
    assert all(at.day_of_week == 0 and at.hour == 0 for at in week["bucket_at"])
    assert all(at.day == 1 for at in audit.activity(*window, bucket="month")["bucket_at"])
    assert {
        int(audit.activity(*window, bucket=b)["events"].sum())
        for b in ("minute", "hour", "day", "week", "month")
    } == {5}


def test_activity_takes_days_for_a_long_window_and_no_zone_of_the_session(audit, store, put):
    """A year in hours is too many points; psql elsewhere gives the same days."""
    put([{"created_at": NOW - timedelta(days=2, minutes=n)} for n in range(0, 300, 7)])
    put([{"created_at": NOW - timedelta(days=n, hours=n)} for n in range(1, 60)])
    long, short = audit.activity("30d"), audit.activity("7d")
    with store.transaction() as connection:
        connection.execute(sa.text("SET LOCAL TimeZone = 'Pacific/Auckland'"))
        elsewhere = audit.activity("90d", bucket="month")

    assert all(at == at.normalize() for at in long["bucket_at"])
    assert not all(at == at.normalize() for at in short["bucket_at"])
    pd.testing.assert_frame_equal(elsewhere, audit.activity("90d", bucket="month"))


def test_actors_are_ranked_with_their_share(audit, put, actor):
    """Changes without an actor are one row, so that the shares add up."""
    at = NOW - timedelta(hours=2)
    put([{"created_at": at, "user_id": actor, "action": a} for a in ("CREATE", "DELETE", "READ")])
    put([{"created_at": at}])
    frame = audit.actors("1d")

    assert list(frame["user_id"].fillna("nobody")) == [actor, "nobody"]
    assert list(frame["share_percent"]) == [75.0, 25.0]
    assert frame.loc[0, ["events", "creates", "updates", "reads", "deletes"]].tolist() == [
        3, 1, 0, 1, 1,
    ]  # fmt: skip
    assert len(audit.actors("1d", top=1)) == 1
    assert audit.actors("1d", top=1)["share_percent"].item() == 75.0


def test_totals_have_a_row_for_each_action(audit, put):
    put([{"created_at": NOW - timedelta(hours=1), "action": "READ"}] * 3)
    frame = audit.totals("1d").set_index("action")

    assert dict(frame["events"]) == {"CREATE": 0, "UPDATE": 0, "DELETE": 0, "READ": 3}
    assert frame.loc["READ", "without_actor"] == 3
    assert pd.isna(frame.loc["CREATE", "first_at"])


def weeks(per_hour: Callable[[datetime], int], days: int) -> list[dict]:
    """Rows of `days` days until this hour, as many in each hour as `per_hour` says."""
    this_hour = NOW.replace(minute=0, second=0, microsecond=0)
    hours = [this_hour - timedelta(hours=n) for n in range(1, 24 * days)]
    return [
        {"created_at": hour + timedelta(seconds=n)} for hour in hours for n in range(per_hour(hour))
    ]


def office(hour: datetime) -> int:
    return 30 + hour.day % 5 if hour.weekday() < 5 and 8 <= hour.hour < 17 else 1


def season() -> list[dict]:
    """Six busy weeks after a quiet quarter."""
    today = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    return [
        {"created_at": today - timedelta(days=age) + timedelta(hours=10, seconds=n)}
        for age in range(1, 133)
        for n in range(30 if age <= 42 else 2)
    ]


@pytest.mark.parametrize(("rows", "since"), [(weeks(office, 30), "7d"), (season(), "140d")])
def test_a_rhythm_and_a_season_are_no_burst(audit, put, rows, since):
    """Thirty times the night is usual at ten in the morning, and busy weeks among themselves."""
    put(rows)

    assert audit.bursts(since).empty


@pytest.mark.parametrize(("events", "found"), [(110, 0), (120, 1)])
def test_three_times_the_usual_is_a_burst(audit, put, events, found):
    """Far outside of what is usual, by the spread alone, is any hour over 78 events here."""
    noon = NOW.replace(hour=12, minute=0, second=0, microsecond=0)
    put([{"created_at": noon - timedelta(days=age)} for age in range(2, 30) for _ in range(40)])
    put([{"created_at": noon - timedelta(days=1)}] * events)

    assert len(audit.bursts("3d")) == found


def test_a_burst_is_found_with_what_makes_it_odd(audit, put, actor):
    """Deletes where there are none, and many times what is usual, each with its author."""
    night = (NOW - timedelta(days=2)).replace(hour=3, minute=0, second=0, microsecond=0)
    put(weeks(office, 30))
    put([{"created_at": night, "action": "DELETE", "user_id": actor}] * 40)
    put([{"created_at": night, "user_id": actor}] * 24 + [{"created_at": night}] * 5)
    # The weeks before a window are compared with, not reported.
    put([{"created_at": NOW - timedelta(days=10)}] * 400)
    frame = audit.bursts("7d")

    assert list(frame["action"]) == ["DELETE", "UPDATE"]
    assert list(frame["bucket_at"]) == [pd.Timestamp(night)] * 2
    assert list(frame["events"]) == [40, 30]
    assert list(frame["usual"]) == [0, 1]
    assert pd.isna(frame["times_usual"][0])
    assert frame["times_usual"][1] == 30
    assert list(frame["top_user_id"]) == [actor, actor]
    assert list(frame["top_user_events"]) == [40, 24]
    assert list(audit.bursts("7d", action="UPDATE")["action"]) == ["UPDATE"]
    assert len(audit.bursts("14d")) == 3


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda a: a.history("Usr", uuid.uuid4()), "no entity type 'Usr'; did you mean 'User'"),
        (lambda a: a.search(action="DELETED"), "no action 'DELETED'; did you mean 'DELETE'"),
        (lambda a: a.search(changed_field="emial"), "no field 'emial'.*did you mean 'email'"),
        (lambda a: a.activity("1d", bucket="days"), "no bucket 'days'; did you mean 'day'"),
        (lambda a: a.totals("1d", entity_type="Desing"), "did you mean 'Design'"),
        (lambda a: a.search(actions=["READ", "REDA"]), "no action 'REDA'; did you mean 'READ'"),
        (lambda a: a.search(entity_types=["User", "Avatr"]), "did you mean 'Avatar'"),
        (lambda a: a.as_of("Usr", "1h"), "no entity type 'Usr'; did you mean 'User'"),
        (lambda a: a.timeline("Desing", NOBODY), "did you mean 'Design'"),
        (lambda a: a.who_changed("emial"), "no field 'emial'.*did you mean 'email'"),
        (lambda a: a.who_changed("pric", entity_type="CatalogItem"), "in CatalogItem.*'price'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(audit, ask, says):
    with pytest.raises(errors.UnknownName, match=says):
        ask(audit)


def test_a_field_or_a_kind_that_only_the_trail_knows_can_be_asked_for(audit, put):
    """The existing service has columns that fwdb's entities do not, and may record more."""
    put([{"entity_type": "Order", "entity_id": NOBODY, "created_at": NOW - timedelta(hours=1)}])
    assert list(audit.history("Order", NOBODY)["entity_type"]) == ["Order"]
    assert audit.totals("1d", entity_type="Order")["events"].sum() == 1
    with pytest.raises(errors.UnknownName):
        audit.search(changed_field="body_type")
    audit.log_update("Avatar", uuid.uuid4(), {"body_type": "a"}, {"body_type": "b"})

    assert len(audit.search(changed_field="body_type", entity_type="Avatar")) == 1


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda a: a.search(since="2999-01-01T00:00Z"), "'since' .*in the future.*24h"),
        (lambda a: a.totals("1d", NOW + timedelta(days=1)), "'until' .*in the future"),
        (lambda a: a.totals("1d", "2d"), "is after 'until'"),
        (lambda a: a.search(since="2026-01-01T00:00"), "without a zone; add one"),
        (lambda a: a.search(since=datetime(2026, 1, 1)), "without a zone"),
        (lambda a: a.activity("lately"), "ISO time .* or a span"),
        (lambda a: a.activity(None), "'since' is None; give an ISO time"),
        (lambda a: a.recent(0), "recent.*'limit' is 0; give a whole number from 1 on"),
        (lambda a: a.actors("1d", top=-1), "'top' is -1"),
        (lambda a: a.by_user("ana"), "UUID of a user"),
        (lambda a: a.history("User", "42"), "24 hexadecimal digits"),
        (lambda a: a.search(action="READ", actions=["READ"]), "both given"),
        (lambda a: a.search(users=[]), "empty list"),
        (lambda a: a.search(users=["ana"]), "UUID of a user"),
        (lambda a: a.as_of("User", "2999-01-01T00:00Z"), "'at' .*in the future.*24h"),
        (lambda a: a.as_of("User", "2026-01-01T00:00"), "without a zone; add one"),
        (lambda a: a.as_of("User", "1h", id="42"), "24 hexadecimal digits"),
        (lambda a: a.diff("User", NOBODY, "1h", "2h"), "is after 'until'"),
        (lambda a: a.diff("User", NOBODY, None), "'since' is None; give an ISO time"),
        (lambda a: a.who_changed("email", id=NOBODY), "'id' needs 'entity_type'"),
        (lambda a: a.anomalies("2999-01-01T00:00Z"), "in the future"),
        (lambda a: a.anomalies("2026-01-01T00:00"), "without a zone"),
        (lambda a: a.anomalies(None), "'since' is None"),
    ],
)
def test_values_that_cannot_be_asked_for_are_refused(audit, ask, says):
    """Each refusal says the form to use."""
    with pytest.raises(errors.ParameterError, match=says):
        ask(audit)


def test_a_question_is_planned_for_its_own_filters(audit, store):
    """After many wide questions a narrow one on the same connection still uses its index."""
    for _ in range(8):
        audit.recent()
        audit.search()
    with store.connection() as connection:
        plans = connection.execute(
            sa.text(
                "SELECT coalesce(sum(generic_plans), 0) AS generic, sum(custom_plans) AS custom"
                " FROM pg_prepared_statements WHERE statement LIKE '%Rows of the audit trail%'"
            )
        ).one()
    assert plans.generic == 0
    assert plans.custom > 0
