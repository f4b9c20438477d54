"""kill -9 of the follower and of either server, while designs are written."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pymongo
import pytest
from support.embedded import FULL, home, kill, pid, up  # noqa: F401
from support.sql import ask

import fwdb
from fwdb import migrating

VICTIMS = ("follower", "mongodb", "postgres")
ROUNDS = 20 if FULL else 3
DOCUMENTS = 5


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fwdb.cli", "audit", "follow"],
        env={**os.environ, "FWDB_HOME": str(folder)},
        stderr=subprocess.DEVNULL,
    )


def write(url: str, stop: threading.Event, confirmed: dict[int, int]) -> None:
    """Count the documents up, one change after the other, and note what was confirmed.

    A change that was not confirmed may have been made: it is not tried again, the next one is.
    """
    with pymongo.MongoClient(url, serverSelectionTimeoutMS=500, retryWrites=False) as client:
        collection = client.get_default_database().designs
        while not stop.is_set():
            for key in range(DOCUMENTS):
                with contextlib.suppress(pymongo.errors.PyMongoError):
                    collection.update_one({"_id": key}, {"$inc": {"version": 1}})
                    confirmed[key] += 1


@pytest.mark.heavy
def test_no_change_is_lost_or_doubled_by_kill_9(home, wait_until, monkeypatch):  # noqa: F811
    """Each version of each document is in the trail, once, whoever was killed."""
    monkeypatch.setenv("FWDB_HOME", str(home))
    servers = up(home)
    with fwdb.connect(role="owner") as db:
        migrating.migrate(db.postgres, db.mongodb)
        db.mongodb.collection("designs").insert_many(
            {"_id": key, "userId": "u", "name": "N", "status": "draft", "version": 1}
            for key in range(DOCUMENTS)
        )

    def working() -> bool:
        """A store that is down when it starts ends it, so it is given the time to start."""
        with fwdb.connect(role="owner") as db:
            status = db.audit.follower()
            return status.running and status.events_behind.status == "ok"

    assert servers.mongodb
    stop, confirmed = threading.Event(), defaultdict(int)
    follower = start(home)
    wait_until(working, timeout=90)
    writer = threading.Thread(
        target=write, args=(servers.mongodb.app, stop, confirmed), daemon=True
    )
    writer.start()
    try:
        for number in range(ROUNDS):
            enough = confirmed[0] + (5, 20, 50)[number % 3]
            wait_until(lambda enough=enough: confirmed[0] > enough, timeout=60)
            victim = VICTIMS[number % 3]
            if victim == "follower":
                follower.kill()
                follower.wait()
                follower = start(home)
                wait_until(working, timeout=90)
            else:
                kill(pid(home, victim))
                up(home)
            assert follower.poll() is None, "the follower ended by itself"
    finally:
        stop.set()
        writer.join()
    with fwdb.connect(role="owner") as db:
        designs = {d["_id"]: d["version"] for d in db.mongodb.collection("designs").find()}

        def versions() -> list[list[int]]:
            of_each = ask(
                db.postgres,
                "SELECT array_agg(CAST(new_values ->> 'version' AS int) ORDER BY created_at, id)"
                " AS seen FROM audit.audit_logs WHERE origin = 'follower' GROUP BY entity_id",
            )
            return sorted(row["seen"] for row in of_each)

        newest = sorted(designs.values())
        wait_until(lambda: sorted(seen[-1] for seen in versions()) == newest, timeout=60)
        follower.send_signal(signal.SIGTERM)
        assert follower.wait(timeout=30) == 0
        again = db.audit.follow(once=True)
        found = versions()
        gaps = db.audit.gaps()

    assert again.changes == 0
    for version in found:
        assert version == list(range(version[0], version[-1] + 1)), gaps.to_string()
    assert all(designs[key] > count for key, count in confirmed.items()), "confirmed and lost"


def test_a_frozen_server_is_left_and_found_again(home, wait_until, monkeypatch, caplog):  # noqa: F811
    """One that takes connections and answers nothing; what was changed since is recorded once."""
    monkeypatch.setenv("FWDB_HOME", str(home))
    up(home)
    with fwdb.connect(role="owner") as db:
        migrating.migrate(db.postgres, db.mongodb)
        designs = db.mongodb.collection("designs")
        server = pid(home, "mongodb")
        with db.audit.following():
            first = {"_id": 1, "userId": "u", "name": "a", "status": "draft", "version": 1}
            designs.insert_one(first)
            os.kill(server, signal.SIGSTOP)
            try:
                wait_until(lambda: "following designs paused" in caplog.text, timeout=60)
            finally:
                os.kill(server, signal.SIGCONT)
            designs.update_one({"_id": 1}, {"$set": {"name": "b", "version": 2}})
        found = ask(
            db.postgres,
            "SELECT new_values ->> 'name' AS name FROM audit.audit_logs"
            " WHERE origin = 'follower' ORDER BY created_at, id",
        )

    assert [row["name"] for row in found] == ["a", "b"]
