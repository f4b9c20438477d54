"""A built-in server as a process: recognising, starting and ending it, and what it said.

No foreign process is ever signalled. `Server` is what both servers have in common.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fwdb.embedded.accounts import Account, open_own, server_account, server_folder
from fwdb.embedded.home import Home, Record, disk_full, disk_sentences
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError, FwdbError, redact

if TYPE_CHECKING:
    import psutil

INSTALL = "pip install 'fwdb[embedded]'"
HOST = "127.0.0.1"
DATABASE = "fashion_wallet"
OWNER, APP, REPORT = "fwdb_owner", "fwdb_app", "fwdb_report"

# Below the ports that systems give to outgoing connections: there, any client's connection may sit
# on the port of a server that is down, one of its own clients' included, which then has to change.
_PORTS = (20_000, 32_768)

# Variables that a server may need to find its libraries; nothing else of ours reaches it, least
# of all a FWDB_*_URL with a password in it.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")

Progress = Callable[[str], None]
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


# -- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How to recognise a server of one sort: its program and the flag before its data folder."""

    programs: tuple[str, ...]
    flag: str

    def serves(self, argv: Sequence[str], data: Path) -> bool:
        """Whether `argv` is such a server over exactly the folder `data`."""
        return any(os.path.basename(word) in self.programs for word in argv[:4]) and (
            (self.flag, str(data)) in itertools.pairwise(argv)
        )


def argv(pid: int) -> list[str]:
    """The command line of `pid`; empty when it has ended or may not be read."""
    import psutil

    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def find(kind: Kind, data: Path, account: Account | None) -> list[Process]:
    """Live processes that `kind` recognises as servers of `account` over `data`.

    A command line can be forged, the user cannot: what is found may be joined and stopped.
    """
    return _owned(lambda process: kind.serves(process.cmdline(), data), account)


def at_work_in(folder: Path, account: Account | None) -> list[Process]:
    """The same for processes whose current folder is `folder`: a PostgreSQL backend's is its data.

    Those that may not be looked at are left out.
    """
    return _owned(lambda process: process.cwd() == str(folder), account)


def _owned(wanted: Callable[[psutil.Process], bool], account: Account | None) -> list[Process]:
    import psutil

    uid = account.uid if account else os.geteuid()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real == uid and wanted(process):
                began = identity(process.pid)
                found += [(process.pid, began)] if began is not None else []
    return found


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


class Children:
    """Short-lived programs of one `up`, so that an interrupt leaves none behind."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._cancelled = False

    def run(
        self,
        command: Sequence[str],
        *,
        account: Account | None,
        cwd: Path,
        text: str = "",
        variables: Mapping[str, str] | None = None,
        timeout_seconds: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end with `text` as its input; out and err are captured.

        `variables` are for this program alone: a password in one is seen by nobody else.
        """
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.started(command, account=account, cwd=cwd, variables=variables, **streams) as one:
            try:
                out, err = one.communicate(text, timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                raise EmbeddedError(
                    f"'{os.path.basename(command[0])}' did not finish within "
                    f"{timeout_seconds:g} s; is the disk of '{cwd}' very slow?"
                ) from None
        return subprocess.CompletedProcess(command, one.returncode, out, err)

    @contextlib.contextmanager
    def started(
        self,
        command: Sequence[str],
        *,
        account: Account | None,
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        **streams: Any,
    ) -> Iterator[subprocess.Popen[str]]:
        """`command` as a process that is killed at the end of the block if it still runs then.

        A session of its own keeps the terminal's Ctrl-C from it: `cancel` ends it instead.
        """
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(cwd, variables),
            text=True,
            errors="replace",
            start_new_session=True,
            umask=0o077,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            **streams,
        ) as process:
            self._running.add(process)
            try:
                if self._cancelled:
                    process.kill()
                yield process
            finally:
                self._running.discard(process)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def cancel(self) -> None:
        """End all that run, and any that is still to start."""
        self._cancelled = True
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# -- servers --------------------------------------------------------------------------------------


