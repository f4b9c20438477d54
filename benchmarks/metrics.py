"""What counting costs, and how long a scrape takes.

    python benchmarks/metrics.py

On built-in servers of its own, or on those of FWDB_BENCH_POSTGRES_URL and FWDB_BENCH_MONGODB_URL.
The cost of counting is CPU time of this thread per statement on a held connection, from batches
that take turns with those of a twin without instrumentation; a second twin says how much of a
difference is noise. Scrapes are whole HTTP requests. Ends with 1 if a goal is missed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pymongo
import sqlalchemy as sa
from pymongo import monitoring

from fwdb import config, embedded, migrating
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore
from fwdb.stores.timing import QueryTimes

ROUNDS = int(os.environ.get("FWDB_BENCH_ROUNDS", "200"))
STATEMENTS, COMMANDS, REQUESTS = 200, 50, 300
CHILDREN = 2000
GOALS = {
    "postgres_us": 6.0,
    "postgres_percent": 3.0,
    "mongodb_us": 12.0,
    "scrape_p50_ms": 5.0,
    "large_scrape_p50_ms": 500.0,
    "health_p99_ms": 5.0,
}


@contextlib.contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """The URLs of accounts that may make tables."""
    given = [os.environ.get(f"FWDB_BENCH_{name}_URL") for name in ("POSTGRES", "MONGODB")]
    if given[0] and given[1]:
        yield given[0], given[1]
        return
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as folder:
        home = Path(folder) / ".fwdb"
        running = embedded.up(home, owner_pid=os.getpid(), idle_minutes=0)
        assert running.postgres
        assert running.mongodb
        try:
            yield running.postgres.owner, running.mongodb.owner
        finally:
            embedded.down(home)


def cpu_us(ways: dict[str, Callable[[], object]], times: int) -> dict[str, list[float]]:
    """CPU microseconds of this thread per call, one figure a round, the ways in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    gc.collect()
    gc.disable()
    for _ in range(ROUNDS):
        random.shuffle(names)
        for name in names:
            way = ways[name]
            started = time.thread_time_ns()
            for _ in range(times):
                way()
            found[name].append((time.thread_time_ns() - started) / times / 1000)
    gc.enable()
    return found


def difference(found: dict[str, list[float]], name: str) -> tuple[float, float]:
    """Median of the differences to the plain way of the same round, and the same in percent."""
    plain = found["plain"]
    pairs = zip(found[name], plain, strict=True)
    cost = statistics.median(one - other for one, other in pairs)
    return cost, 100 * cost / statistics.median(plain)


def show(what: str, found: dict[str, list[float]]) -> None:
    base = statistics.median(found["plain"])
    print(f"{what}: {base:.1f} µs CPU without instrumentation")
    for name in found:
        if name != "plain":
            cost, percent = difference(found, name)
            print(f"  {name:<14}{cost:+7.2f} µs {percent:+6.1f} %")


def uncounted(url: str) -> PostgresStore:
    """A store whose statements are not timed: its connections have psycopg's own cursor."""
    store = PostgresStore(url)
    sa.event.remove(store.engine, "connect", store._count)
    return store


def postgres_cost(url: str) -> tuple[float, float]:
    """Of `SELECT 1` on a held connection, with the count, the histogram and the errors."""
    question = sa.text("SELECT 1")
    with contextlib.ExitStack() as stack:
        ways = {}
        stores = {
            "plain": uncounted(url),
            "plain again": uncounted(url),
            "counted": PostgresStore(url),
        }
        for name, store in stores.items():
            stack.callback(store.close)
            connection = stack.enter_context(store.connection())
            ways[name] = partial(connection.execute, question)
            ways[name]()
        found = cpu_us(ways, STATEMENTS)
        counted = {n: sum(t.times.count for t in s.times.read().series) for n, s in stores.items()}
    assert counted == {"plain": 0, "plain again": 0, "counted": ROUNDS * STATEMENTS + 1}
    show("PostgreSQL, SELECT 1", found)
    return difference(found, "counted")


class Deaf(monitoring.CommandListener):
    """Hears of every command and does nothing: what the driver's events cost by themselves."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


class Uncounted(MongoStore):
    """A store whose client tells its pool's events, and those of commands to `listeners`."""

    listeners: tuple[monitoring.CommandListener, ...] = ()

    @cached_property
    def client(self) -> pymongo.MongoClient[dict[str, Any]]:  # type: ignore[override]
        return pymongo.MongoClient(
            self._given.get_secret_value(),
            tz_aware=True,
            connect=False,
            event_listeners=[self._connections, *self.listeners],
            **self._options,
        )


