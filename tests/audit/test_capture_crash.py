"""kill -9 of the server and of the drain: no change is lost and none is doubled.

Two rounds by default, twenty with FWDB_TEST_FULL=1.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid

import psycopg
import pytest
from support.capture import Captured
from support.embedded import FULL, kill, pid, shared
from support.urls import url_of

from fwdb import embedded, migrating
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

__all__ = ["shared"]  # the fixture

BEFORE_KILL = (60, 150, 300)  # changes confirmed; the kill meets other moments
DRAIN = """
import sys
from fwdb.audit import Audit
from fwdb.stores import PostgresStore
audit = Audit(PostgresStore(sys.argv[1]))
while True:
    audit.drain()
"""


@pytest.mark.heavy
def test_no_change_is_lost_or_doubled(shared):
    """Writers note what was confirmed; table, trail and notes agree after each restart."""
    confirmed: set[str] = set()
    for number in range(20 if FULL else 2):
        store = started(shared)
        if number == 0:
            migrating.migrate(store, None)
            captured = Captured(store)
            captured.capture(mode="journal")
        noted = until_killed(shared, store, number)
        store.close()
        confirmed |= noted
        store = started(shared)
        captured = Captured(store, emptied=False)
        check(captured, confirmed)
        moved = Audit(store).drain()
        assert moved.left == 0
        check(captured, confirmed)
        store.close()


def started(home) -> PostgresStore:
    servers = embedded.up(home, stores=("postgres",), owner_pid=os.getpid())
    assert servers.postgres
    return PostgresStore(servers.postgres.superuser)


def check(captured: Captured, confirmed: set[str]) -> None:
    """What was confirmed is there, and each row has exactly the changes that made it."""
    table = captured.table()
    assert confirmed <= table.keys()
    assert captured.replayed() == table
    assert captured.run(
        "SELECT count(*), count(DISTINCT id) FROM audit.trail WHERE entity_type = 'Thing'"
    ) == [(2 * len(table), 2 * len(table))]


def until_killed(home, store: PostgresStore, number: int) -> set[str]:
    """Ids whose insert and update were confirmed before the server was killed."""
    url = url_of(store)
    stop, noted = threading.Event(), set()

    def write() -> None:
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(url, autocommit=True) as connection,
        ):
            while not stop.is_set():
                id = str(uuid.uuid4())
                with connection.transaction():
                    connection.execute("INSERT INTO shop.things (id, price) VALUES (%s, 0)", (id,))
                    connection.execute("UPDATE shop.things SET price = 1 WHERE id = %s", (id,))
                noted.add(id)

    writers = [threading.Thread(target=write, daemon=True) for _ in range(3)]
    drain = [sys.executable, "-c", DRAIN, url]
    draining = subprocess.Popen(drain, stderr=subprocess.DEVNULL)
    for writer in writers:
        writer.start()
    enough, deadline = BEFORE_KILL[number % len(BEFORE_KILL)], time.monotonic() + 60
    halfway = False
    while len(noted) < enough and time.monotonic() < deadline:
        if not halfway and len(noted) > enough / 2:
            # In the middle of whatever it does; another one goes on.
            draining.kill()
            draining.wait()
            draining = subprocess.Popen(drain, stderr=subprocess.DEVNULL)
            halfway = True
        time.sleep(0.005)
    kill(pid(home, "postgres"))
    stop.set()
    for writer in writers:
        writer.join()
    draining.kill()
    draining.wait()
    return noted
