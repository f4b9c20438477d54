"""Rounds of kill -9 under writers, for a test and for a benchmark."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pymongo
import pymongo.errors

from fwdb import embedded
from support.embedded import kill, pid, store

WRITERS = 4
ROWS_BEFORE_KILL = (100, 400, 800)  # in turn: the kill meets other moments of the server


@dataclass(frozen=True)
class Round:
    """One kill: rows confirmed before it, those missing after it, time until logins work."""

    acknowledged: int
    lost: int
    recovery_seconds: float
    answers: bool
    port: int


def rounds(home: Path, name: str, count: int) -> list[Round]:
    """Kill the server `name` of `home` that often; rows stay, and all are counted each time."""
    session, read = {
        "postgres": (postgres_session, postgres_rows),
        "mongodb": (mongodb_session, mongodb_rows),
    }[name]
    acknowledged: set[int] = set()
    results = []
    for number in range(count):
        servers = embedded.up(home, stores=(name,), owner_pid=os.getpid())
        urls = servers.postgres or servers.mongodb
        assert urls
        if servers.postgres:
            with psycopg.connect(urls.owner) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS crash (id bigint PRIMARY KEY)")
        fresh = write_until_killed(home, name, urls, session, number)
        acknowledged |= fresh
        began = time.perf_counter()
        servers = embedded.up(home, stores=(name,), owner_pid=os.getpid())
        took = time.perf_counter() - began
        urls = servers.postgres or servers.mongodb
        assert urls
        there = read(urls.report)
        lost = len(acknowledged - there)
        port = store(home, name).port or 0
        results.append(Round(len(fresh), lost, took, len(there) > 0, port))
    return results


def write_until_killed(
    home: Path,
    name: str,
    urls: embedded.Urls,
    session: Callable[[embedded.Urls, threading.Event, list[int], int], None],
    number: int,
) -> set[int]:
    """Rows confirmed by the server before it was killed, of some writers at full speed."""
    stop = threading.Event()
    noted: list[list[int]] = [[] for _ in range(WRITERS)]
    writers = [
        threading.Thread(
            target=session,
            args=(urls, stop, notes, (number * WRITERS + index) * 10_000_000),
            daemon=True,
        )
        for index, notes in enumerate(noted)
    ]
    for writer in writers:
        writer.start()
    enough = ROWS_BEFORE_KILL[number % len(ROWS_BEFORE_KILL)]
    deadline = time.monotonic() + 30
    while sum(map(len, noted)) < enough and time.monotonic() < deadline:
        time.sleep(0.005)
    kill(pid(home, name))
    stop.set()
    for writer in writers:
        writer.join()
    return {row for notes in noted for row in notes}


def postgres_session(
    urls: embedded.Urls, stop: threading.Event, noted: list[int], first: int
) -> None:
    """Insert rows one transaction each, and note those whose commit was confirmed."""
    with (
        contextlib.suppress(psycopg.OperationalError),
        psycopg.connect(urls.app, autocommit=True) as connection,
    ):
        row = first
        while not stop.is_set():
            connection.execute("INSERT INTO crash VALUES (%s)", (row,))
            noted.append(row)
            row += 1


def postgres_rows(url: str) -> set[int]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM crash")}


def mongodb_session(
    urls: embedded.Urls, stop: threading.Event, noted: list[int], first: int
) -> None:
    """Insert documents one by one with the write concern of the URL, and note the confirmed."""
    client: pymongo.MongoClient[dict[str, int]] = pymongo.MongoClient(
        urls.app, serverSelectionTimeoutMS=500, retryWrites=False
    )
    with client, contextlib.suppress(pymongo.errors.PyMongoError):
        row = first
        while not stop.is_set():
            client.fashion_wallet.crash.insert_one({"_id": row})
            noted.append(row)
            row += 1


def mongodb_rows(url: str) -> set[int]:
    client: pymongo.MongoClient[dict[str, int]] = pymongo.MongoClient(url)
    with client:
        return {row["_id"] for row in client.fashion_wallet.crash.find({}, {"_id": 1})}
