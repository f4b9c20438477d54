"""Rounds of kill -9 under writers, for a test and for a benchmark."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
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
    writing, read = {
        "postgres": (postgres_writing, postgres_rows),
        "mongodb": (mongodb_writing, mongodb_rows),
    }[name]
    acknowledged: set[int] = set()
    results = []
    for number in range(count):
        urls = up(home, name)
        if name == "postgres":
            with psycopg.connect(urls.owner) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS crash (id bigint PRIMARY KEY)")
        fresh = write_until_killed(home, name, urls.app, writing, number)
        acknowledged |= fresh
        began = time.perf_counter()
        urls = up(home, name)
        took = time.perf_counter() - began
        there = read(urls.report)
        lost, port = len(acknowledged - there), store(home, name).port or 0
        results.append(Round(len(fresh), lost, took, len(there) > 0, port))
    return results


def up(home: Path, name: str) -> embedded.Urls:
    urls: embedded.Urls = getattr(embedded.up(home, stores=(name,), owner_pid=os.getpid()), name)
    return urls


Writing = Callable[[str], contextlib.AbstractContextManager[Callable[[int], object]]]


def write_until_killed(home: Path, name: str, url: str, writing: Writing, number: int) -> set[int]:
    """Rows confirmed by the server before it was killed, of some writers at full speed."""
    stop = threading.Event()
    noted: list[list[int]] = [[] for _ in range(WRITERS)]

    def write(notes: list[int], row: int) -> None:
        with writing(url) as insert:
            while not stop.is_set():
                insert(row)
                notes.append(row)
                row += 1

    writers = [
        threading.Thread(
            target=write, args=(notes, (number * WRITERS + index) * 10_000_000), daemon=True
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


@contextlib.contextmanager
def postgres_writing(url: str) -> Iterator[Callable[[int], object]]:
    """One transaction for each row, until the server is gone."""
    with (
        contextlib.suppress(psycopg.OperationalError),
        psycopg.connect(url, autocommit=True) as connection,
    ):
        yield lambda row: connection.execute("INSERT INTO crash VALUES (%s)", (row,))


def postgres_rows(url: str) -> set[int]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM crash")}


@contextlib.contextmanager
def mongodb_writing(url: str) -> Iterator[Callable[[int], object]]:
    """With the write concern of the URL."""
    client: pymongo.MongoClient[dict[str, int]] = pymongo.MongoClient(
        url, serverSelectionTimeoutMS=500, retryWrites=False
    )
    with client, contextlib.suppress(pymongo.errors.PyMongoError):
        yield lambda row: client.fashion_wallet.crash.insert_one({"_id": row})


def mongodb_rows(url: str) -> set[int]:
    client: pymongo.MongoClient[dict[str, int]] = pymongo.MongoClient(url)
    with client:
        return {row["_id"] for row in client.fashion_wallet.crash.find({}, {"_id": 1})}
