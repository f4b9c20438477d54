"""Servers that say nothing: frozen ones, and networks that swallow packets. All comes to an end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import sqlalchemy as sa
from support.embedded import shared, up  # noqa: F401 a fixture
from support.trouble import freezing, in_child, wired

from fwdb import cli, config, errors, migrating
from fwdb.database import Database
from fwdb.embedded import doctor
from fwdb.monitoring.health import Probe
from fwdb.stores import MongoStore, PostgresStore

# Seconds that are short enough to wait for; a call may take a few of them, one after the other.
HASTY: dict[str, Any] = {
    "timeout_seconds": 1.5,
    "statement_timeout_seconds": 1,
    "connect_timeout_seconds": 2,
    "monitor_timeout_seconds": 1.5,
}
FWDB = [sys.executable, "-m", "fwdb.cli"]
LIMIT_SECONDS = 20  # where it took minutes, or for ever

Freeze = Callable[[], None]


@pytest.fixture(scope="module")
def home(shared: Path) -> Path:  # noqa: F811
    """Servers that a test may freeze, migrated, with a table for loads."""
    with stores(*urls(shared)) as db:
        migrating.migrate(db.postgres, db.mongodb)
        db.seeder.seed_all()
        db.postgres.execute(sa.text("CREATE TABLE public.loaded (n int)"))
    return shared


def urls(home: Path) -> tuple[str, str]:
    running = up(home, idle_minutes=0)
    assert running.postgres
    assert running.mongodb
    return running.postgres.owner, running.mongodb.owner


@contextmanager
def stores(postgres: str, mongodb: str, **update: Any) -> Iterator[Database]:
    settings = config.settings().model_copy(update=update)
    with Database(
        PostgresStore(postgres, settings=settings),
        MongoStore(mongodb, settings=settings),
        settings=settings,
    ) as db:
        yield db


@pytest.fixture
def hasty(home: Path) -> Iterator[Database]:
    """Both stores with `HASTY` settings, and connections that are open."""
    with stores(*urls(home), **HASTY) as db:
        db.postgres.ping()
        db.mongodb.ping()
        yield db


@contextmanager
def soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < LIMIT_SECONDS


# -- calls ----------------------------------------------------------------------------------------


def in_transaction(
    then: Callable[[Database], object], **options: Any
) -> Callable[[Database, Freeze], None]:
    def call(db: Database, freeze: Freeze) -> None:
        with db.postgres.transaction(**options) as connection:
            connection.execute(sa.text("SELECT 1"))
            freeze()
            then(db)

    return call


def idle(db: Database, freeze: Freeze) -> None:
    freeze()
    db.users.first()


def in_the_middle(db: Database, freeze: Freeze) -> None:
    rows = []

    def feed(line: bytes) -> None:
        rows.append(line)
        if len(rows) == 1000:
            freeze()

    db.postgres.lines(sa.text("SELECT generate_series(1, 3000000)"), feed)


def told_who_acts(db: Database) -> None:
    with db.audit.context(reason="x"):
        db.postgres.ping()


CALLS: dict[str, Callable[[Database, Freeze], None]] = {
    "a connection of the pool": idle,
    "a statement": in_transaction(lambda db: db.postgres.ping()),
    "who acts": in_transaction(told_who_acts),
    "COMMIT": in_transaction(lambda db: None),
    "a frame": in_transaction(lambda db: db.frame("SELECT 1 AS n")),
    "COPY from the server": in_the_middle,
    "COPY to the server": in_transaction(
        lambda db: db.postgres.copy("public.loaded", pd.DataFrame({"n": range(2_000_000)}))
    ),
    "long work": in_transaction(lambda db: db.postgres.ping(), timeout_ms=0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_frozen_postgresql_is_given_up(
    home: Path, hasty: Database, call: Callable[[Database, Freeze], None]
):
    """With the reason, and the connection goes; when the server is back, so is the store."""
    with freezing(home, "postgres") as freeze, soon():
        with pytest.raises(errors.StoreUnavailable, match="no answer from postgres at 127") as said:
            call(hasty, freeze)
        assert hasty.postgres.pool().in_use == 0
    assert hasty.users.first() is not None

    if call is not idle:
        assert "within 1.5 s (FWDB_TIMEOUT_SECONDS)" in str(said.value)
        assert "whether a change under way was stored is not known" in str(said.value)


def test_a_question_of_the_monitor_has_a_time_of_its_own(home: Path, hasty: Database):
    said = r"1\.5 s \(FWDB_MONITOR_TIMEOUT_SECONDS\)"
    with (
        closing(hasty.postgres.twin(application_name="fwdb-monitor")) as twin,
        freezing(home, "postgres") as freeze,
        pytest.raises(errors.StoreUnavailable, match=said),
    ):
        CALLS["a statement"](Database(twin, hasty.mongodb, settings=hasty.settings), freeze)


def test_long_work_is_waited_for_while_the_server_lives(home: Path, hasty: Database):
    """Twice as long as a silent server is; a limit it has too."""
    with hasty.postgres.transaction(timeout_ms=0) as connection:
        connection.execute(sa.text("SELECT pg_sleep(3)"))
    with (
        stores(*urls(home), **HASTY, long_timeout_seconds=2) as db,
        pytest.raises(errors.QueryTimeout, match="statement timeout"),
        db.postgres.transaction(timeout_ms=0) as connection,
    ):
        connection.execute(sa.text("SELECT pg_sleep(30)"))


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.designs.count(),
        lambda db: db.mongodb.client.get_database("x")["y"].insert_one({"a": 1}),
        lambda db: db.audit.follow(once=True),
    ],
    ids=["a question", "a write", "a follower"],
)
def test_a_frozen_mongodb_is_given_up(
    home: Path, hasty: Database, call: Callable[[Database], object]
):
    with freezing(home, "mongodb") as freeze, soon():
        freeze()
        with (
            pytest.raises(errors.StoreUnavailable, match="no answer from mongodb at 127"),
            hasty.mongodb.errors(),
        ):
            call(hasty)
        hasty.close()  # takes leave of nobody


@pytest.mark.parametrize("name", ["postgres", "mongodb"])
def test_a_network_that_swallows_packets_is_given_up(home: Path, name: str):
    """Packets go nowhere, new connections are taken and nothing is heard on them."""
    given = dict(zip(("postgres", "mongodb"), urls(home), strict=True))
    with wired(given[name]) as (line, url), stores(**given | {name: url}, **HASTY) as db:
        ask = db.users.first if name == "postgres" else db.designs.count
        ask()
        line.hold()
        with soon(), pytest.raises(errors.StoreUnavailable, match=f"no answer from {name}"):
            ask()


# -- locks ----------------------------------------------------------------------------------------


def test_seal_does_not_wait_for_ever_and_says_for_whom(home: Path, hasty: Database):
    with (
        closing(PostgresStore(urls(home)[0], application_name="careless")) as other,
        other.transaction() as connection,
    ):
        connection.execute(sa.text("LOCK TABLE audit.seals"))
        with pytest.raises(errors.Transient, match=r"nothing was sealed; .* \(careless, idle in"):
            hasty.audit.seal()
    assert hasty.audit.seal().seals == 1


# -- commands -------------------------------------------------------------------------------------

COMMANDS = (
    "audit anomalies", "audit coverage", "audit follow --once", "audit holds", "audit partitions",
    "audit retain", "audit revert --transaction-id 1", "audit seal", "audit trail", "audit verify",
    "clear --yes", "migrate", "monitor --once", "query table_states", "seed", "workload",
)  # fmt: skip


@pytest.fixture
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FWDB_HOME", str(home))
    for name, value in HASTY.items():
        monkeypatch.setenv(f"FWDB_{name.upper()}", str(value))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("environment")
def test_a_command_on_a_frozen_server_ends(
    home: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The built-in server, which it waited a minute for to come up."""
    monkeypatch.setattr(sys, "argv", ["fwdb", *command.split()])
    with freezing(home, "postgres") as freeze, soon():
        freeze()
        with pytest.raises(SystemExit) as ended:
            cli.main()

    assert ended.value.code == 4
    assert "fwdb: no answer from postgres at 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["postgres", "mongodb"])
