"""A built-in server as a process: recognising, starting and ending it, and what it said.

No foreign process is ever signalled. `Server` is what both servers have in common.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fwdb.config import settings
from fwdb.embedded.accounts import Account, open_own, private_folder, server_account, server_folder
from fwdb.embedded.home import Home, Progress, disk_full
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError, FeatureUnavailable, FwdbError, redact

if TYPE_CHECKING:
    import psutil

log = logging.getLogger("fwdb.embedded")

INSTALL = "pip install 'fwdb[embedded]'"
HOST = "127.0.0.1"
DATABASE = "fashion_wallet"
OWNER, APP, REPORT = "fwdb_owner", "fwdb_app", "fwdb_report"
PROGRAM_SECONDS = 120.0

# Below the ports that systems give to outgoing connections: there, any client's connection may sit
# on the port of a server that is down, one of its own clients' included, which then has to change.
_PORTS = (20_000, 32_768)

# Variables that a server may need to find its libraries; nothing else of ours reaches it, least
# of all a FWDB_*_URL with a password in it.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")

Process = tuple[int, float]  # its pid and when it began, see `identity`


@dataclass(frozen=True, repr=False)
class Urls:
    """URLs of one store by role, with passwords in them. A `repr` never shows a password.

    `owner` makes and changes the schema, `app` reads and writes rows, `report` only reads.
    `superuser` is PostgreSQL's role ``postgres``, for tests that make databases and for repair;
    None for MongoDB, where `owner` may do everything.
    """

    owner: str
    app: str
    report: str
    superuser: str | None = None

    def __repr__(self) -> str:
        shown = (f"{role}={redact(getattr(self, role))!r}" for role in ("owner", "app", "report"))
        return f"Urls({', '.join(shown)})"


def check_extra() -> None:
    if importlib.util.find_spec("psutil") is None:
        raise FeatureUnavailable(f"the built-in servers need psutil; run {INSTALL}.")


def argv(pid: int) -> list[str]:
    """The command line of `pid`; empty when it has ended or may not be read."""
    import psutil

    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def end(pid: int, began: float, signals: Sequence[int], *, patience_seconds: float = 10.0) -> bool:
    """Stop the process that has this pid and began then; harder from signal to signal.

    Returns once it is gone. False if it was gone already, or the pid belongs to another by now.
    Raises `EmbeddedError` if even the last signal does not end it.
    """
    if identity(pid) != began:
        return False
    for number in [*signals, signal.SIGKILL]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            if identity(pid) != began:
                return True
            time.sleep(0.01)
    raise EmbeddedError(f"process {pid} does not end, not even by kill -9; look at it with ps.")


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The few variables a server runs with."""
    return {
        "PATH": os.defpath,
        **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
        "HOME": str(home),
        # Messages of the server are read by us. Not LC_ALL: with it Python would read the paths
        # in .pth files as ASCII, and not start under a folder with an umlaut.
        "LC_MESSAGES": "C",
        "TZ": "UTC",
        "PYTHONDONTWRITEBYTECODE": "1",  # the installation may be read-only or another's
        **(extra or {}),
    }