class Listening(Uncounted):
    """A store that hears of its commands and does nothing about it."""

    listeners = (Deaf(),)


def mongodb_cost(url: str) -> tuple[float, float]:
    """Of finding one document, by the listener that also knows the shape."""
    wanted = {"_id": 1, "n": {"$gt": 0}}
    stores = {
        "plain": Uncounted(url),
        "plain again": Uncounted(url),
        "events alone": Listening(url),
        "counted": MongoStore(url),
    }
    collections = {name: store.collection("bench") for name, store in stores.items()}
    collections["plain"].replace_one({"_id": 1}, {"_id": 1, "n": 1}, upsert=True)
    ways = {name: partial(one.find_one, wanted) for name, one in collections.items()}
    for way in ways.values():
        way()
    found = cpu_us(ways, COMMANDS)
    collections["plain"].drop()
    for store in stores.values():
        store.client.close()
    show("MongoDB, find one", found)
    return difference(found, "counted")


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


# A process of its own, as Prometheus is: in ours it would compete with the server for the
# interpreter while it reads. For each line it makes a request and says its milliseconds.
CLIENT = """
import sys, time, urllib.request
for line in sys.stdin:
    started = time.perf_counter()
    with urllib.request.urlopen(sys.argv[1]) as answer:
        answer.read()
    print(1000 * (time.perf_counter() - started), flush=True)
"""


def requests(url: str, before: Callable[[], object] = lambda: None) -> list[float]:
    """Milliseconds of whole requests, each on a connection of its own."""
    found = []
    command = [sys.executable, "-c", CLIENT, url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin
        assert client.stdout
        for _ in range(REQUESTS):
            before()
            client.stdin.write("\n")
            client.stdin.flush()
            found.append(float(client.stdout.readline()))
        client.stdin.close()
    return found[1:]  # the first one imports


def fill(times: QueryTimes, children: int) -> Callable[[], None]:
    """Makes `children` histogram children; returns what adds one time to each of them."""
    names = [(f"operation{n:04}", error) for n in range(children // 2) for error in ("", "other")]

    def again() -> None:
        for operation, error in names:
            times.add(operation, random.lognormvariate(-5, 2), error)

    for _ in range(20):
        again()
    return again


def serving(postgres_url: str, mongodb_url: str) -> dict[str, float]:
    """Of an ordinary scrape, of one with 2,000 histogram children, and of /health/database."""
    settings = config.settings()
    with Database(PostgresStore(postgres_url), MongoStore(mongodb_url), settings=settings) as db:
        migrating.migrate(db.postgres, db.mongodb)
        db.users.count()
        db.designs.count()
        server = db.metrics.serve()
        # As `fwdb serve` does: a full collection looks through all that was imported, 60 ms.
        gc.collect()
        gc.freeze()
        few = requests(f"{server.url}/metrics")
        health = requests(f"{server.url}/health/database")
        again = fill(db.postgres.times, CHILDREN)
        many = requests(f"{server.url}/metrics", again)
    for name, found in (
        ("/metrics, a few series", few),
        ("/health/database", health),
        (f"/metrics, {CHILDREN:,} histograms", many),
    ):
        print(
            f"{name:<46} p50 {percentile(found, 50):7.2f} ms  p99 {percentile(found, 99):7.2f} ms"
        )
    return {
        "scrape_p50_ms": percentile(few, 50),
        "large_scrape_p50_ms": percentile(many, 50),
        "health_p99_ms": percentile(health, 99),
    }


def main() -> int:
    with servers() as (postgres_url, mongodb_url):
        cost, percent = postgres_cost(postgres_url)
        found = {"postgres_us": cost, "postgres_percent": percent}
        found["mongodb_us"], _ = mongodb_cost(mongodb_url)
        found |= serving(postgres_url, mongodb_url)
    missed = 0
    for name, goal in GOALS.items():
        good = found[name] <= goal
        missed += not good
        print(f"{'ok    ' if good else 'MISSED'} {name:<18}{found[name]:8.2f} (goal: {goal:g})")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
