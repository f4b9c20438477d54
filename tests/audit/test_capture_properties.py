"""Whatever is done to a table, its trail replayed gives the same rows."""

from __future__ import annotations

import uuid
from contextlib import ExitStack

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.capture import Captured
from support.embedded import FULL

SESSIONS = 2
# Each session has rows of its own, so that none waits for another.
IDS = [[str(uuid.UUID(int=16 * s + n)) for n in range(3)] for s in range(SESSIONS)]

WORK = {
    "insert": "INSERT INTO shop.things (id, name) VALUES ({one}, {word}) ON CONFLICT DO NOTHING",
    "upsert": "INSERT INTO shop.things (id, name) VALUES ({one}, {word})"
    " ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = things.price + 1",
    "update": "UPDATE shop.things SET name = {word}, price = 1 WHERE id IN ({one}, {other})",
    "nothing": "UPDATE shop.things SET name = name, updated_at = now() WHERE id = {one}",
    "soft": "UPDATE shop.things SET deleted_at = now() WHERE id = {one}",
    "restore": "UPDATE shop.things SET deleted_at = NULL WHERE id = {one}",
    "delete": "DELETE FROM shop.things WHERE id = {one}",
    "rename": "UPDATE shop.things SET id = {other} WHERE id = {one}"
    " AND NOT EXISTS (SELECT FROM shop.things WHERE id = {other})",
}
STEPS = [*WORK, *WORK, "truncate", "begin", "commit", "rollback", "savepoint", "back", "look"]

step = st.tuples(
    st.sampled_from(STEPS),
    st.integers(0, SESSIONS - 1),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(["a", "b", "ü"]),
)


def in_transaction(session: psycopg.Connection) -> bool:
    return session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE


@pytest.fixture(scope="module")
def captured(module_db) -> Captured:
    found = Captured(module_db.postgres)
    found.capture(ignore=[])
    return found


@settings(
    max_examples=100 if FULL else 15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(steps=st.lists(step, max_size=30))
def test_the_trail_replayed_gives_the_table(captured, steps):
    """Several sessions, transactions, savepoints, and looks in between."""
    captured.run("TRUNCATE shop.things")
    captured.run("DELETE FROM audit.audit_logs")
    with ExitStack() as stack:
        sessions = [stack.enter_context(captured.session()) for _ in range(SESSIONS)]
        saved = [False] * SESSIONS
        for kind, number, one, other, word in steps:
            run, ids = sessions[number].execute, IDS[number]
            opened = [in_transaction(session) for session in sessions]
            if kind in WORK:
                run(
                    WORK[kind].format(
                        one=f"'{ids[one]}'", other=f"'{ids[other]}'", word=f"'{word}'"
                    )
                )
            elif kind == "truncate" and not any(opened):
                run("TRUNCATE shop.things")
            elif kind == "begin" and not opened[number]:
                run("BEGIN")
            elif kind in {"commit", "rollback"} and opened[number]:
                run(kind)
                saved[number] = False
            elif kind == "savepoint" and opened[number]:
                run("SAVEPOINT here")
                saved[number] = True
            elif kind == "back" and saved[number]:
                run("ROLLBACK TO here")
            elif kind == "look":
                assert captured.replayed() == captured.table()
        for session in filter(in_transaction, sessions):
            session.execute("COMMIT")

    assert captured.replayed() == captured.table()
