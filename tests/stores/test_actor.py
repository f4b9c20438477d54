"""Who acts: said to the server with BEGIN, heard in open transactions, left in no connection."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.urls import url_of

from fwdb import config
from fwdb.audit import Audit
from fwdb.database import Database
from fwdb.errors import DuplicateKey, FwdbError, ParameterError, PermissionDenied
from fwdb.models import users
from fwdb.stores import PostgresStore

ANA, BOB = "0190a1b2-c3d4-7e5f-8a6b-00000000000a", "0190a1b2-c3d4-7e5f-8a6b-00000000000b"
NAMED = sa.text("SELECT nullif(current_setting('fwdb.actor', true), '') AS actor")
BROKEN = sa.text("SELECT 1 / 0")


@pytest.fixture
def store(module_db: Database) -> Iterator[PostgresStore]:
    """A store with a single connection, so that whatever is left in it is met again."""
    small = config.settings().model_copy(update={"pool_size": 1, "pool_max_overflow": 0})
    store = PostgresStore(url_of(module_db.postgres), settings=small)
    yield store
    assert named(store) is None
    store.close()


@pytest.fixture
def audit(store: PostgresStore) -> Audit:
    return Audit(store)


def named(store: PostgresStore) -> Any:
    """Who acts, as the server knows it."""
    found = store.rows(NAMED)[0]["actor"]
    return None if found is None else json.loads(found)


def messages(store: PostgresStore, work: Any) -> list[str]:
    """The messages of both sides while `work()` runs on the one connection."""
    with store.connection(naming=False) as connection:
        driver = connection.connection.driver_connection
    with tempfile.TemporaryFile() as file:
        driver.pgconn.trace(file.fileno())
        try:
            work()
        finally:
            driver.pgconn.untrace()
        file.seek(0)
        return file.read().decode().splitlines()


def round_trips(store: PostgresStore, work: Any) -> int:
    """How often the server was waited for: it ends each answer by one ReadyForQuery."""
    return sum("\tReadyForQuery" in line for line in messages(store, work))


def test_a_transaction_names_who_acts(store, audit):
    """All that is given and nothing else; outside of the block nobody acts."""
    said = {"user_id": ANA, "ip_address": "2001:DB8::7", "reason": "ticket 7 – ä"}
    with audit.context(**said), store.transaction():
        assert named(store) == said | {"ip_address": "2001:db8::7"}
    with store.transaction():
        assert named(store) is None


@pytest.mark.parametrize(("options", "more"), [({}, 1), ({"timeout_ms": 50}, 2)])
def test_it_costs_one_round_trip(store, audit, options, more):
    """Another one for a limit of time, which holds; none where nobody acts."""

    def work(**options: Any) -> None:
        with store.transaction(**options) as connection:
            connection.execute(sa.text("SELECT 1"))

    def with_actor() -> None:
        with audit.context(user_id=ANA):
            work(**options)

    for _ in range(7):  # the driver prepares a statement that comes often, once
        with_actor()
    assert round_trips(store, with_actor) == round_trips(store, work) + more
    if options:
        with pytest.raises(FwdbError, match="statement timeout"), store.transaction(**options):
            store.rows(sa.text("SELECT pg_sleep(10)"))


def test_a_single_statement_is_named_too(store, audit):
    """It gets a transaction of its own, committed at its end."""
    with audit.context(user_id=ANA):
        assert named(store) == {"user_id": ANA}
        store.execute(sa.text("CREATE TABLE public.kept AS SELECT 1 AS one"))
        with pytest.raises(FwdbError):
            store.execute(BROKEN)
    assert store.rows(sa.text("SELECT one FROM public.kept")) == [{"one": 1}]
    store.execute(sa.text("DROP TABLE public.kept"))


def test_a_plain_selection_needs_no_name(store, audit):
    """Reading a table costs the same inside a context as outside."""
    plain = sa.select(users.c.id).limit(1)
    outside = round_trips(store, lambda: store.rows(plain))
    with audit.context(user_id=ANA):
        assert round_trips(store, lambda: store.rows(plain)) == outside
        assert round_trips(store, lambda: store.rows(NAMED)) > outside


def test_an_open_transaction_hears_of_it_at_once(store, audit, module_db):
    """And of who acted before when the block ends; what is not said comes from outside."""
    with store.transaction(), module_db.audit.context(user_id=ANA):
        # It is a matter of the thread, not of the object that was told.
        assert named(store) == named(module_db.postgres) == {"user_id": ANA}
    with audit.context(user_id=ANA), store.transaction():
        with audit.context(reason="import"):
            assert named(store) == {"user_id": ANA, "reason": "import"}
            with audit.context(user_id=BOB):
                assert named(store) == {"user_id": BOB, "reason": "import"}
            assert named(store) == {"user_id": ANA, "reason": "import"}
        assert named(store) == {"user_id": ANA}


def test_a_context_ends_with_who_acted_before_whatever_happens_in_it(store, audit):
    """Even when it is the first that the transaction does; an error goes through it unchanged."""
    with store.transaction():
        with audit.context(user_id=ANA):
            assert named(store) == {"user_id": ANA}
        assert named(store) is None
    with (
        pytest.raises(FwdbError, match="division by zero"),
        store.transaction(),
        audit.context(user_id=ANA),
    ):
        store.rows(BROKEN)
    assert named(store) is None


def test_a_savepoint_that_fails_brings_back_who_acted(store, audit):
    """Whether the context is inside of the savepoint or around it."""
    with audit.context(user_id=ANA), store.transaction():
        with contextlib.suppress(FwdbError), store.transaction(), audit.context(user_id=BOB):
            store.rows(BROKEN)
        assert named(store) == {"user_id": ANA}
        with audit.context(user_id=BOB):
            with contextlib.suppress(FwdbError), store.transaction():
                store.rows(BROKEN)
            assert named(store) == {"user_id": BOB}
        assert named(store) == {"user_id": ANA}


class Stop(Exception):
    """Ends a block of the test below."""


BLOCKS = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.tuples(st.sampled_from(["ana", "bob", "transaction", "fail", "break"]), inner),
        max_size=3,
    ),
    max_leaves=12,
)


@given(blocks=BLOCKS)
@settings(max_examples=40, deadline=None)
def test_whatever_is_nested_the_server_knows_who_acts(module_db, blocks):
    """Contexts, transactions, savepoints and errors in any order, on one connection."""
    store = module_db.postgres
    audit = Audit(store)

    def run(blocks: Any, who: str | None) -> None:
        assert (named(store) or {}).get("user_id") == who
        for kind, inner in blocks:
            with contextlib.suppress(Stop, FwdbError):
                if kind in {"ana", "bob"}:
                    id = ANA if kind == "ana" else BOB
                    with audit.context(user_id=id):
                        run(inner, id)
                else:
                    with store.transaction():
                        run(inner, who)
                        if kind == "fail":
                            raise Stop
                        if kind == "break":
                            store.rows(BROKEN)
            assert (named(store) or {}).get("user_id") == who

    run(blocks, None)


def test_threads_act_for_themselves(module_db):
    """A thread begins with nobody, and what one says the others do not."""
    store, audit = module_db.postgres, module_db.audit

    def act(id: str) -> set[str]:
        seen = set()
        for _ in range(20):
            with audit.context(user_id=id), store.transaction():
                seen.add(named(store)["user_id"])
        return seen

    with audit.context(user_id=BOB), ThreadPoolExecutor(2) as executor:
        assert executor.submit(named, store).result() is None
        ids = [f"0190a1b2-c3d4-7e5f-8a6b-{n:012d}" for n in range(4)]
        assert list(executor.map(act, ids)) == [{id} for id in ids]
    assert named(store) is None


def test_nothing_is_sent_where_nothing_can_be_written(store, audit):
    """A reader's pooled session stays free of settings."""

    def work() -> None:
        with audit.context(user_id=ANA), store.transaction(read_only=True):
            assert named(store) is None
            with audit.context(user_id=BOB):
                assert named(store) is None

    work()
    with (
        closing(PostgresStore(url_of(store), read_only=True)) as reader,
        Audit(reader).context(user_id=ANA),
    ):
        assert named(reader) is None
        with reader.transaction():
            assert named(reader) is None
        with pytest.raises(PermissionDenied):
            reader.execute(sa.text("DELETE FROM shared.users"))


