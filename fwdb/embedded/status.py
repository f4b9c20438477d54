"""What runs, and what a start depends on: `fwdb status` and `fwdb doctor`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fwdb.config import settings
from fwdb.embedded import postgres
from fwdb.embedded.accounts import SHARED_FOLDER, open_own, reaches, read_own, server_account
from fwdb.embedded.control import KINDS, STORES, opened
from fwdb.embedded.home import Home, data_bytes, free_bytes, locks
from fwdb.embedded.mongodb import MongoServer
from fwdb.embedded.replica import NAME as REPLICA
from fwdb.embedded.server import port_taken
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError, FwdbError, redact


@dataclass(frozen=True)
class StoreStatus:
    """One built-in server. `reason` says why it does not run, or is empty."""

    store: str
    running: bool
    reason: str
    pid: int | None = None
    port: int | None = None
    engine: str | None = None
    version: str | None = None
    binary: str | None = None
    url: str | None = None
    uptime_seconds: float | None = None
    watched: bool | None = None
    data: str | None = None
    data_bytes: int | None = None


@dataclass(frozen=True)
class Status:
    """The built-in servers of one home; the replica of PostgreSQL too, once there was one."""

    home: Path
    stores: tuple[StoreStatus, ...]

    @property
    def running(self) -> bool:
        """Whether all of them run."""
        return all(store.running for store in self.stores)

    def as_dict(self) -> dict[str, Any]:
        """The same in types that JSON has."""
        return {
            "home": str(self.home),
            "running": self.running,
            "stores": {store.store: asdict(store) for store in self.stores},
        }


def status(home: Path | str | None = None) -> Status:
    """What runs for `home`. Nothing is started, written or counted as use; no password shown."""
    with opened(home) as place:
        names = [*STORES, REPLICA] if REPLICA in place.read_state().ports else STORES
        return Status(place.path, tuple(_store(place, name) for name in names))


def _store(place: Home, name: str) -> StoreStatus:
    server = KINDS[name](place)
    try:
        data = server.data
    except EmbeddedError as error:
        return StoreStatus(name, False, str(error))
    size = data_bytes(data) if data.is_dir() else None
    common: dict[str, Any] = {"data": None if size is None else str(data), "data_bytes": size}
    record = server.record
    if record is None:
        reason = "no server was started" if size is None else "stopped"
        return StoreStatus(name, False, reason, **common)
    there = server.is_recorded()
    runs = there and bool(server.ping())
    reason = "" if runs else f"does not answer on port {record.port}" if there else "has ended"
    return StoreStatus(
        name,
        runs,
        reason and f"process {record.pid} {reason}",
        pid=record.pid if there else None,
        port=record.port,
        engine=record.engine,
        version=record.version,
        binary=record.binary,
        url=redact(server.urls().app) if server.knows_passwords else None,
        uptime_seconds=round(time.time() - record.started_at, 1) if there else None,
        watched=identity(record.watcher_pid) == record.watcher_began,
        **common,
    )


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `ok` is False when it keeps a server from running."""

    subject: str
    ok: bool
    sentence: str


def doctor(home: Path | str | None = None) -> list[Finding]:
    """Look at everything a start depends on; nothing is started and nothing is written."""
    try:
        with opened(home) as place:
            checks = (_machine, _postgres, _mongodb, _servers, _left_behind)
            return [Finding(*one) for check in checks for one in check(place)]
    except EmbeddedError as error:
        return [Finding("home", False, str(error))]


Found = Iterator[tuple[str, bool, str]]  # the fields of a `Finding`


