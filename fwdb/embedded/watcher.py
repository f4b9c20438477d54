"""The small process that is parent and reaper of the built-in servers.

It is started by its path, detached, and imports nothing of fwdb: it stays small however much
`import fwdb` loads, and works whatever folder it is started from. What it shares with the
launcher, who a process is, therefore stands here.

It reads a plan as JSON from its standard input, starts the servers of the plan, answers with one
line of JSON (its own identity and theirs), and then waits. It stops the servers when nobody has
been connected for `idle_seconds`, when the process `owner` has ended, or on SIGTERM; it ends when
no server is left. A server in the plan with a `pid` runs already and is looked after from now on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 1.0  # how soon the end of the owner is seen
IDLE_POLL_SECONDS = 15.0  # how often clients are counted
LOG_LIMIT_BYTES = 50_000_000  # per server
LOG_POLL_SECONDS = 60.0
PATIENCE_SECONDS = 10.0  # between one signal and the next, harder one
OWNER_PATIENCE_SECONDS = 2.0  # the servers are to be gone 5 s after their owner
REPLICA_TITLE = "postgres: walsender fwdb_replication "  # as PostgreSQL titles its process


def identity(pid: int) -> float | None:
    """When process `pid` began, in seconds after the boot of this machine; None if it has ended.

    Two processes that got the same pid differ in it. A zombie counts as ended: it holds no file
    and no port. The difference to the boot is moved by no correction of the clock.
    """
    import psutil

    booted = psutil.boot_time()
    try:
        process = psutil.Process(pid)
        # The first thread of a killed process is a zombie while others still hold its port.
        if process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1:
            return None
        began: float = round(process.create_time() - booted, 2)
        return began
    except psutil.NoSuchProcess:
        return None


class Server:
    """One server under watch: our child (`process`) or one that ran already."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.name: str = plan["name"]
        self.port: int = plan["port"]
        self.signals: list[int] = plan["signals"]
        self.logs: list[str] = plan["logs"]
        self.user: int | None = plan.get("options", {}).get("user")
        self.process: subprocess.Popen[bytes] | None = None
        self._next_signal_at = 0.0
        if "pid" in plan:
            self.pid: int = plan["pid"]
            self.began: float = plan["identity"]
            return
        # Append mode: the file can be cut to nothing while the server writes to it.
        with open(self.logs[0], "ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(plan["command"], **streams, **plan["options"])
        self.pid = self.process.pid
        # One that has ended already has no identity any more; nothing began at 0, so that whoever
        # waits for it sees that it is gone.
        self.began = identity(self.pid) or 0.0

    def alive(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        return identity(self.pid) == self.began

    def push(self, now: float, patience: float) -> None:
        """Send the next signal, if the last one has had its time; the last again and again."""
        if now >= self._next_signal_at and self.alive():
            self._next_signal_at = now + patience
            os.kill(self.pid, self.signals[0])
            self.signals = self.signals[1:] or self.signals

    def used(self) -> bool:
        """Whether a client is connected, or may be: some systems do not tell."""
        import psutil

        try:
            parent = psutil.Process(self.pid)
            family = [parent, *parent.children()]  # PostgreSQL has a child for each connection
        except psutil.NoSuchProcess:
            return False
        for process in family:
            try:
                # The connection of the replica is no client's: it never ends by itself. That of
                # the backup that makes it is one.
                title = " ".join(process.cmdline())
                if title.startswith(REPLICA_TITLE) and " streaming " in title:
                    continue
                if any(
                    one.status == psutil.CONN_ESTABLISHED and one.laddr.port == self.port
                    for one in process.net_connections("tcp")
                ):
                    return True
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                return True
        return False

    def bound_logs(self) -> None:
        """Empty the log files that make the whole larger than the limit, newest kept first.

        The first of `logs` is ours. The others are folders of the server's user: only its own
        regular files are touched, for a name may lead anywhere there.
        """
        user = os.geteuid() if self.user is None else self.user
        handles = [_own(path, os.geteuid(), os.O_WRONLY) for path in self.logs[:1]]
        for path in self.logs[1:]:
            if (folder := _own(path, user, os.O_RDONLY | os.O_DIRECTORY)) is not None:
                handles += [_own(name, user, os.O_WRONLY, folder) for name in os.listdir(folder)]
                os.close(folder)
        files = [(os.fstat(handle), handle) for handle in handles if handle is not None]
        total = 0
        for status, handle in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
            total += status.st_size
            if total > LOG_LIMIT_BYTES:
                os.ftruncate(handle, 0)
            os.close(handle)


def _own(name: str, user: int, flags: int, folder: int | None = None) -> int | None:
    """A descriptor of the file or folder of `user` by this name, in `folder`; None for others."""
    try:
        handle = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:  # gone, or a link
        return None
    status = os.fstat(handle)
    alone = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
    if alone and status.st_uid == user:
        return handle
    os.close(handle)
    return None


class Watch:
    """The loop over all servers of a plan."""

    def __init__(self, plan: dict[str, Any], servers: list[Server], wakeup: socket.socket) -> None:
        self.servers = servers
        self.wakeup = wakeup
        self.owner: list[float] | None = plan["owner"]
        self.idle_seconds: float = plan["idle_seconds"]
        self.mark = Path(plan["used"])
        self.stopping = False
        self.patience = PATIENCE_SECONDS
        self._marked = self._mark()
        self._used_at = time.monotonic()
        self._look_at = self._logs_at = 0.0

    def _mark(self) -> float:
        try:
            return self.mark.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def idle(self, now: float) -> bool:
        """Whether nobody has joined or been connected for the whole idle time."""
        if not self.idle_seconds or now < self._look_at:
            return False
        self._look_at = now + min(IDLE_POLL_SECONDS, self.idle_seconds / 4)
        if any(server.used() for server in self.servers):
            os.utime(self.mark)  # the other server, if another watcher has it, stays up as well
        if (marked := self._mark()) != self._marked:
            self._marked, self._used_at = marked, now
        return now - self._used_at >= self.idle_seconds

    def stop(self, reason: str) -> None:
        _say(reason)
        self.stopping = True

    def look(self, now: float) -> None:
        """See whether there is a reason to stop, and whether logs are too large."""
        if not self.stopping and self.owner and identity(int(self.owner[0])) != self.owner[1]:
            self.stop(f"process {int(self.owner[0])}, the owner, has ended")
            self.patience = OWNER_PATIENCE_SECONDS
        if not self.stopping and self.idle(now):
            self.stop(f"no client for {self.idle_seconds:g} s")
        if now >= self._logs_at:
            self._logs_at = now + LOG_POLL_SECONDS
            for server in self.servers:
                server.bound_logs()

    def run(self) -> None:
        while self.servers:
            now = time.monotonic()
            try:
                self.look(now)
            except OSError as error:  # a full disk, a folder removed: still the parent of servers
                _say(str(error))
            if self.stopping:
                for server in self.servers:
                    server.push(now, self.patience)
            wait = 0.1 if self.stopping else POLL_SECONDS
            if self.idle_seconds:
                wait = min(wait, self.idle_seconds / 4)
            if select.select([self.wakeup], [], [], wait)[0]:
                received = self.wakeup.recv(64)
                if signal.SIGTERM in received or signal.SIGINT in received:
                    self.stop("asked to stop")
            self.servers = [server for server in self.servers if server.alive()]


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk is no reason to leave the servers alone
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
        sys.stderr.flush()


def main() -> None:
    """Read the plan, become independent of the starter, start the servers, answer, and watch."""
    plan = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # the starter has waited for this one; the other belongs to the system
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    servers: list[Server] = []
    answer: dict[str, Any] = {"watcher": [os.getpid(), identity(os.getpid())]}
    try:
        for one in plan["servers"]:
            servers.append(Server(one))
    except OSError as error:
        answer["error"] = str(error)
    answer["servers"] = {server.name: [server.pid, server.began] for server in servers}
    watch = Watch(plan, servers, ours)
    watch.stopping = "error" in answer
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the starter is gone already: nobody knows these servers
        watch.stopping = True
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    watch.run()
    _say("no server left, done")


if __name__ == "__main__":
    main()