class Server:
    """One server of a home: what it is, and how far it is on its way up."""

    name: ClassVar[str]
    title: ClassVar[str]
    engine: ClassVar[str]
    users: ClassVar[tuple[str, ...]]
    signals: ClassVar[tuple[int, ...]]  # to stop it, each harder than the one before
    address: ClassVar[str]  # its URL
    hello: ClassVar[bytes]  # what it is asked before any login
    well: ClassVar[re.Pattern[bytes]]  # its answer when it takes logins
    # How it is recognised: its programs, and the flag before its data folder.
    programs: ClassVar[tuple[str, ...]]
    flag: ClassVar[str]
    data_name: ClassVar[str]

    def __init__(self, home: Home, progress: Progress = log.info) -> None:
        self.home = home
        self.progress = progress
        self.record = home.read_state().servers.get(self.name)  # of its last start
        self.passwords = home.read_secrets().get(self.name, {})  # of its users
        self.port = self.record.port if self.record else 0
        self.start_log = home.log / f"{self.name}.log"
        # While it is brought up:
        self.version = self.binary = ""  # known after `choose`
        self.reset = not self.knows_passwords  # the data has others, or there is none
        self.adopted = self.cancelled = False  # it ran already; Ctrl-C
        self.pid, self.began = 0, 0.0
        self.watcher: Process | None = None
        self.failure: FwdbError | None = None  # an expected one: the other server goes on
        self._started_at = 0.0

    @cached_property
    def account(self) -> Account | None:
        """The user that it runs under, None for that of this process."""
        return server_account(settings().run_as)

    @cached_property
    def folder(self) -> Path:
        return server_folder(self.home.path, self.account)

    @property
    def data(self) -> Path:
        return self.folder / self.data_name

    @property
    def making(self) -> Path:
        """Where new data is made."""
        return self.folder / f"{self.data_name}.tmp"

    @property
    def knows_passwords(self) -> bool:
        return all(user in self.passwords for user in self.users)

    def data_version(self) -> str | None:
        """Version of the existing data, if it is written there."""
        return None

    def fits(self) -> bool:
        """Whether one that runs already may be joined."""
        return True

    def command(self) -> list[str]:
        raise NotImplementedError

    def url(self, user: str) -> str:
        return self.address.format(user=user, password=self.passwords[user], port=self.port)

    def urls(self) -> Urls:
        return Urls(*(self.url(user) for user in (OWNER, APP, REPORT)))

    def ping(self, seconds: float = 2) -> bool | None:
        """Whether the server takes logins; None when it says nothing in `seconds`.

        No driver is loaded for it, which would take a third of the time of a join.
        """
        try:
            with socket.create_connection((HOST, self.port), seconds) as link:
                link.sendall(self.hello)
                return bool(self.well.search(link.recv(4096)))
        except TimeoutError:
            return None
        except OSError:
            return False

    @classmethod
    def serves(cls, argv: Sequence[str], data: Path) -> bool:
        """Whether `argv` is such a server over exactly the folder `data`."""
        return any(os.path.basename(word) in cls.programs for word in argv[:4]) and (
            (cls.flag, str(data)) in itertools.pairwise(argv)
        )

    def is_recorded(self) -> bool:
        """Whether the process written down is still the server it was."""
        check_extra()
        record = self.record
        return (
            record is not None
            and identity(record.pid) == record.began
            and self.serves(argv(record.pid), Path(record.data))
        )

    def running(self) -> list[Process]:
        """The process written down, or any over its data, if state.json is lost."""
        if self.record and self.is_recorded():
            return [(self.record.pid, self.record.began)]
        return self.processes()

    def processes(self, data: Path | None = None) -> list[Process]:
        """Live servers over `data`, or over its own.

        A command line can be forged, the user cannot: what is found may be joined and stopped.
        """
        return self._owned(lambda process: self.serves(process.cmdline(), data or self.data))

    def workers(self, folder: Path) -> list[Process]:
        """Live processes whose current folder is `folder`: a PostgreSQL backend's is its data."""
        return self._owned(lambda process: process.cwd() == str(folder))

    def _owned(self, wanted: Callable[[psutil.Process], bool]) -> list[Process]:
        import psutil

        uid = self.account.uid if self.account else os.geteuid()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.uids().real == uid and wanted(process):
                    began = identity(process.pid)
                    found += [(process.pid, began)] if began is not None else []
        return found

    @contextlib.contextmanager
    def new_data(self) -> Iterator[Path]:
        """A folder beside the data, which is moved to its place when it is complete."""
        making = self.making
        self._end_makers()  # of a start that was killed: they outlive it
        shutil.rmtree(making, ignore_errors=True)
        private_folder(making, self.account)
        try:
            yield making
            if self.data.exists():
                self.data.rmdir()
            making.rename(self.data)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def options(self, folder: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
        """How its programs are run: in `folder`, as its user, in a session of their own, which
        keeps the terminal's Ctrl-C from them."""
        account = self.account
        return {
            "cwd": str(folder),
            "env": environment(folder, variables),
            "start_new_session": True,
            "umask": 0o077,
            "user": account and account.uid,
            "group": account and account.gid,
            "extra_groups": [] if account else None,
        }

    def run(
        self, command: Sequence[str], *, text: str = "", variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end with `text` as its input; out and err are captured.

        `variables` are for this program alone: a password in one is seen by nobody else.
        """
        if self.cancelled:
            raise EmbeddedError(f"the start of {self.title} was stopped.")
        options: dict[str, Any] = {"text": True, "errors": "replace", "capture_output": True}
        options |= self.options(self.folder, variables)
        try:
            return subprocess.run(
                command, input=text, timeout=PROGRAM_SECONDS, check=False, **options
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(
                f"'{os.path.basename(command[0])}' did not finish within "
                f"{PROGRAM_SECONDS:g} s; is the disk of '{self.folder}' very slow?"
            ) from None

    def cancel(self) -> None:
        """End what makes its data, and let nothing follow."""
        self.cancelled = True
        self._end_makers()

    def _end_makers(self) -> None:
        for process in {*self.processes(self.making), *self.workers(self.making)}:
            end(*process, [])

    def plan(self) -> dict[str, Any]:
        """This server's part of a watcher's plan."""
        plan = {"name": self.name, "port": self.port, "signals": list(map(int, self.signals))}
        if self.adopted:
            return plan | {"pid": self.pid, "identity": self.began, "logs": []}
        logs = [str(self.start_log), str(self.data / "log")]
        return plan | {"command": self.command(), "logs": logs, "options": self.options(self.data)}

    def rotate_log(self) -> None:
        """Keep one older log beside the new one, which is about this start."""
        self._started_at = time.time()
        with contextlib.suppress(FileNotFoundError):
            self.start_log.replace(self.start_log.with_suffix(".log.1"))

    def broken(self, what: str, told: str, where: str = "") -> EmbeddedError:
        """The error for a server that `what`, having `told` so."""
        where = where or f"data in '{self.data}'"
        reason = telling_line(told)
        if "No space left on device" in reason:
            return EmbeddedError(disk_full(self.folder))
        return EmbeddedError(f"{self.title} {self.version} {what}: {reason} ({where}).")

    def not_started(self) -> EmbeddedError:
        """The error for a server that did not come up, with what its logs say last."""
        told = ""
        for path in (self.data / "log").glob("*.json"):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime >= self._started_at:
                    told += read_tail(path, self.account)
        told += read_tail(self.start_log, None)
        return self.broken("did not start", told, f"log '{self.start_log}'")


def watch(
    servers: Sequence[Server], home: Home, *, idle_seconds: float, owner: Process | None
) -> None:
    """Start a watcher for `servers` (see `fwdb.embedded.watcher`), which starts those.

    Raises `EmbeddedError` when it, or the program of a server, cannot be started.
    """
    plan = {
        "servers": [server.plan() for server in servers],
        "idle_seconds": idle_seconds,
        "owner": owner,
        "used": str(home.path / "used"),
    }
    log = home.log / "watcher.log"
    with open(log, "ab") as errors:
        if errors.tell() > 1_000_000:
            errors.truncate(0)
        # -P: the folder of the script holds modules that must not shadow others' names.
        starter = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("watcher.py")), str(home.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=home.path,
            env=environment(home.path),
            start_new_session=True,
        )
    with starter:
        out, _ = starter.communicate(json.dumps(plan), timeout=60)
    try:
        answer = json.loads(out)
    except ValueError:
        reason = telling_line(read_tail(log, None))
        raise EmbeddedError(
            f"the watcher of the servers did not start: {reason} (see '{log}')."
        ) from None
    if "error" in answer:
        raise EmbeddedError(f"a server could not be started: {answer['error']}.")
    for server in servers:
        server.watcher = tuple(answer["watcher"])
        server.pid, server.began = answer["servers"][server.name]


def free_port(preferred: int | None = None, *, avoid: Iterable[int] = ()) -> int:
    """A TCP port of 127.0.0.1 that nobody has: `preferred` if it is free."""
    taken = set(avoid)
    tries = (random.randrange(*_PORTS) for _ in range(200))  # noqa: S311 - no secret
    for port in (preferred, *tries):
        if port and port not in taken and not port_taken(port):
            return port
    raise EmbeddedError(
        f"no TCP port between {_PORTS[0]} and {_PORTS[1]} of {HOST} is free; end some servers."
    )


def port_taken(port: int) -> bool:
    """Whether a server of this machine has `port` of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: a closed connection that lingers does not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


# Said by PostgreSQL at a lower level than the FATAL that follows and says less.
_CAUSES = ("configuration parameter", "for parameter", "could not bind", "No space left on device")


def read_tail(log: Path, account: Account | None) -> str:
    """The end of a log; empty when it is not a file of `account`."""
    try:
        with open(open_own(log, account), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def telling_line(text: str) -> str:
    """The line that says most about a failure: the last error, else the last that says anything."""
    lines = [_said(line.strip()) for line in reversed(text.splitlines())]
    for marks in (_CAUSES, ("PANIC:", "FATAL:"), ("ERROR:", "error:", "Error:"), ("",)):
        for line in lines:
            if line and any(mark in line for mark in marks):
                return line.rstrip(". ")
    return "it left no message"


def _said(line: str) -> str:
    """Level and message of a line of a log; empty for one that tells of no failure."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError, KeyError):
            entry = json.loads(line)
            return f"{entry['error_severity']}: {entry['message']}"
    for level in ("PANIC:", "FATAL:", "ERROR:", "LOG:", "HINT:", "DETAIL:"):
        if level in line:
            text = " ".join(line[line.index(level) :].split())
            told = level in ("PANIC:", "FATAL:", "ERROR:") or any(one in text for one in _CAUSES)
            return text if told else ""
    return line