def _machine(place: Home) -> Found:
    version = ".".join(map(str, sys.version_info[:3]))
    yield "python", True, f"Python {version} at {sys.executable}."
    there = next(folder for folder in (place.path, *place.path.parents) if folder.exists())
    owner = there.stat().st_uid
    if there != place.path and os.access(there, os.W_OK):
        yield "home", True, f"'{place.path}' will be made at the first start."
    elif there != place.path:
        sentence = f"'{place.path}' cannot be made: '{there}' is not writable; set FWDB_HOME."
        yield "home", False, sentence
    elif owner == os.geteuid():
        yield "home", True, f"'{place.path}'."
    else:
        yield "home", False, f"'{place.path}' belongs to user {owner}, not to you."
    free = free_bytes(place.path)
    sentence = f"{free // 1_000_000} MB free; a new pair of servers takes 60 MB."
    yield "disk", free > postgres.ROOM_BYTES, sentence
    descriptor = os.open(there, os.O_RDONLY)  # a folder can be locked too: nothing is written
    try:
        locks(descriptor, there, shared=True)
        yield "locks", True, "files can be locked."
    except FwdbError as error:
        yield "locks", False, str(error)
    finally:
        os.close(descriptor)
    try:
        account = server_account(settings().run_as)
    except FwdbError as error:
        yield "user", False, str(error)
        return
    if account:
        sentence = f"started by root, the servers run under user '{account.name}' (FWDB_RUN_AS)."
    else:
        sentence = f"servers run under user {os.geteuid()}, as this command does."
    yield "user", True, sentence


def _postgres(place: Home) -> Found:
    found = postgres.candidates()
    taken, problem, version = None, "", None
    try:
        server = postgres.PostgresServer(place)
        version = server.data_version()
        taken = postgres.choose(found, version)
    except FwdbError as error:
        problem = str(error)
    for one in found:
        state = f"skipped, {one.problem}" if one.problem else f"version {one.version}"
        if one is taken:
            why = f"the data is of {version}" if version else "the first that can be used"
            state += f", taken: {why}"
        elif taken and not one.problem:
            state += ", not taken"
            if version and str(one.major) != version:
                state += f", the data is of {version}"
        yield "postgres", True, f"{one.folder} ({one.source}): {state}."
    if not taken:
        yield "postgres", False, problem
        return
    if not reaches(server.account, taken.folder / "postgres"):
        name = server.account.name if server.account else ""
        sentence = f"user '{name}' cannot read them; a copy goes to {server.folder}."
        yield "postgres", True, sentence
    if not (taken.folder / "pg_basebackup").is_file():
        sentence = f"{taken.folder} has no pg_basebackup, so there can be no replica."
        yield "postgres", True, sentence
    yield "postgres", True, f"data in '{server.data}'."


def _mongodb(place: Home) -> Found:
    told: list[str] = []
    try:
        server = MongoServer(place, told.append)
        server.has_data()
        server.choose()
    except FwdbError as error:
        yield "mongodb", False, str(error)
        return
    yield "mongodb", True, f"{server.binary}: {server.title} {server.version}, taken."
    for sentence in told:
        yield "mongodb", True, f"{sentence}; set FWDB_RUN_AS to a user who can."


def _servers(place: Home) -> Found:
    """What runs, and for what does not: whether its port is still free."""
    ports = place.read_state().ports
    for store in status(place.path).stores:
        if store.running:
            sentence = f"runs, {store.url}, process {store.pid}."
        else:
            sentence = f"does not run: {store.reason}."
            port = ports.get(store.store)
            if port and store.pid is None and port_taken(port):
                sentence += f" Its port {port} is taken by another; it will get a new one."
        yield store.store, True, sentence


def _left_behind(_: Home) -> Found:
    """Data outside of homes that no longer exist: only root makes such, and can see it."""
    for mark in sorted(SHARED_FOLDER.glob("fwdb-*/home")) if os.geteuid() == 0 else ():
        with contextlib.suppress(OSError):  # another's, or its owner is removing it just now
            os.close(open_own(mark.parent, None))
            home = os.fsdecode(read_own(mark, None)).strip()
            if not Path(home).exists():
                size = data_bytes(mark.parent) // 1_000_000
                sentence = (
                    f"{mark.parent} ({size} MB) is of '{home}', which is gone; you may delete it."
                )
                yield "left behind", True, sentence
