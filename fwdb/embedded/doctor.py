"""`fwdb doctor`: which programs there are, which is taken and why, and what stands in the way."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fwdb.config import settings
from fwdb.embedded.accounts import SHARED_FOLDER, open_own, reaches, read_own, server_account
from fwdb.embedded.binaries import (
    choose_mongodb,
    choose_postgres,
    interpreter_reachable,
    postgres_candidates,
)
from fwdb.embedded.home import Home, data_bytes, free_bytes
from fwdb.embedded.join import home_at
from fwdb.embedded.mongodb import MongoServer
from fwdb.embedded.postgres import ROOM_BYTES, PostgresServer
from fwdb.embedded.processes import port_taken
from fwdb.embedded.status import status
from fwdb.errors import EmbeddedError, FwdbError


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `ok` is False when it keeps a server from running."""

    subject: str
    ok: bool
    sentence: str


def doctor(home: Path | str | None = None) -> list[Finding]:
    """Look at everything a start depends on; nothing is started and nothing is written."""
    try:
        place = home_at(home)
    except EmbeddedError as error:
        return [Finding("home", False, str(error))]
    found = [*_machine(place)]
    found += _postgres(place)
    found += _mongodb(place)
    found += _servers(place)
    found += _left_behind()
    return found


def _left_behind() -> list[Finding]:
    """Data outside of homes that no longer exist: only root makes such, and can see it."""
    found = []
    for mark in sorted(SHARED_FOLDER.glob("fwdb-*/home")) if os.geteuid() == 0 else ():
        with contextlib.suppress(OSError):  # another's, or its owner is removing it just now
            os.close(open_own(mark.parent, None))
            home = os.fsdecode(read_own(mark, None)).strip()
            if Path(home).exists():
                continue
            size = data_bytes(mark.parent) // 1_000_000
            sentence = (
                f"{mark.parent} ({size} MB) is of '{home}', which is gone; you may delete it."
            )
            found.append(Finding("left behind", True, sentence))
    return found


def _machine(place: Home) -> list[Finding]:
    findings = []
    version = ".".join(map(str, sys.version_info[:3]))
    findings.append(Finding("python", True, f"Python {version} at {sys.executable}."))
    if place.exists():
        owner = place.path.stat().st_uid
        mine = owner == os.geteuid()
        sentence = f"'{place.path}'" + ("." if mine else f" belongs to user {owner}, not to you.")
        findings.append(Finding("home", mine, sentence))
    else:
        parent = next(folder for folder in place.path.parents if folder.exists())
        writable = os.access(parent, os.W_OK)
        sentence = (
            f"'{place.path}' will be made at the first start."
            if writable
            else f"'{place.path}' cannot be made: '{parent}' is not writable; set FWDB_HOME."
        )
        findings.append(Finding("home", writable, sentence))
    free = free_bytes(place.path)
    sentence = f"{free // 1_000_000} MB free; a new pair of servers takes 60 MB."
    findings.append(Finding("disk", free > ROOM_BYTES, sentence))
    findings.append(_locks(place))
    if os.geteuid() == 0:
        findings.append(_root())
    else:
        sentence = f"servers run under user {os.geteuid()}, as this command does."
        findings.append(Finding("user", True, sentence))
    return findings


def _locks(place: Home) -> Finding:
    """Whether files can be locked there: tried on a folder, so that nothing is written."""
    try:
        import fcntl
    except ImportError:
        return Finding("locks", False, "this system has no flock; the servers need Linux or macOS.")
    folder = next(one for one in (place.path, *place.path.parents) if one.exists())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Finding("locks", True, "files can be locked.")
    except OSError as error:
        sentence = f"the file system of '{folder}' has no locks ({error.strerror}); set FWDB_HOME."
        return Finding("locks", False, sentence)
    finally:
        os.close(descriptor)
    return Finding("locks", True, "files can be locked.")


def _root() -> Finding:
    try:
        account = server_account(settings().run_as)
    except FwdbError as error:
        return Finding("user", False, str(error))
    assert account is not None, "root never runs PostgreSQL itself"
    sentence = f"started by root, the servers run under user '{account.name}' (FWDB_RUN_AS)."
    return Finding("user", True, sentence)


def _postgres(place: Home) -> list[Finding]:
    candidates = postgres_candidates(settings().postgres_bin)
    try:
        server = PostgresServer(place, settings().run_as)
        version = server.data_version()
        taken = choose_postgres(candidates, version)
    except FwdbError as error:
        rest = [
            Finding("postgres", True, f"{one.folder} ({one.source}): {one.problem or one.version}.")
            for one in candidates
        ]
        return [*rest, Finding("postgres", False, str(error))]
    findings = []
    for one in candidates:
        text = f"{one.folder} ({one.source}): "
        if one.problem:
            text += f"skipped, {one.problem}."
        elif one is not taken:
            text += f"version {one.version}, not taken" + (
                f", the data is of {version}." if version and str(one.major) != version else "."
            )
        elif version:
            text += f"version {one.version}, taken: the data is of {version}."
        else:
            text += f"version {one.version}, taken: the first that can be used."
        findings.append(Finding("postgres", True, text))
    if not reaches(server.account, taken.folder / "postgres"):
        name = server.account.name if server.account else ""
        sentence = f"user '{name}' cannot read them; a copy goes to {SHARED_FOLDER}."
        findings.append(Finding("postgres", True, sentence))
    if not (taken.folder / "pg_basebackup").is_file():
        sentence = f"{taken.folder} has no pg_basebackup, so there can be no replica."
        findings.append(Finding("postgres", True, sentence))
    findings.append(Finding("postgres", True, f"data in '{server.data}'."))
    return findings


def _mongodb(place: Home) -> list[Finding]:
    try:
        server = MongoServer(place, settings().run_as)
        server.has_data()
        taken = choose_mongodb()
    except FwdbError as error:
        return [Finding("mongodb", False, str(error))]
    sentence = f"{taken.command[-1]}: {server.title} {taken.version}, taken."
    findings = [Finding("mongodb", True, sentence)]
    if server.account and not interpreter_reachable(taken, server.account):
        sentence = (
            f"user '{server.account.name}' cannot read the installation around {sys.executable}, "
            "so this server runs as root; set FWDB_RUN_AS to a user who can."
        )
        findings.append(Finding("mongodb", True, sentence))
    return findings


def _servers(place: Home) -> list[Finding]:
    """What runs, and for what does not: whether its port is still free."""
    findings = []
    ports = place.read_state().ports
    for store in status(place.path).stores:
        if store.running:
            sentence = f"runs, {store.url}, process {store.pid}."
        else:
            sentence = f"does not run: {store.reason}."
            port = ports.get(store.store)
            if port and store.pid is None and port_taken(port):
                sentence += f" Its port {port} is taken by another; it will get a new one."
        findings.append(Finding(store.store, True, sentence))
    return findings
