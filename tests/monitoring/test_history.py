"""What becomes of readings: thinned, removed, kept elsewhere; and what a gap says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from support.urls import url_of

from fwdb import config, migrating
from fwdb.database import Database
from fwdb.errors import FeatureUnavailable
from fwdb.monitoring import Monitor
from fwdb.monitoring.sampler import LOCK
from fwdb.stores import PostgresStore

SHAPE = "designs.find({status: ?})"


@pytest.fixture
def monitor(db: Database) -> Monitor:
    return db.monitor


def stored(store: PostgresStore, table: str, where: str = "true") -> int:
    text = sa.text(f"SELECT count(*) AS n FROM monitoring.{table} WHERE {where}")
    return int(store.rows(text)[0]["n"])


def put(
    store: PostgresStore,
    age: timedelta,
    *,
    process: str = "shop@a:1",
    kind: str = "light",
    **pool: Any,
) -> int:
    """A reading of `age` with a pool and a command that was called twice since the one before."""
    at = datetime.now(UTC) - age
    row = store.rows(
        sa.text(
            "INSERT INTO monitoring.readings (read_at, kind, process, details) VALUES (:at, :kind, "
            ":process, jsonb_build_object('commands_since', CAST(:since AS text))) "
            "RETURNING reading_id"
        ),
        at=at,
        kind=kind,
        process=process,
        since=(at - timedelta(seconds=30)).isoformat(),
    )[0]
    values = {"in_use": 1, "waiting": 0, "holds": 1, **pool}
    store.execute(
        sa.text(
            "INSERT INTO monitoring.pool_samples VALUES (:id, 'postgres', 10, :in_use, 0, 0, "
            ":waiting, 0, 0, 0, 0, 1, 0, 0, ARRAY[0], ARRAY[:holds], 5, ARRAY[1], 1)"
        ),
        {"id": row["reading_id"], **values},
    )
    store.execute(
        sa.text(
            "INSERT INTO monitoring.command_samples (reading_id, command, namespace, shape, calls, "
            "errors, total_ms, squares_ms2, max_ms, documents, histogram) VALUES "
            "(:id, 'find', 'x.designs', :shape, 2, 0, 8, 34, :max, 4, ARRAY[1, 1])"
        ),
        {"id": row["reading_id"], "shape": SHAPE, "max": 5 + values["in_use"]},
    )
    return int(row["reading_id"])


def an_hour_ago(days: float, minute: int) -> timedelta:
    """The age of a moment in the hour that was `days` ago, at this minute of it."""
    now = datetime.now(UTC)
    hour = (now - timedelta(days=days)).replace(minute=minute, second=0, microsecond=0)
    return now - hour


def test_old_readings_are_thinned_to_one_per_hour(db: Database, monitor: Monitor) -> None:
    """The last of each process and kind; younger ones stay. Sampling does it by itself."""
    old = [put(db.postgres, an_hour_ago(10, minute)) for minute in (5, 20, 50)]
    full = put(db.postgres, an_hour_ago(10, 30), kind="full")
    other = put(db.postgres, an_hour_ago(10, 10), process="shop@b:2")
    young = [put(db.postgres, an_hour_ago(2, minute)) for minute in (5, 20)]
    new = monitor.sample().reading_id
    left = db.postgres.rows(sa.text("SELECT reading_id FROM monitoring.readings ORDER BY 1"))

    assert {row["reading_id"] for row in left} == {old[-1], full, other, *young, new}


def test_thinning_keeps_the_fullest_moment_and_every_command(
    db: Database, monitor: Monitor
) -> None:
    """A state is that of a moment, commands are sums since the reading before."""
    put(db.postgres, an_hour_ago(10, 5), in_use=9, waiting=4, holds=10)
    put(db.postgres, an_hour_ago(10, 20), in_use=3, holds=20)
    last = put(db.postgres, an_hour_ago(10, 50), in_use=2, holds=30)
    began = datetime.now(UTC) - an_hour_ago(10, 5) - timedelta(seconds=30)
    monitor.sample()
    pool = db.postgres.rows(
        sa.text("SELECT * FROM monitoring.pool_samples WHERE reading_id = :id"), id=last
    )[0]
    command = db.postgres.rows(
        sa.text("SELECT * FROM monitoring.command_samples WHERE reading_id = :id"), id=last
    )[0]
    details = db.postgres.rows(
        sa.text("SELECT details FROM monitoring.readings WHERE reading_id = :id"), id=last
    )[0]["details"]

    assert (pool["in_use"], pool["waiting"], pool["hold_counts"]) == (9, 4, [30])
    assert (command["calls"], command["documents"], command["total_ms"]) == (6, 12, 24)
    assert command["max_ms"] == 14
    assert command["histogram"] == [3, 3]
    assert abs(datetime.fromisoformat(details["commands_since"]) - began) < timedelta(seconds=5)


def test_thinning_twice_adds_nothing_twice(db: Database, monitor: Monitor) -> None:
    """Sums must not grow with every turn."""
    for minute in (5, 50):
        put(db.postgres, an_hour_ago(10, minute))
    for _ in range(2):
        monitor._sampler._tidy_at = 0
        monitor.sample()
    where = f"shape = '{SHAPE}' AND calls = 4"

    assert stored(db.postgres, "command_samples", where) == 1
    assert stored(db.postgres, "readings", "read_at < now() - interval '1 day'") == 1


def test_counters_differ_across_a_gap_as_before(db: Database, monitor: Monitor) -> None:
    """What was thinned out in between is in the difference."""
    for minute, holds in ((5, 10), (20, 20), (50, 30)):
        put(db.postgres, an_hour_ago(10, minute), holds=holds)
    put(db.postgres, an_hour_ago(9.9, 5), holds=100)
    before = monitor.pool_history(since="20d")["holds"].sum()
    monitor.sample()
    frame = monitor.pool_history(since="20d")
    after = frame[frame["process"] == "shop@a:1"]["holds"].tolist()

    assert before == sum(after) == 100
    assert after == [30, 70]


def test_a_sampler_removes_what_is_too_old(db: Database, monitor: Monitor) -> None:
    """FWDB_HISTORY_DAYS, by itself; not while another sampler is at it."""
    old = put(db.postgres, timedelta(days=31))
    with db.transaction():
        db.postgres.rows(
            sa.text("SELECT pg_advisory_xact_lock(:area, :key)"), area=LOCK[0], key=LOCK[1]
        )
        monitor.sample()
        monitor._sampler._tidy()
        monitor._sampler._tidy_at = 0
        assert stored(db.postgres, "readings", f"reading_id = {old}") == 1
    monitor.sample()

    assert stored(db.postgres, "readings", f"reading_id = {old}") == 0
    assert stored(db.postgres, "pool_samples", f"reading_id = {old}") == 0


def test_a_large_backlog_is_dealt_with_in_parts(
    db: Database, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part at each turn, so that no reading waits long for it; the next turn goes on."""
    monkeypatch.setattr("fwdb.monitoring.retention.MOST", 2)
    for minute in range(5):
        put(db.postgres, an_hour_ago(10, minute))
    counts = []
    for _ in range(3):
        monitor.sample()
        counts.append(stored(db.postgres, "readings", "read_at < now() - interval '1 day'"))

    assert counts == [3, 1, 1]
    assert stored(db.postgres, "command_samples", "calls = 10") == 1


