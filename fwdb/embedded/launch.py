"""One start of the servers of a home: from nothing, from data, or by taking over what runs."""

from __future__ import annotations

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from fwdb.config import settings
from fwdb.embedded.binaries import INSTALL
from fwdb.embedded.home import Home, Record, State, new_passwords
from fwdb.embedded.join import KINDS, Server, alive, open_server, passwords
from fwdb.embedded.postgres import PostgresServer
from fwdb.embedded.processes import (
    Children,
    Progress,
    argv,
    end,
    find,
    free_port,
    port_taken,
    watch,
)
from fwdb.embedded.replica import ReplicaServer
from fwdb.embedded.urls import Servers
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError, FeatureUnavailable, FwdbError

READY_SECONDS = 60.0  # crash recovery of a large cluster included
PORT_TRIES = 5


class Launch:
    """One start, under the lock of its home."""

    def __init__(
        self,
        place: Home,
        owner_pid: int | None,
        idle_minutes: float | None,
        progress: Progress,
    ) -> None:
        if importlib.util.find_spec("psutil") is None:
            raise FeatureUnavailable(f"the built-in servers need psutil; run {INSTALL}.")
        self.place = place
        self.progress = progress
        self.children = Children()
        configured = settings()
        self.idle_seconds = 60 * (configured.idle_stop if idle_minutes is None else idle_minutes)
        self.owner: tuple[int, float] | None = None
        if owner_pid is not None:
            began = identity(owner_pid)
            if began is None:
                raise EmbeddedError(f"there is no process {owner_pid} that could own the servers.")
            self.owner = (owner_pid, began)
        self.postgres_bin = configured.postgres_bin
        self.state = State()
        self.passwords: dict[str, dict[str, str]] = {}  # by server, of all its accounts

    def start(self, wanted: list[str]) -> Servers:
        """Bring up what of `wanted` does not run. Raises the first failure, after all is tried."""
        self.state = self.place.read_state()
        secrets = self.place.read_secrets()
        self.place.touch_used()
        reset = {name for name in wanted if name not in secrets}
        for name in reset:
            secrets[name] = new_passwords(KINDS[name].users)
        if reset:
            self.place.write_secrets(secrets)
        self.passwords = {name: passwords(secrets, name) for name in wanted}
        attempts = [Attempt(self, name, reset=name in reset) for name in wanted]
        try:
            with ThreadPoolExecutor(len(attempts), thread_name_prefix="fwdb-up") as pool:
                try:
                    self._run(attempts, pool)
                except BaseException:  # Ctrl-C: the threads wait for programs that now end
                    self.children.cancel()
                    raise
        except BaseException:
            for attempt in attempts:
                attempt.undo()
            raise
        self.place.write_state(self.state)
        failures = [attempt.failure for attempt in attempts if attempt.failure]
        if failures:
            raise failures[0]
        urls = {
            attempt.name: attempt.server.urls(attempt.port, self.passwords[attempt.name])
            for attempt in attempts
        }
        return Servers(self.place.path, **urls)

    @property
    def primary_port(self) -> int:
        return self.state.servers["postgres"].port

    def _run(self, attempts: list[Attempt], pool: ThreadPoolExecutor) -> None:
        list(pool.map(Attempt.prepare, attempts))
        ready = [attempt for attempt in attempts if not attempt.failure]
        for attempt in ready:
            attempt.pick_port(avoid=[other.port for other in ready if other is not attempt])
        if to_watch := [attempt for attempt in ready if attempt.watcher is None]:
            self.watch(to_watch)
        list(pool.map(Attempt.finish, ready))
        for attempt in ready:
            if attempt.record and not attempt.failure:
                self.state.servers[attempt.name] = attempt.record
                self.state.ports[attempt.name] = attempt.port

    def watch(self, attempts: list[Attempt]) -> None:
        """One watcher for the servers of `attempts`, which it starts."""
        watched = watch(
            [attempt.plan() for attempt in attempts],
            folder=self.place.path,
            idle_seconds=self.idle_seconds,
            owner=self.owner,
        )
        for attempt in attempts:
            attempt.watcher = watched.watcher
            attempt.pid, attempt.began = watched.servers[attempt.name]


