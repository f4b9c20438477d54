"""Draining the journals: the same rows as in direct mode, each once, and only what is closed."""

from __future__ import annotations

import threading

import pytest
from support.capture import Captured, thing

from fwdb import errors
from fwdb.audit import Audit

ALL = "SELECT * FROM audit.trail WHERE entity_type = 'Thing' ORDER BY created_at, id"


@pytest.fixture
def captured(db) -> Captured:
    """shop.things in journal mode."""
    found = Captured(db.postgres)
    found.capture(redact={"tags": "mask"}, mode="journal")
    return found


def changes(captured: Captured) -> None:
    """A change of each kind, with an actor."""
    user = captured.run("SELECT CAST(id AS text) FROM shared.users LIMIT 1")[0][0]
    with captured.store.transaction():
        claim = f'{{"user_id": "{user}", "ip_address": "::1", "user_agent": "a", "reason": "r"}}'
        captured.run("SELECT set_config('fwdb.actor', :claim, true)", claim=claim)
        thing(captured, tags="[1]")
        captured.run("UPDATE shop.things SET tags = '[2]', price = 1.10")
        captured.run("UPDATE shop.things SET id = gen_random_uuid()")
        captured.run("TRUNCATE shop.things")


def test_what_is_drained_is_what_was_there(captured):
    """Ids, times, values, transaction and facts: the view does not change by a drain."""
    changes(captured)
    before = captured.run(ALL)
    drained = Audit(captured.store).drain()

    assert (drained.moved, drained.journals, drained.left) == (5, 1, 0)
    assert drained.oldest_left_at is None
    assert captured.run(ALL) == before
    assert captured.run(ALL.replace("audit.trail", "audit.audit_logs")) == before
    assert Audit(captured.store).drain().moved == 0


def test_a_journal_makes_the_rows_of_direct_mode(captured):
    """But for ids, times and the transaction, which no two changes share."""
    columns = (
        "SELECT action, old_values - '{id}'::text[], new_values - '{id}'::text[],"
        " user_id, metadata LIKE 'primary%', ip_address, user_agent, reason, db_user,"
        " application_name, client_address, origin, transaction_id IS NULL"
        " FROM audit.audit_logs WHERE entity_type = 'Thing' ORDER BY created_at, id"
    ).replace("'{id}'::text[]", "CAST('{id}' AS text[])")
    changes(captured)
    Audit(captured.store).drain()
    journal = captured.run(columns)
    captured.run("DELETE FROM audit.audit_logs")
    captured.capture(mode="direct")
    changes(captured)

    assert len(journal) == 5
    assert captured.run(columns) == journal


def test_a_transaction_waits_for_older_ones(captured):
    """What is drained lacks none of the transactions before it."""
    with captured.session() as older:
        older.execute("BEGIN")
        older.execute("INSERT INTO shop.things (name) VALUES ('older')")
        thing(captured, "newer")
        first = Audit(captured.store).drain()
        (xid,) = older.execute(
            "SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
        ).fetchone()
        older.execute("COMMIT")
    (newer,) = captured.run(
        "SELECT min(created_at) FROM audit.trail WHERE transaction_id <> :x", x=xid
    )[0]
    second = Audit(captured.store).drain()

    assert (first.moved, first.left) == (0, 1)
    assert first.oldest_left_at == newer
    assert (second.moved, second.left) == (2, 0)


def test_drains_at_once_move_each_change_once(captured):
    """While others write."""
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            Audit(captured.store).drain()

    drains = [threading.Thread(target=drain, daemon=True) for _ in range(2)]
    for one in drains:
        one.start()
    for _ in range(40):
        captured.run("INSERT INTO shop.things (name) SELECT 'x' FROM generate_series(1, 20)")
        captured.run("UPDATE shop.things SET price = coalesce(price, 0) + 1 WHERE random() < 0.2")
        assert captured.replayed() == captured.table()
    stop.set()
    for one in drains:
        one.join()
    Audit(captured.store).drain()

    assert captured.run("SELECT count(*) FROM audit.journal_shop_things") == [(0,)]
    assert captured.run(ALL) == captured.run(ALL.replace("audit.trail", "audit.audit_logs"))
    assert captured.replayed() == captured.table()


def test_draining_is_for_the_owner_and_outside_a_transaction(captured):
    """It commits batch by batch."""
    with (
        captured.store.transaction(),
        pytest.raises(errors.ParameterError, match="outside a transaction"),
    ):
        Audit(captured.store).drain()


def test_a_database_nobody_migrated_has_nothing_to_drain(postgres_database):
    """No error."""
    from fwdb.stores import PostgresStore

    store = PostgresStore(postgres_database())
    assert Audit(store).drain().journals == 0
    store.close()
