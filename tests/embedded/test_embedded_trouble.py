"""What a start meets that is stale, taken, damaged, missing or of another kind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.embedded import (
    AS_ROOT,
    DEBIAN_15,
    ask,
    home,
    kill,
    pid,
    python,
    record,
    shared,
    store,
    up,
    up_mongodb,
    up_postgres,
)

from fwdb import embedded, errors
from fwdb.embedded import control, mongodb, postgres, watcher

__all__ = ["home", "shared"]  # the fixtures


def write_pid_file(home: Path, first_line: str) -> None:
    """A postmaster.pid as a server that is gone may leave it."""
    data = Path(embedded.status(home).stores[0].data or "")
    lines = [first_line, str(data), "1700000000", "5432", "", "127.0.0.1", "", "ready"]
    content = "\n".join(lines) + "\n" if first_line else ""
    (data / "postmaster.pid").write_text(content)
    if AS_ROOT:
        owner = data.stat()
        os.chown(data / "postmaster.pid", owner.st_uid, owner.st_gid)


def test_stale_pid_files_are_no_obstacle(shared):
    """A dead pid, a recycled one, a zombie, an empty file and nonsense; no stranger is hurt."""
    up_postgres(shared)
    ended = python("pass")
    ended.communicate()
    stranger = python("import signal; signal.pause()")
    # Its parent is alive and does not reap it: the zombie that some containers make.
    zombie = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    try:
        for line in (str(ended.pid), str(stranger.pid), str(zombie.pid), "", "nonsense"):
            embedded.down(shared)
            write_pid_file(shared, line)
            assert ask(up_postgres(shared).app, "SELECT 1") == 1, line
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()
        zombie.wait()


def test_a_postmaster_killed_with_clients_starts_again(shared):
    """Its backends live a moment longer than itself, with the data folder in their hands."""
    urls = up_postgres(shared)
    import psycopg

    connection = psycopg.connect(urls.app)
    kill(pid(shared))

    assert ask(up_postgres(shared).app, "SELECT 1") == 1
    connection.close()


def test_a_taken_port_is_replaced(shared):
    """The port of the last time belongs to somebody else now: the servers get new ones."""
    first = up(shared)
    ports = {record(shared, name)["port"] for name in ("postgres", "mongodb")}
    embedded.down(shared)
    with socket.socket() as one, socket.socket() as two:
        for port, taker in zip(ports, (one, two), strict=True):
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taker.bind(("127.0.0.1", port))
            taker.listen()
        second = up(shared)

    assert first != second
    assert ports.isdisjoint({record(shared, name)["port"] for name in ("postgres", "mongodb")})
    assert second.postgres
    assert ask(second.postgres.app, "SELECT 1") == 1


def test_a_port_taken_between_choice_and_start_is_replaced(shared, monkeypatch):
    """Both servers fail to bind at first and are started again elsewhere."""
    up(shared)
    embedded.down(shared)
    with socket.socket() as one, socket.socket() as two:
        taken = []
        for taker in (one, two):
            taker.bind(("127.0.0.1", 0))
            taker.listen()
            taken.append(taker.getsockname()[1])
        free = control.free_port
        left = list(taken)
        monkeypatch.setattr(
            control,
            "free_port",
            lambda *words, **options: left.pop() if left else free(*words, **options),
        )
        servers = up(shared)

    assert left == []
    assert {record(shared, name)["port"] for name in ("postgres", "mongodb")}.isdisjoint(taken)
    assert servers.postgres
    assert ask(servers.postgres.app, "SELECT 1") == 1


def test_a_first_start_killed_half_way_leaves_no_trace(home):
    """Half-made folders of both servers are thrown away."""
    up(home)
    embedded.down(home)
    halves = []
    for one in embedded.status(home).stores:
        data = Path(one.data or "")
        data.rename(data.with_name(f"{data.name}.tmp"))
        halves.append(data.with_name(f"{data.name}.tmp"))
        (halves[-1] / "left").touch()

    servers = up(home)

    assert servers.postgres
    assert ask(servers.postgres.app, "SELECT 1") == 1
    assert not any(half.exists() for half in halves)
    assert not list(Path(record(home)["data"]).glob("left"))


def test_data_of_another_major_is_refused_before_a_start(shared):
    """Both versions and the remedy are in the sentence; the data is not touched."""
    up_postgres(shared)
    embedded.down(shared)
    version = Path(store(shared, "postgres").data or "") / "PG_VERSION"
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
    urls = up_postgres(home)

    assert str(ask(urls.app, "SHOW server_version")).startswith("15.")
    taken = [finding.sentence for finding in embedded.doctor(home) if "taken:" in finding.sentence]
    assert any("the data is of 15" in sentence for sentence in taken)


def test_a_wrong_folder_of_binaries_is_named(tmp_path, monkeypatch):
    """One sentence with the variable, the folder and what it lacks."""
    monkeypatch.setenv("FWDB_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(errors.EmbeddedError, match=r"FWDB_POSTGRES_BIN.* has no postgres"):
        up_postgres(tmp_path / ".fwdb")


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch):
    """No wheel, nothing on PATH: the sentence says what to install or to set."""
    monkeypatch.setattr(postgres, "_DISTRIBUTION_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(control.importlib.util, "find_spec", lambda name: name == "psutil" or None)
    with pytest.raises(errors.FeatureUnavailable, match=r"pip install 'fwdb\[embedded\]'"):
        up_postgres(tmp_path / ".fwdb")

    def missing(name):
        raise mongodb.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mongodb.importlib.metadata, "distribution", missing)
    with pytest.raises(errors.FeatureUnavailable, match=r"pip install 'fwdb\[embedded\]'"):
        up_mongodb(tmp_path / ".fwdb")


def test_a_missing_mongodb_does_not_keep_postgres_down(home, monkeypatch):
    """The error names what is missing; the other server runs and can be joined."""

    def missing(name):
        raise mongodb.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mongodb.importlib.metadata, "distribution", missing)
    with pytest.raises(errors.FeatureUnavailable, match="SecantusDB is not installed"):
        up(home)

    joined = embedded.running(home, stores=("postgres",))
    assert joined
    assert joined.postgres
    assert ask(joined.postgres.app, "SELECT 1") == 1


def test_mongodb_data_of_another_program_is_refused(home):
    """SecantusDB never opens the files of a mongod, nor any that nobody says are its own."""
    up_mongodb(home)
    embedded.down(home)
    data = Path(store(home, "mongodb").data or "")
    marker = data / "engine.json"
    text = marker.read_text()
    (data / "keyfile").touch()
    with pytest.raises(errors.EmbeddedError, match=r"made by a mongod.* FWDB_MONGODB_URL"):
        up_mongodb(home)
    (data / "keyfile").unlink()
    marker.unlink()
    with pytest.raises(errors.EmbeddedError, match="move the folder away"):
        up_mongodb(home)
    marker.write_text(text)
    assert up_mongodb(home)


def test_a_server_that_cannot_start_says_why(home):
    """The last error of its own log is in the sentence."""
    up_postgres(home)
    embedded.down(home)
    data = Path(store(home, "postgres").data or "")
    with open(data / "postgresql.conf", "a") as file:
        file.write("no_such_setting = 1\n")

    with pytest.raises(errors.EmbeddedError, match=r"did not start: .*no_such_setting"):
        up_postgres(home)
    assert not store(home, "postgres").running


def test_a_server_that_ends_at_once_is_known_to_be_gone(tmp_path, monkeypatch):
    """Even before anybody could ask when it began: nobody waits for it until a deadline."""
    plan = {
        "name": "postgres",
        "command": [sys.executable, "-c", "pass"],
        "port": 1,
        "signals": [],
        "logs": [str(tmp_path / "log")],
        "options": {"cwd": str(tmp_path)},
    }
    with monkeypatch.context() as patch:
        patch.setattr(watcher, "identity", lambda pid: None)
        server = watcher.Server(plan)
    assert server.process is not None
    server.process.wait(30)

    assert watcher.identity(server.pid) != server.began
    assert not server.alive()