class Attempt:
    """Bringing up one server. An expected failure is kept in `failure`: the other one goes on."""

    def __init__(self, launch: Launch, name: str, *, reset: bool) -> None:
        self.launch = launch
        self.name = name
        self.reset = reset
        self.server = open_server(launch.place, name)
        self.port = 0
        self.pid = 0
        self.began = 0.0
        self.adopted = False
        self.watcher: tuple[int, float] | None = None
        self.record: Record | None = None
        self.failure: FwdbError | None = None

    def prepare(self) -> None:
        """Join a server that runs already, or get everything ready to start one."""
        launch, server = self.launch, self.server
        try:
            self.record = launch.state.servers.pop(self.name, None)
            found = alive(launch.place, self.name, self.record)
            astray = isinstance(server, ReplicaServer) and not server.is_of(launch.primary_port)
            # Its passwords are lost: they are set while it is stopped. Or its primary has moved.
            if found and (self.reset or astray):
                for pid, began in found:
                    end(pid, began, server.signals)
                found = []
            if found:
                self._adopt(*found[0])
                return
            self.record = None
            if isinstance(server, PostgresServer):
                server.choose(launch.postgres_bin, launch.progress)
            else:
                server.choose(launch.progress)
            self._prepare_data()
            launch.progress(f"Starting {server.title} {server.version}")
        except FwdbError as error:
            self.failure = error

    def _prepare_data(self) -> None:
        self.server.prepare(
            self.launch.passwords[self.name],
            reset=self.reset,
            children=self.launch.children,
            progress=self.launch.progress,
        )
        self.reset = False

    def _adopt(self, pid: int, began: float) -> None:
        """Go on with a server that somebody else started: its own watcher if that still lives."""
        self.adopted = True
        self.pid, self.began = pid, began
        record = self.record
        if record and record.pid == pid and record.began == began:
            self.port = record.port
            if identity(record.watcher_pid) == record.watcher_began:
                self.watcher = (record.watcher_pid, record.watcher_began)
            return
        self.record = None
        words = argv(pid)
        for flag in ("-p", "--port"):
            if flag in words:
                self.port = int(words[words.index(flag) + 1])

    def pick_port(self, *, avoid: list[int]) -> None:
        if not self.adopted:
            self.port = free_port(self.launch.state.ports.get(self.name), avoid=avoid)

    def plan(self) -> dict[str, Any]:
        """This server's part of a watcher's plan."""
        if not self.adopted:
            return self.server.plan(self.port)
        return {
            "name": self.name,
            "pid": self.pid,
            "identity": self.began,
            "port": self.port,
            "signals": [int(number) for number in self.server.signals],
            "logs": [],
            "user": None,
        }

    def finish(self) -> None:
        """Wait until the server answers and takes our password; write down what it is."""
        try:
            for _ in range(PORT_TRIES):
                if self._wait():
                    break
                self._again(free_port())
            else:
                raise EmbeddedError(self.server.failed())
            passwords = self.launch.passwords[self.name]
            if not self.server.login(self.port, passwords):
                self._repair()
            self._write_down()
        except FwdbError as error:
            self.failure = error
            if self.began and not self.adopted:
                end(self.pid, self.began, self.server.signals)

    def undo(self) -> None:
        """End whatever this attempt has started, told of it or not."""
        if self.adopted:
            return
        for pid, began in find(self.server.kind, self.server.data, self.server.account):
            end(pid, began, self.server.signals)

    def _wait(self) -> bool:
        """True when the server answers; False when another process has taken its port.

        Raises `EmbeddedError` when it ends or is silent for too long.
        """
        started = time.monotonic()
        told_at = started + 3
        while not self.server.ping(self.port):
            now = time.monotonic()
            if identity(self.pid) != self.began:
                if not self.adopted and port_taken(self.port):
                    return False
                raise EmbeddedError(self.server.failed())
            if now - started > READY_SECONDS:
                raise EmbeddedError(
                    f"{self.server.title} (process {self.pid}) does not answer on port {self.port} "
                    f"within {READY_SECONDS:g} s; see '{self.server.start_log}'."
                )
            if now > told_at:
                told_at = now + 5
                self.launch.progress(
                    f"Waiting for {self.server.title}, which has to replay its log first"
                )
            time.sleep(0.01)
        # Another server may answer on a port that ours did not get.
        return identity(self.pid) == self.began

    def _again(self, port: int) -> None:
        self.port = port
        self.launch.watch([self])

    def _repair(self) -> None:
        """Set the passwords anew: those in the data are not those in our file."""
        end(self.pid, self.began, self.server.signals)
        if self.adopted:
            raise EmbeddedError(
                f"{self.server.title} in '{self.server.data}' did not take the password in "
                f"'{self.launch.place.path / 'secrets.json'}' and was stopped; start it again."
            )
        self.reset = True
        self._prepare_data()
        self._again(self.port)
        if not self._wait() or not self.server.login(self.port, self.launch.passwords[self.name]):
            raise EmbeddedError(
                f"{self.server.title} in '{self.server.data}' does not take the password that was "
                "just set; move that folder away to begin anew."
            )

    def _write_down(self) -> None:
        assert self.watcher is not None, "every server has a watcher by now"
        if self.adopted and self.record:
            pid, began = self.watcher
            self.record = replace(self.record, watcher_pid=pid, watcher_began=began)
            return
        server = self.server
        if self.adopted:
            engine, version, binary = adopted_identity(server, argv(self.pid))
        else:
            engine, version, binary = server.engine, server.version, server.binary
        self.record = Record(
            pid=self.pid,
            began=self.began,
            port=self.port,
            data=str(server.data),
            engine=engine,
            version=version,
            binary=binary,
            started_at=time.time(),
            watcher_pid=self.watcher[0],
            watcher_began=self.watcher[1],
        )


def adopted_identity(server: Server, words: list[str]) -> tuple[str, str, str]:
    """Engine, version and program of a running server that we know by its command line only."""
    if isinstance(server, PostgresServer):
        return "postgresql", server.data_version() or "", words[0]
    return (
        server.engine,
        "",
        next((word for word in words if "--" not in word and "/" in word), words[0]),
    )