def test_a_gap_says_what_it_is(db: Database, monitor: Monitor) -> None:
    """Nothing ever, before the oldest, after the newest: each with what would help."""
    never = monitor.pool_history(since="1h").attrs
    put(db.postgres, timedelta(days=5))
    early = monitor.pool_history(since="20d", until="19d").attrs
    late = monitor.pool_history(since="1h").attrs

    assert {found["status"] for found in (never, early, late)} == {"no_data"}
    assert "no reading was ever stored; run 'fwdb monitor'" in never["reason"]
    assert "FWDB_HISTORY_DAYS" in early["reason"]
    assert "ended before the oldest reading" in early["reason"]
    assert "no reading was stored since" in late["reason"]
    assert "fwdb monitor" in late["reason"]


def test_readings_without_a_used_pool_say_who_would_store_one(
    db: Database, monitor: Monitor
) -> None:
    """`fwdb monitor` reads the servers; it cannot see the pools of other processes."""
    name = "watcher"
    watcher = Monitor(
        db.postgres.twin(application_name=name), db.mongodb.twin(application_name=name)
    )
    watcher.sample("full")
    watcher.close()

    reason = monitor.pool_history(since="1h").attrs["reason"]

    assert "no pool that was used" in reason
    assert "db.monitor.sampling()" in reason