class Server:
    """One server of a home: what it is, and how far it is on its way up."""

    name: ClassVar[str]
    title: ClassVar[str]
    engine: ClassVar[str]
    users: ClassVar[tuple[str, ...]]
    kind: ClassVar[Kind]
    signals: ClassVar[tuple[int, ...]]  # to stop it, each harder than the one before
    hello: ClassVar[bytes]  # what it is asked, and answers to nobody in particular

    def __init__(self, home: Home, run_as: str | None) -> None:
        self.home = home
        self.account = server_account(run_as)
        self.folder = server_folder(home.path, self.account)
        self.start_log = home.log / f"{self.name}.log"
        self.version = self.binary = ""  # known after `choose`
        self.passwords: dict[str, str] = {}  # of its users
        self.reset = False  # whether the data has other passwords than those
        self.port = self.pid = 0
        self.began = 0.0
        self.adopted = False  # it ran already
        self.watcher: Process | None = None
        self.record: Record | None = None
        self.failure: FwdbError | None = None  # an expected one: the other server goes on

    @property
    def data(self) -> Path:
        raise NotImplementedError

    def data_version(self) -> str | None:
        """Version of the existing data, if it is written there."""
        return None

    def fits(self) -> bool:
        """Whether one that runs already may be joined."""
        return True

    def choose(self, progress: Progress) -> None:
        """Decide which program to run; nothing is started."""
        raise NotImplementedError

    def prepare(self, children: Children, progress: Progress) -> None:
        """Make the data if there is none; with `reset`, give its users the `passwords`."""
        raise NotImplementedError

    def login(self) -> bool:
        """Whether the passwords are right. Raises `EmbeddedError` for other refusals."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    @staticmethod
    def is_well(answer: bytes) -> bool:
        """Whether `answer`, to `hello`, is that of a server that takes logins."""
        raise NotImplementedError

    @classmethod
    def url(cls, user: str, port: int, passwords: Mapping[str, str]) -> str:
        raise NotImplementedError

    @classmethod
    def urls(cls, port: int, passwords: Mapping[str, str]) -> Urls:
        return Urls(*(cls.url(user, port, passwords) for user in (OWNER, APP, REPORT)))

    @classmethod
    def ping(cls, port: int, seconds: float = 2) -> bool | None:
        """Whether the server takes logins; None when it says nothing in `seconds`.

        No driver is loaded for it, which takes longer than all else of a join.
        """
        try:
            with socket.create_connection((HOST, port), seconds) as link:
                link.sendall(cls.hello)
                return cls.is_well(link.recv(4096))
        except TimeoutError:
            return None
        except OSError:
            return False

    def plan(self) -> dict[str, Any]:
        """This server's part of a watcher's plan."""
        common = {"name": self.name, "port": self.port, "signals": list(map(int, self.signals))}
        if self.adopted:
            running = {"pid": self.pid, "identity": self.began}
            return {**common, **running, "logs": [], "user": None}
        return {
            **common,
            "command": self.command(),
            "logs": [str(path) for path in self.log_paths()],
            "cwd": str(self.data),
            "environment": environment(self.data),
            "user": self.account and self.account.uid,
            "group": self.account and self.account.gid,
        }

    def log_paths(self) -> list[Path]:
        """Where it writes: a file of ours, then folders of its own."""
        return [self.start_log]

    def messages(self) -> list[tuple[Path, Account | None]]:
        """Files with the reason of a failed start, and whose: the one that says most last."""
        return [(self.start_log, None)]

    def rotate_log(self) -> None:
        """Keep one older log beside the new one."""
        with disk_sentences(self.start_log):
            if self.start_log.exists():
                self.start_log.replace(self.start_log.with_suffix(".log.1"))

    def failed(self) -> str:
        """The sentence for a server that did not come up."""
        reason = last_line(*self.messages())
        if "No space left on device" in reason:
            return disk_full(self.folder)
        return f"{self.title} {self.version} did not start: {reason} (log '{self.start_log}')."


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
        raise EmbeddedError(
            f"the watcher of the servers did not start: {last_line((log, None))} (see '{log}')."
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


# -- what they said -------------------------------------------------------------------------------

# Said by PostgreSQL at a lower level than the FATAL that follows and says less.
_CAUSES = ("configuration parameter", "for parameter", "could not bind", "No space left on device")


def last_line(*logs: tuple[Path, Account | None]) -> str:
    """The line of `logs` that says most about a failure.

    Each comes with the user whose file it is; a file of another is not read.
    """
    lines: list[str] = []
    for log, account in logs:
        with contextlib.suppress(OSError), open(open_own(log, account), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
            lines += file.read().decode(errors="replace").splitlines()
    return telling_line(lines)


def telling_line(lines: Iterable[str]) -> str:
    """The last error among `lines`, else the last line with anything in it."""
    texts = [text for line in lines if (text := _plain(line.strip()))]
    for marks in (_CAUSES, ("PANIC:", "FATAL:"), ("ERROR:", "error:", "Error:")):
        errors = [text for text in texts if any(mark in text for mark in marks)]
        if errors:
            return errors[-1].rstrip(". ")
    return (texts or ["it left no message"])[-1].rstrip(". ")


def _plain(line: str) -> str:
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
