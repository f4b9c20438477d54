"""Finding, starting and ending processes, and never signalling a foreign one."""

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
from typing import Any

from fwdb.embedded.accounts import Account, open_own
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError

HOST = "127.0.0.1"
_PORTS = (20_000, 32_768)
Progress = Callable[[str], None]

# Variables that a server may need to find its libraries; nothing else of ours reaches it, least
# of all a FWDB_*_URL with a password in it.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")


@dataclass(frozen=True)
class Kind:
    """How to recognise a server of one sort: its program and the flag before its data folder."""

    programs: frozenset[str]
    data_flags: frozenset[str]

    def serves(self, argv: Sequence[str], data: Path) -> bool:
        """Whether `argv` is such a server over exactly the folder `data`."""
        if not any(os.path.basename(word) in self.programs for word in argv[:4]):
            return False
        return any(
            flag in self.data_flags and value == str(data)
            for flag, value in itertools.pairwise(argv)
        )


def argv(pid: int) -> list[str]:
    """The command line of `pid`; empty when it has ended or may not be read."""
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return []
        return [os.fsdecode(word) for word in text.split(b"\0")[:-1]]
    import psutil

    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def find(kind: Kind, data: Path, account: Account | None) -> list[tuple[int, float]]:
    """(pid, began) of live processes that `kind` recognises as servers of `account` over `data`.

    A command line can be forged, the user cannot: what is found may be joined and stopped.
    """
    import psutil

    return _owned((pid for pid in psutil.pids() if kind.serves(argv(pid), data)), account)


def at_work_in(folder: Path, account: Account | None) -> list[tuple[int, float]]:
    """The same for processes whose current folder is `folder`: a PostgreSQL backend's is its data.

    Those that may not be looked at are left out.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == str(folder):
                found.append(process.pid)
    return _owned(found, account)


def _owned(pids: Iterable[int], account: Account | None) -> list[tuple[int, float]]:
    """Those of `pids` that live and that `account` (None: this user) has started, with identity."""
    import psutil

    uid = account.uid if account else os.geteuid()
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            began = identity(pid)
            if began is not None and psutil.Process(pid).uids().real == uid:
                found.append((pid, began))
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
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        "PATH": os.defpath,
        **kept,
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
        pipe = subprocess.PIPE
        streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
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


def server_plan(
    *,
    name: str,
    command: list[str],
    port: int,
    signals: Sequence[int],
    log: Path,
    logs: list[Path],
    cwd: Path,
    account: Account | None,
) -> dict[str, Any]:
    """One server of a watcher's plan."""
    return {
        "name": name,
        "command": command,
        "port": port,
        "signals": [int(number) for number in signals],
        "log": str(log),
        "logs": [str(path) for path in logs],
        "cwd": str(cwd),
        "environment": environment(cwd),
        "user": account.uid if account else None,
        "group": account.gid if account else None,
    }


@dataclass(frozen=True)
class Watched:
    """What a watcher answered: its own identity and those of its servers."""

    watcher: tuple[int, float]
    servers: dict[str, tuple[int, float]]


def watch(
    servers: Sequence[dict[str, Any]],
    *,
    folder: Path,
    idle_seconds: float,
    owner: tuple[int, float] | None,
) -> Watched:
    """Start a watcher for `servers` (see `fwdb.embedded.watcher`) and return at once.

    Raises `EmbeddedError` when it, or the program of a server, cannot be started.
    """
    plan = {
        "servers": list(servers),
        "idle_seconds": idle_seconds,
        "owner": owner,
        "used": str(folder / "used"),
    }
    log = folder / "log" / "watcher.log"
    with open(log, "ab") as errors:
        if errors.tell() > 1_000_000:
            errors.truncate(0)
        # -P: the folder of the script holds modules that must not shadow others' names.
        starter = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("watcher.py")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=environment(folder),
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
    return Watched(
        tuple(answer["watcher"]), {name: tuple(one) for name, one in answer["servers"].items()}
    )


def free_port(preferred: int | None = None, *, avoid: Iterable[int] = ()) -> int:
    """A TCP port of 127.0.0.1 that nobody has: `preferred` if it is free.

    It lies below the ports that systems give to outgoing connections: there, any client's
    connection may sit on the port of a server that is down, one of its own clients' included,
    which then has to change.
    """
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


def last_line(*logs: tuple[Path, Account | None]) -> str:
    """The line of `logs` that says most about a failure: the last error, else the last line.

    Each comes with the user whose file it is; a file of another is not read.
    """
    lines: list[str] = []
    for log, account in logs:
        try:
            with open(open_own(log, account), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
                lines += file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
    return telling_line(lines)


# Said by PostgreSQL at a lower level than the FATAL that follows and says less.
_CAUSES = ("configuration parameter", "for parameter", "could not bind", "No space left on device")


def telling_line(lines: Iterable[str]) -> str:
    """The last error among `lines`, else the last line with anything in it."""
    texts = [text for line in lines if (text := _plain(line))]
    for marks in (_CAUSES, ("PANIC:", "FATAL:"), ("ERROR:", "error:", "Error:")):
        errors = [text for text in texts if any(mark in text for mark in marks)]
        if errors:
            return errors[-1].rstrip(". ")
    return (texts or ["it left no message"])[-1].rstrip(". ")


def _plain(line: str) -> str:
    line = line.strip()
    if line.startswith("{"):
        try:
            entry = json.loads(line)
        except ValueError:
            return line
        message = entry.get("message") or entry.get("msg")
        return f"{entry.get('error_severity', entry.get('s', ''))}: {message}" if message else ""
    for level in ("PANIC:", "FATAL:", "ERROR:", "LOG:", "HINT:", "DETAIL:"):
        if level in line:
            text = line[line.index(level) :]
            fatal = level not in ("LOG:", "HINT:", "DETAIL:")
            return " ".join(text.split()) if fatal or any(one in text for one in _CAUSES) else ""
    return line
