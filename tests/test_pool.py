"""The pools of this process, and their history."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pandas as pd
import pytest

from fwdb import config
from fwdb.database import Database
from fwdb.errors import PoolExhausted
from fwdb.monitoring import Monitor
from fwdb.stores import MongoStore, PostgresStore

SMALL = {"pool_size": 2, "pool_max_overflow": 2, "pool_timeout_seconds": 0.3}


@pytest.fixture
def small(db: Database) -> Iterator[Database]:
    """The same databases through a pool of 2 connections and 2 beyond."""
    settings = config.settings().model_copy(update=SMALL)
    url = db.postgres.url.render_as_string(hide_password=False)
    postgres = PostgresStore(url, settings=settings)
    mongodb = MongoStore(db.mongodb.url, settings=settings)
    with Database(postgres, mongodb, settings=settings) as database:
        yield database


def row(monitor: Monitor, database: str) -> pd.Series:
    frame = monitor.pool()
    return frame[frame["database"] == database].iloc[0]


def hold(store: PostgresStore, connections: int, held: ExitStack) -> None:
    for _ in range(connections):
        held.enter_context(store.connection())


def test_utilisation_is_in_use_of_capacity(small: Database) -> None:
    """Not of the connections that happen to be open: 3 of 3 open is 75 % when 4 may be."""
    with ExitStack() as held:
        hold(small.postgres, 3, held)
        pool = row(small.monitor, "postgres")

        assert (pool["capacity"], pool["in_use"], pool["overflow"]) == (4, 3, 1)
        assert pool["utilisation_percent"] == 75.0


def test_an_idle_connection_waits_for_nobody(small: Database) -> None:
    """The server shows it as waiting for its client; it is free to be used."""
    with ExitStack() as held:
        hold(small.postgres, 2, held)
    pool = row(small.monitor, "postgres")

    assert (pool["in_use"], pool["idle"]) == (0, 2)
    assert (pool["waiting"], pool["waiting_peak"], pool["waits"]) == (0, 0, 0)


def test_callers_without_a_connection_are_counted_while_they_wait(
    small: Database, wait_until: Callable[..., None]
) -> None:
    """Waiting now, the most there were, and those that gave up."""
    outcomes: list[str] = []

    def want() -> None:
        try:
            with small.postgres.connection():
                outcomes.append("served")
        except PoolExhausted:
            outcomes.append("gave up")

    with ExitStack() as held:
        hold(small.postgres, 4, held)
        threads = [threading.Thread(target=want) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: row(small.monitor, "postgres")["waiting"] == 3)
        wait_until(lambda: len(outcomes) == 3)
        for thread in threads:
            thread.join()
    pool = row(small.monitor, "postgres")

    assert outcomes == ["gave up"] * 3
    assert (pool["waiting"], pool["waiting_peak"]) == (0, 3)
    assert (pool["waits"], pool["timeouts"]) == (3, 3)
    assert pool["wait_ms"] >= 3 * 250


def test_an_unlimited_pool_has_no_utilisation(db: Database) -> None:
    """A share of no limit is nothing, neither 0 nor 100."""
    url = db.mongodb.url + ("&" if "?" in db.mongodb.url else "?") + "maxPoolSize=0"
    mongodb = MongoStore(url)
    monitor = Monitor(db.postgres, mongodb)
    mongodb.ping()
    pool = row(monitor, "mongodb")
    monitor.close()
    mongodb.close()

    assert pd.isna(pool["capacity"])
    assert pd.isna(pool["utilisation_percent"])
    assert pool["status"] == "not_applicable"
    assert "no upper limit" in pool["reason"]


def test_the_monitor_takes_no_connection_of_the_pool_it_watches(small: Database) -> None:
    """It can ask the server while every connection is taken."""
    with ExitStack() as held:
        hold(small.postgres, 4, held)
        small.monitor.sessions("postgres")
        small.monitor.replication_lag()
        small.monitor.sample()

        assert row(small.monitor, "postgres")["waits"] == 0


def test_history_tells_what_each_sample_saw(small: Database) -> None:
    """A sample is the pool at that moment, under the name of its process."""
    with ExitStack() as held:
        hold(small.postgres, 3, held)
        small.monitor.sample()
    small.monitor.sample()
    frame = small.monitor.pool_history(since="1h")
    postgres = frame[frame["database"] == "postgres"]

    assert postgres["in_use"].tolist() == [3, 0]
    assert postgres["utilisation_percent"].tolist() == [75.0, 0.0]
    assert postgres["process"].nunique() == 1
    assert postgres["sampled_at"].is_monotonic_increasing
    assert frame.attrs["status"] == "ok"


def test_history_counts_waits_since_the_sample_before(small: Database) -> None:
    """The pool counts since it was made; a sum over samples must not count twice."""
    for rounds in (1, 0, 2):
        with ExitStack() as held:
            hold(small.postgres, 4, held)
            for _ in range(rounds):
                with pytest.raises(PoolExhausted), small.postgres.connection():
                    pass
        small.monitor.sample()
    frame = small.monitor.pool_history(since="1h")
    postgres = frame[frame["database"] == "postgres"]

    assert postgres["timeouts"].tolist() == [1, 0, 2]
    assert postgres["waits"].tolist() == [1, 0, 2]


def test_a_pool_that_was_never_used_is_not_stored(db: Database) -> None:
    """A process that only samples says nothing about the pools of those that work."""
    store = db.postgres.twin(application_name="sampler")
    mongodb = db.mongodb.twin(application_name="sampler")
    monitor = Monitor(store, mongodb)
    sample = monitor.sample()
    monitor.close()

    assert sample.rows["pools"] == 0


def test_a_window_without_samples_keeps_columns_and_types(small: Database) -> None:
    """And says what would make samples."""
    empty = small.monitor.pool_history(since="1h")
    with small.postgres.connection():
        small.monitor.sample()
    full = small.monitor.pool_history(since="1h")

    assert empty.attrs["status"] == "no_data"
    assert "fwdb monitor" in empty.attrs["reason"]
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert len(full) >= 1


def test_a_database_without_the_schema_has_no_history(
    postgres_database: Callable[..., str], db: Database
) -> None:
    """An answer without rows that names the command, not an error about a missing table."""
    store = PostgresStore(postgres_database())
    monitor = Monitor(store, db.mongodb)
    frame = monitor.pool_history()
    monitor.close()
    store.close()

    assert frame.empty
    assert "fwdb migrate" in frame.attrs["reason"]