def test_a_context_outlives_no_transaction(store, audit):
    """One that is left open by mistake, in a generator say, ends with the transaction."""

    def forgotten() -> Iterator[None]:
        with audit.context(user_id=ANA):
            yield

    with store.transaction():
        block = forgotten()
        next(block)
        assert named(store) == {"user_id": ANA}
    block.close()
    with store.transaction():
        assert named(store) is None


def test_what_names_nobody_is_refused(audit):
    """Before the block begins."""
    for said, sentence in (
        ({}, "context() says nothing; give user_id, ip_address, user_agent or reason."),
        ({"user_id": "ana"}, "'user_id' is 'ana'; give the UUID of a user."),
        ({"ip_address": "10.0.0.1, 10.0.0.2"}, "'ip_address' is '10.0.0.1, 10.0.0.2'; give one"),
    ):
        with pytest.raises(ParameterError) as refusal, audit.context(**said):
            pytest.fail("the block began")
        assert str(refusal.value).startswith(sentence)


def test_a_refused_change_leaves_nobody_behind(store, audit, module_db):
    """The connection that met the error is used again, for nobody."""
    email = store.rows(sa.text("SELECT email FROM shared.users LIMIT 1"))[0]["email"]
    insert = sa.text(
        "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
        " VALUES (:email, '-', 'A', 'B')"
    )
    with audit.context(user_id=ANA):
        with pytest.raises(DuplicateKey):
            store.execute(insert, {"email": email})
        with pytest.raises(DuplicateKey), store.transaction():
            store.execute(insert, {"email": email})
    assert named(store) is None