# -- a history in another database ----------------------------------------------------------------


@pytest.fixture
def elsewhere(postgres_database: Callable[..., str]) -> str:
    """The URL of a migrated database that is not watched."""
    url = postgres_database()
    store = PostgresStore(url)
    migrating.migrate(store, None)
    store.close()
    return url


def read_only(db: Database, history_url: str | None) -> Database:
    """The same databases for a role that only reads, with its history in another one."""
    update = {"history_url": SecretStr(history_url) if history_url else None}
    settings = config.settings().model_copy(update=update)
    url = url_of(db.postgres)
    return Database(
        PostgresStore(url, settings=settings, read_only=True, application_name="reader"),
        db.mongodb,
        settings=settings,
    )


def test_readings_of_a_read_only_database_are_kept_elsewhere(db: Database, elsewhere: str) -> None:
    """Pools, sessions, counters and statements with their texts; the watched one gets nothing."""
    with ExitStack() as stack:
        reader = read_only(db, elsewhere)
        stack.callback(reader.postgres.close)
        stack.callback(reader.monitor.close)
        history = stack.enter_context(_open(elsewhere))
        reader.monitor.sample("full")
        for _ in range(3):
            reader.postgres.rows(sa.text("SELECT count(*) FROM shared.users, avatar.avatars"))
        sample = reader.monitor.sample("full")
        slow = reader.monitor.slow_queries(since="1h", min_ms=0, top=1000)
        pools = reader.monitor.pool_history(since="1h")

        assert sample.kind == "full"
        assert not sample.missing
        assert stored(history, "readings") == 2
        assert sample.rows["statements"] > 0
        assert stored(history, "statement_samples") >= sample.rows["statements"]
        assert stored(history, "statement_texts") > 0
        assert slow["statement"].str.contains("avatar.avatars").any()
        assert pools["process"].str.startswith("reader").all()
    assert stored(db.postgres, "readings") == 0


def test_a_read_only_database_names_the_setting_that_helps(db: Database) -> None:
    """A replica is read-only as well."""
    reader = read_only(db, None)
    with pytest.raises(FeatureUnavailable, match="FWDB_HISTORY_URL"):
        reader.monitor.sample()
    reader.monitor.close()
    reader.postgres.close()


def test_a_history_that_is_down_is_said_and_health_is_not(db: Database) -> None:
    """The watched database is well; readings go nowhere, and the error names the setting."""
    reader = read_only(db, "postgresql://nobody:sesame@127.0.0.1:1/nothing")
    with pytest.raises(Exception, match="FWDB_HISTORY_URL") as refused:
        reader.monitor.sample()
    assert "sesame" not in str(refused.value)
    assert reader.health().stores[0].status == "up"
    reader.monitor.close()
    reader.postgres.close()


@contextmanager
def _open(url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(url)
    yield store
    store.close()


def test_frames_of_an_empty_history_keep_their_types(monitor: Monitor) -> None:
    """An analyst's code must not break on a quiet day."""
    empty = monitor.pool_durations(since="1h")
    monitor.sample()
    full = monitor.pool_durations(since="1h")

    assert isinstance(empty, pd.DataFrame)
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
