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
from fwdb.embedded.home import Home, check_room, data_bytes, free_bytes, locks
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
    checks = {"python": _python, "home": _home, "disk": _disk, "locks": _locks, "user": _user}
    checks |= {"postgres": _postgres, "mongodb": _mongodb}
    found: list[Finding] = []
    subject = "home"
    try:
        with opened(home) as place:
            for subject, check in checks.items():
                try:
                    found += (Finding(subject, True, sentence) for sentence in check(place))
                except FwdbError as error:
                    found.append(Finding(subject, False, str(error)))
            found += (Finding(*one) for one in _servers(place))
    except EmbeddedError as error:
        return [*found, Finding(subject, False, str(error))]
    return [*found, *(Finding("left behind", True, sentence) for sentence in _left_behind())]


def _python(_: Home) -> Iterator[str]:
    yield f"Python {'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}."


def _home(place: Home) -> Iterator[str]:
    if place.path.is_dir():
        place.check()
        yield f"'{place.path}'."
    elif os.access(place.existing, os.W_OK):
        yield f"'{place.path}' will be made at the first start."
    else:
        raise EmbeddedError(
            f"'{place.path}' cannot be made: '{place.existing}' is not writable; set FWDB_HOME."
        )


def _disk(place: Home) -> Iterator[str]:
    check_room(place.path, postgres.ROOM_BYTES)
    free = free_bytes(place.path) // 1_000_000
    yield f"{free} MB free; a new pair of servers takes 60 MB."


def _locks(place: Home) -> Iterator[str]:
    descriptor = os.open(place.existing, os.O_RDONLY)  # a folder will do: nothing is written
    try:
        locks(descriptor, place.existing, shared=True)
        yield "files can be locked."
    finally:
        os.close(descriptor)


def _user(_: Home) -> Iterator[str]:
    account = server_account(settings().run_as)
    if account:
        yield f"started by root, the servers run under user '{account.name}' (FWDB_RUN_AS)."
    else:
        yield f"servers run under user {os.geteuid()}, as this command does."


def _postgres(place: Home) -> Iterator[str]:
    server, found = postgres.PostgresServer(place), postgres.candidates()
    version = server.data_version()
    usable = [one for one in found if not one.problem]
    fitting = [one for one in usable if version in (None, str(one.major))]
    for one in found:
        state = f"skipped, {one.problem}" if one.problem else f"version {one.version}"
        if one in fitting[:1]:
            why = f"the data is of {version}" if version else "the first that can be used"
            state += f", taken: {why}"
        elif one in usable:
            state += ", not taken" + ("" if one in fitting else f", the data is of {version}")
        yield f"{one.folder} ({one.source}): {state}."
    taken = postgres.choose(found, version)
    if not reaches(server.account, taken.folder / "postgres"):
        name = server.account.name if server.account else ""
        yield f"user '{name}' cannot read them; a copy goes to {server.folder}."
    if not (taken.folder / "pg_basebackup").is_file():
        yield f"{taken.folder} has no pg_basebackup, so there can be no replica."
    yield f"data in '{server.data}'."


def _mongodb(place: Home) -> Iterator[str]:
    told: list[str] = []
    server = MongoServer(place, told.append)
    server.has_data()
    server.choose()
    yield f"{server.binary}: {server.title} {server.version}, taken."
    for sentence in told:
        yield f"{sentence}; set FWDB_RUN_AS to a user who can."


def _servers(place: Home) -> Iterator[tuple[str, bool, str]]:
    """What runs, and for what does not: whether its port is still free."""
    ports = place.read_state().ports
    for store in status(place.path).stores:
        sentence = f"does not run: {store.reason}."
        port = ports.get(store.store)
        if store.running:
            sentence = f"runs, {store.url}, process {store.pid}."
        elif port and store.pid is None and port_taken(port):
            sentence += f" Its port {port} is taken by another; it will get a new one."
        yield store.store, True, sentence


def _left_behind() -> Iterator[str]:
    """Data outside of homes that no longer exist: only root makes such, and can see it."""
    for mark in sorted(SHARED_FOLDER.glob("fwdb-*/home")) if os.geteuid() == 0 else ():
        with contextlib.suppress(OSError):  # another's, or its owner is removing it just now
            os.close(open_own(mark.parent, None))
            home = os.fsdecode(read_own(mark, None)).strip()
            if not Path(home).exists():
                size = data_bytes(mark.parent) // 1_000_000
                yield f"{mark.parent} ({size} MB) is of '{home}', which is gone; you may delete it."
