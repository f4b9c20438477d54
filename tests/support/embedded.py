"""What the tests of the built-in servers share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymongo
import pytest

from fwdb import embedded
from fwdb.embedded.server import argv
from fwdb.embedded.watcher import identity
from support import ROOT

AS_ROOT = os.geteuid() == 0
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
FULL = os.environ.get("FWDB_TEST_FULL") == "1"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A state folder of its own; its servers and data are gone after the test."""
    path = tmp_path / ".fwdb"
    yield path
    embedded.remove(path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for tests that need no new one; any of them may leave it stopped."""
    path = tmp_path_factory.mktemp("shared") / ".fwdb"
    yield path
    embedded.remove(path)


def up(home: Path, **options: Any) -> embedded.Servers:
    """`embedded.up` that ends with this process, however it ends."""
    return embedded.up(home, **{"owner_pid": os.getpid(), **options})


def up_postgres(home: Path, **options: Any) -> embedded.Urls:
    """Only PostgreSQL; its URLs."""
    urls = up(home, stores=("postgres",), **options).postgres
    assert urls
    return urls


def up_mongodb(home: Path, **options: Any) -> embedded.Urls:
    """Only MongoDB; its URLs."""
    urls = up(home, stores=("mongodb",), **options).mongodb
    assert urls
    return urls


def ask(url: str, sql: str) -> Any:
    """The first value that `sql` gives; with `url` as the account."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def mongo_names(url: str) -> list[str]:
    """Names of the collections of the database in `url`."""
    with pymongo.MongoClient(url, serverSelectionTimeoutMS=5000) as client:
        return client.get_default_database().list_collection_names()


def store(home: Path, name: str) -> embedded.StoreStatus:
    """The status of one store."""
    return next(one for one in embedded.status(home).stores if one.store == name)


def pid(home: Path, name: str = "postgres") -> int:
    """The process of a server that runs."""
    found = store(home, name).pid
    assert found, store(home, name).reason
    return found


def record(home: Path, name: str = "postgres") -> dict[str, Any]:
    """What state.json holds of a server."""
    return dict(json.loads((home / "state.json").read_text())["servers"][name])


def servers_over(home: Path) -> dict[str, list[int]]:
    """Pids of every live server process over the data of `home`, by store.

    The replica is among them once there was one.
    """
    from fwdb.embedded.control import KINDS
    from fwdb.embedded.home import Home

    place = Home(home)
    servers = {name: KINDS[name](place) for name in KINDS}
    return {
        name: [pid for pid, _ in server.processes()]
        for name, server in servers.items()
        if name in embedded.STORES or server.data.exists()
    }


def watchers_of(home: Path) -> list[int]:
    """Pids of live watchers of `home`."""
    import psutil

    return [
        one
        for one in psutil.pids()
        if (words := argv(one))
        and words[-1] == str(home)
        and any(word.endswith("watcher.py") for word in words)
        and identity(one) is not None
    ]


def kill(victim: int) -> None:
    """kill -9, and wait until it is gone."""
    began = identity(victim)
    os.kill(victim, signal.SIGKILL)
    while identity(victim) == began and began is not None:
        pass


def python(code: str, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Another Python process that runs `code` with `words` as its arguments."""
    environment = {**os.environ, **(env or {})} if env is not None else None
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