@pytest.mark.usefixtures("environment")
def test_health_says_that_a_server_is_frozen(home: Path, name: str):
    """In two seconds or so."""
    with freezing(home, name) as freeze:
        freeze()
        started = time.monotonic()
        ran = subprocess.run([*FWDB, "health"], capture_output=True, text=True, check=False)
        assert time.monotonic() - started < 10
        assert "is taken by another" not in str(doctor(home))  # it is the server's own port
    lines = {line.split()[0]: line for line in ran.stdout.splitlines()}
    assert f"no answer from {name} at 127.0.0.1" in lines.pop(name)
    assert [line.split()[1] for line in lines.values()] == ["up"]
    assert ran.returncode == 1


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("frozen", [(), ("postgres",), ("mongodb",)], ids=str)
def test_commands_end_on_sigterm(
    home: Path, frozen: tuple[str, ...], wait_until: Callable[..., None], tmp_path: Path
):
    """Within ten seconds, whatever they wait for; as by Ctrl-C where they do not end in order."""
    # As configured by default: nothing but the signal ends what they are at.
    env = {key: value for key, value in os.environ.items() if not key.endswith("TIMEOUT_SECONDS")}
    commands = ["audit follow", "audit seal --interval 1", "monitor --interval 1",
                "workload --seconds 300", f"report health --out {tmp_path}"]  # fmt: skip
    running = {
        command: subprocess.Popen(
            [*FWDB, *command.split()], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    }
    with ExitStack() as stack:
        for process in running.values():
            stack.callback(process.kill)
        sessions = sa.text(
            "SELECT count(DISTINCT application_name) AS n FROM pg_stat_activity"
            " WHERE application_name IN ('fwdb-follower', 'fwdb-seal', 'fwdb-workload')"
        )
        with stores(*urls(home)) as db:
            wait_until(lambda: db.postgres.rows(sessions)[0]["n"] == 3, timeout=60)
            report = psutil.Process(running[commands[-1]].pid)
            wait_until(lambda: kernels(report), timeout=60)
        children = kernels(report)
        for name in frozen:
            stack.enter_context(freezing(home, name))()
        for process in [*running.values()] * 2:  # `timeout` tells the process, then its group
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LIMIT_SECONDS
        for command, process in running.items():
            said = process.communicate(timeout=max(1, deadline - time.monotonic()))[0].decode()
            assert process.returncode in {0, 143}, (command, said)
            assert "Traceback" not in said, command
        assert not psutil.wait_procs(children, timeout=10)[1]


# -- forks ----------------------------------------------------------------------------------------


def kernels(report: psutil.Process) -> list[psutil.Process]:
    """Those of its children that run a notebook; with threads: one that only starts says so."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [one for one in report.children() if "ipykernel_launcher" in one.cmdline()]
        return [one for one in found if one.num_threads() > 3]
    return []


def session(db: Database) -> int:
    return int(db.postgres.rows(sa.text("SELECT pg_backend_pid() AS pid"))[0]["pid"])


def test_a_forked_process_has_connections_of_its_own(db: Database):
    """And the monitor is asked by threads of its own."""
    mine, answered = session(db), threading.Event()
    slow = Probe("postgres", lambda: answered.wait() and None)  # type: ignore[arg-type]
    slow.start()
    theirs, opened, asks, health = in_child(
        lambda: (
            f"{session(db)} {db.postgres.pool().opened + db.mongodb.pool().opened} "
            f"{slow.start().thread.is_alive()} {db.health()}"
        )
    ).split(" ", 3)
    answered.set()

    assert int(theirs) != mine
    assert (opened, asks) == ("1", "True")
    assert health == str(db.health())
    assert session(db) == mine


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_transaction_belongs_to_the_process_that_began_it(db: Database):
    """The child is told so, may leave it, and begins its own; that of the parent goes on."""
    with db.transaction() as inside, db.postgres.transaction() as connection:
        connection.execute(sa.text("CREATE TEMPORARY TABLE kept (n int) ON COMMIT DROP"))

        def leave() -> int:
            with contextlib.suppress(errors.FwdbError), inside.postgres.transaction():
                session(db)
            raise StopIteration

        assert in_child(lambda: session(db)).startswith("QueryError: postgres: this transaction")
        assert in_child(leave) == "StopIteration: "
        connection.execute(sa.text("SELECT * FROM kept"))

    def after() -> int:
        with contextlib.suppress(KeyError), db.transaction():
            mine = session(db)
            if (child := os.fork()) == 0:
                raise KeyError
            os.waitpid(child, 0)
            assert session(db) == mine
            return 0
        os._exit(0 if session(db) else 1)

    assert in_child(after) == "0"
