"""The circuit breaker: who is let through, when, and what counts as down."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fwdb.database import Database
from fwdb.errors import (
    CircuitOpen,
    DuplicateKey,
    FwdbError,
    PoolExhausted,
    QueryTimeout,
    StoreUnavailable,
    UnknownName,
)
from fwdb.stores import CircuitBreaker, MongoStore, PostgresStore


class Clock:
    """A clock that goes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("mongodb", clock=clock)


def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    with breaker.guard():
        if error is not None:
            raise error


def fail(breaker: CircuitBreaker, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            call(breaker, StoreUnavailable("no answer"))


def test_a_store_that_is_down_is_not_asked_any_more(breaker: CircuitBreaker) -> None:
    """After three failures in a row; the error says when it is tried again."""
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)

    assert breaker.state == "open"
    with pytest.raises(CircuitOpen, match="mongodb was not asked") as refused:
        call(breaker)
    assert 0.5 <= refused.value.retry_seconds <= 1
    assert isinstance(refused.value, StoreUnavailable)


def test_a_success_in_between_begins_the_count_anew(breaker: CircuitBreaker) -> None:
    """Three failures of many calls are no outage."""
    fail(breaker, 2)
    call(breaker)
    fail(breaker, 2)

    assert breaker.state == "closed"


def test_one_caller_tries_while_the_others_are_refused(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """Half open is one trial and no flood."""
    fail(breaker)
    clock.now += 1
    assert breaker.state == "half_open"
    with breaker.guard():
        assert breaker.state == "open"
        with pytest.raises(CircuitOpen, match="when the call on trial has ended"):
            call(breaker)

    assert breaker.state == "closed"
    call(breaker)


def test_the_pause_doubles_up_to_its_longest(breaker: CircuitBreaker, clock: Clock) -> None:
    """Less up to a half by chance; a success begins with the first pause again."""
    fail(breaker)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        with pytest.raises(CircuitOpen) as refused:
            call(breaker)
        assert pause / 2 <= refused.value.retry_seconds <= pause
        clock.now += refused.value.retry_seconds + 0.001
        fail(breaker, 1)
    clock.now += 60
    call(breaker)
    fail(breaker)
    with pytest.raises(CircuitOpen) as refused:
        call(breaker)

    assert refused.value.retry_seconds <= 1


@pytest.mark.parametrize(
    "error", [PoolExhausted("full"), QueryTimeout("slow"), KeyboardInterrupt()]
)
def test_what_says_nothing_about_the_store_is_not_counted(
    breaker: CircuitBreaker, clock: Clock, error: BaseException
) -> None:
    """Neither as a failure nor as the success of a trial."""
    for _ in range(9):
        with pytest.raises(type(error)):
            call(breaker, error)
    assert breaker.state == "closed"
    fail(breaker)
    clock.now += 1
    with pytest.raises(type(error)):
        call(breaker, error)

    assert breaker.state == "half_open"


@pytest.mark.parametrize("error", [DuplicateKey("twice"), ZeroDivisionError()])
def test_an_error_of_a_store_that_answers_closes_the_circuit(
    breaker: CircuitBreaker, clock: Clock, error: Exception
) -> None:
    """It was reached, whatever it said."""
    fail(breaker)
    clock.now += 1
    with pytest.raises(type(error)):
        call(breaker, error)

    assert breaker.state == "closed"


def test_a_failure_that_began_before_the_circuit_opened_tells_nothing_new(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """It must not prolong the pause."""
    early = breaker.guard()
    early.__enter__()
    fail(breaker)
    clock.now += 1
    error = StoreUnavailable("no answer")
    early.__exit__(StoreUnavailable, error, None)

    assert breaker.state == "half_open"


def test_of_many_threads_one_is_let_through(breaker: CircuitBreaker, clock: Clock) -> None:
    """However they race."""
    fail(breaker)
    clock.now += 1
    outcomes: list[str] = []
    ready, done = threading.Barrier(8, timeout=30), threading.Event()

    def want() -> None:
        ready.wait()
        try:
            with breaker.guard():
                outcomes.append("tried")
                done.wait(5)
        except CircuitOpen:
            outcomes.append("refused")

    threads = [threading.Thread(target=want, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 8:
        done.wait(0.001)
    done.set()
    for thread in threads:
        thread.join()

    assert outcomes.count("tried") == 1


@pytest.mark.parametrize("name", ["postgres", "mongodb"])
def test_each_store_of_a_database_has_a_breaker(db: Database, name: str) -> None:
    """With real errors of a real driver; the other store goes on."""
    settings = db.settings.model_copy(update={"connect_timeout_seconds": 0.1})
    down = Database(
        PostgresStore("postgresql://nobody@127.0.0.1:1/nothing", settings=settings),
        MongoStore("mongodb://127.0.0.1:1/nothing", settings=settings),
        settings=settings,
    )
    ask: Callable[[], object] = getattr(down, name).ping
    for _ in range(3):
        with pytest.raises(StoreUnavailable), down.breaker(name):
            ask()
    with pytest.raises(CircuitOpen), down.breaker(name):
        pytest.fail("the block must not run")
    other = {"postgres": "mongodb", "mongodb": "postgres"}[name]

    assert down.breakers[name].state == "open"
    assert down.breakers[other].state == "closed"
    with db.breaker(name):
        getattr(db, name).ping()
    down.close()


def test_a_breaker_of_no_store_is_refused(db: Database) -> None:
    """With the nearest name."""
    with pytest.raises(UnknownName, match="did you mean 'mongodb'"):
        db.breaker("mongo")
    assert issubclass(CircuitOpen, FwdbError)
