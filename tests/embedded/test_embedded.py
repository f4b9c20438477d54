"""The life of the built-in servers: start, join, several starters, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from pathlib import Path

import psycopg
import pymongo
import pytest
from support.embedded import (
    ask,
    home,
    kill,
    mongo_names,
    pid,
    python,
    record,
    servers_over,
    shared,
    store,
    up,
    up_mongodb,
    up_postgres,
    watchers_of,
)

from fwdb import embedded, errors
from fwdb.embedded import watcher
from fwdb.embedded.home import Home
from fwdb.embedded.processes import end
from fwdb.embedded.watcher import identity

__all__ = ["home", "shared"]  # the fixtures

STARTER = """
import json, os, sys
from fwdb import embedded
home, owner = sys.argv[1], int(sys.argv[2])
servers = embedded.up(home, owner_pid=owner or os.getpid())
pids = {one.store: one.pid for one in embedded.status(home).stores}
print(json.dumps([servers.postgres.app, servers.mongodb.app, pids]), flush=True)
"""


def test_a_start_gives_two_servers_that_a_second_call_joins(home):
    """The second caller gets the same processes and URLs; `running` starts nothing."""
    assert embedded.running(home) is None
    assert not home.exists()

    first = up(home)
    pids = {one.store: one.pid for one in embedded.status(home).stores}

    assert up(home) == first
    assert embedded.running(home) == first
    assert {one.store: one.pid for one in embedded.status(home).stores} == pids
    assert ask(first.postgres.app, "SELECT current_database()") == "fashion_wallet"
    assert mongo_names(first.mongodb.app) == []
    assert len(watchers_of(home)) == 1

    assert embedded.down(home) is True
    assert embedded.down(home) is False
    assert servers_over(home) == {"postgres": [], "mongodb": []}
    again = up(home)
    assert again == first, "a restart changes neither ports nor passwords"


def test_down_of_nothing_makes_nothing(tmp_path):
    """There is no server to stop, and no state folder afterwards."""
    assert embedded.down(tmp_path / "none") is False
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_store_is_named(tmp_path):
    """The nearest right name is in the sentence, and nothing is written."""
    with pytest.raises(errors.UnknownName, match="did you mean 'postgres'"):
        embedded.up(tmp_path / "x", stores=("postgre",))
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
    assert {name: len(pids) for name, pids in servers_over(home).items()} == {
        "postgres": 1,
        "mongodb": 1,
    }
    assert ask(answers[0][0], "SELECT 1") == 1
    assert mongo_names(answers[0][1]) == []


def test_servers_outlive_their_starter(home):
    """Without an owner the end of the starting process changes nothing."""
    code = "import sys; from fwdb import embedded; embedded.up(sys.argv[1], stores=('postgres',))"
    starter = python(code, str(home))
    _, err = starter.communicate(timeout=60)

    assert starter.returncode == 0, err
    assert embedded.running(home, stores=("postgres",))


def test_servers_end_with_their_owner(home, wait_until):
    """The owner is killed -9; five seconds later neither server nor watcher is left."""
    code = STARTER + "\nimport signal; signal.pause()"
    owner = python(code, str(home), "0")
    assert owner.stdout
    json.loads(owner.stdout.readline())
    # Clients that stay keep nothing alive.
    clients = [
        socket.create_connection(("127.0.0.1", record(home, name)["port"]))
        for name in ("postgres", "mongodb")
    ]

    owner.kill()
    killed_at = time.monotonic()
    owner.communicate()
    wait_until(lambda: not any(servers_over(home).values()) and not watchers_of(home), timeout=8)
    took = time.monotonic() - killed_at
    for client in clients:
        client.close()

    assert took < 5


def test_an_owner_that_does_not_exist_is_refused(home):
    """Servers with a dead owner would stop at once."""
    ended = python("pass")
    ended.communicate()

    with pytest.raises(errors.EmbeddedError, match=f"no process {ended.pid}"):
        up(home, owner_pid=ended.pid)


def test_idle_servers_stop_and_used_ones_do_not(home, wait_until):
    """One client of one server keeps both; when it has left, both stop by themselves."""
    servers = up(home, idle_minutes=0.03)
    used = home / "used"
    with psycopg.connect(servers.postgres.app):
        before = used.stat().st_mtime
        # The watcher writes down that it has seen the client, twice the idle time and more.
        wait_until(lambda: used.stat().st_mtime > before + 4, timeout=15)
        assert embedded.running(home)
    wait_until(lambda: not any(servers_over(home).values()), timeout=15)
    wait_until(lambda: not watchers_of(home), timeout=5)

    assert up(home) == servers


def test_idle_time_zero_never_stops(home):
    """The watcher does not even count clients."""
    watch = watcher.Watch({"owner": None, "idle_seconds": 0, "used": "/nowhere"}, [], None)

    assert watch.idle(1e12) is False


def test_a_killed_server_is_started_again_and_keeps_its_data(home):
    """kill -9 of each; what was committed is there, and the port is the same."""
    first = up(home)
    ask(first.postgres.owner, "CREATE TABLE kept AS SELECT 42 AS value")
    with pymongo.MongoClient(first.mongodb.app) as client:
        client.fashion_wallet.kept.insert_one({"value": 42})
    kill(pid(home, "postgres"))
    kill(pid(home, "mongodb"))
    assert embedded.running(home) is None
    assert "has ended" in store(home, "postgres").reason

    second = up(home)

    assert second == first
    assert ask(second.postgres.app, "SELECT value FROM kept") == 42
    assert mongo_names(second.mongodb.report) == ["kept"]


def test_a_killed_watcher_is_replaced_and_the_server_goes_on(shared):
    """The next start takes the running server over, with its process and its clients."""
    up_postgres(shared)
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
    """Lost, cut or nonsense: the process is recognised by its command line."""
    urls = up_postgres(shared)
    before = pid(shared)
    state = shared / "state.json"
    for content in ("", "{", '{"servers": 7}', "[]", None):
        if content is None:
            state.unlink()
        else:
            state.write_text(content)

        assert embedded.running(shared, stores=("postgres",)) is None
        assert up_postgres(shared) == urls
        assert pid(shared) == before


def test_down_finds_a_server_that_no_state_file_names(shared):
    """It is verified by program and data folder before it is stopped."""
    up_mongodb(shared)
    before = pid(shared, "mongodb")
    (shared / "state.json").unlink()

    assert embedded.down(shared) is True
    assert identity(before) is None


def test_a_foreign_process_is_never_signalled(shared):
    """A pid in the state file that belongs to another program by now is left alone."""
    up_postgres(shared)
    stranger = python("import signal; signal.pause()")
    try:
        state = json.loads((shared / "state.json").read_text())
        state["servers"]["postgres"] |= {"pid": stranger.pid, "began": identity(stranger.pid)}
        (shared / "state.json").write_text(json.dumps(state))

        assert embedded.running(shared, stores=("postgres",)) is None
        assert embedded.down(shared) is True, "the real one is found and stopped"
        assert end(stranger.pid, 0.0, [signal.SIGTERM]) is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


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
    code = (
        "import sys; from fwdb import embedded\n"
        "embedded.up(sys.argv[1], progress=lambda text: print(text, flush=True))"
    )
    starter = python(code, str(home))
    assert starter.stdout
    while "cluster" not in starter.stdout.readline():
        pass
    starter.send_signal(signal.SIGINT)
    _, err = starter.communicate(timeout=30)

    assert "KeyboardInterrupt" in err
    wait_until(lambda: not watchers_of(home), timeout=10)
    assert servers_over(home) == {"postgres": [], "mongodb": []}
    assert ask(up_postgres(home).app, "SELECT 1") == 1


def test_a_starter_that_is_killed_leaves_nothing_in_the_way(home, wait_until):
    """kill -9 while the first set-up runs, before and after the watcher is there."""
    code = (
        "import sys; from fwdb import embedded\n"
        "embedded.up(sys.argv[1], progress=lambda text: print(text, flush=True))"
    )
    for moment in ("cluster", "Starting"):
        starter = python(code, str(home))
        assert starter.stdout
        while moment not in starter.stdout.readline():
            assert starter.poll() is None
        starter.kill()
        starter.communicate()

    servers = up(home)

    assert ask(servers.postgres.app, "SELECT 1") == 1
    assert mongo_names(servers.mongodb.app) == []
    assert {name: len(pids) for name, pids in servers_over(home).items()} == {
        "postgres": 1,
        "mongodb": 1,
    }


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
    server = object.__new__(watcher.Server)
    server.logs, server.user = [str(tmp_path / "one.log"), str(tmp_path / "log")], None
    folder = tmp_path / "log"
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 5000)
    (folder / "link").symlink_to(outside)
    others = tmp_path / "others"
    others.mkdir()
    (others / "large").write_bytes(b"x" * 5000)
    (tmp_path / "way").symlink_to(others)
    server.logs.append(str(tmp_path / "way"))
    for age, name in enumerate(("new", "middle", "old")):
        (folder / name).write_bytes(b"x" * 600)
        os.utime(folder / name, (1e9 - age, 1e9 - age))

    server.bound_logs()

    assert [(folder / name).stat().st_size for name in ("new", "middle", "old")] == [600, 0, 0]
    assert outside.stat().st_size == (others / "large").stat().st_size == 5000


def test_the_state_folder_is_closed_to_others(shared, tmp_path):
    """0700 for the folder and 0600 for what is in it; it ignores itself for git."""
    up_postgres(shared)
    opened = tmp_path / ".fwdb"
    opened.mkdir(mode=0o755)
    Home(opened).create()

    assert stat.S_IMODE(opened.stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700
    for name in ("secrets.json", "state.json", "lock"):
        assert stat.S_IMODE((shared / name).stat().st_mode) == 0o600, name
    assert (shared / ".gitignore").read_text() == "*\n"
    assert Path(record(shared)["data"]).stat().st_mode & 0o777 == 0o700
