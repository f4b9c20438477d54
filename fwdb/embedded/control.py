"""Bringing the servers of a home up, joining those that run, and taking them down."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fwdb.config import settings
from fwdb.embedded import server as base
from fwdb.embedded.accounts import guard_folders
from fwdb.embedded.home import Home, Progress, Record, disk_sentences, find_home
from fwdb.embedded.mongodb import MongoServer
from fwdb.embedded.postgres import PostgresServer
from fwdb.embedded.replica import NAME as REPLICA
from fwdb.embedded.replica import ReplicaServer
from fwdb.embedded.server import Process, Urls, argv, check_extra, end, free_port, log, port_taken
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError, FwdbError, ParameterError, UnknownName

STORES = ("postgres", "mongodb")
Server = PostgresServer | MongoServer
KINDS: dict[str, type[PostgresServer] | type[MongoServer]] = {
    "postgres": PostgresServer,
    "mongodb": MongoServer,
    REPLICA: ReplicaServer,
}
LOOK_SECONDS = 0.3  # enough for a server that is well; of others no more has to be known
READY_SECONDS = 60.0  # crash recovery of a large cluster included
PORT_TRIES = 5


@dataclass(frozen=True)
class Servers:
    """The built-in servers of `home` that run; None for one that was not asked for.

    `replica` has the accounts of `postgres`, takes no writes, and is there with
    ``up(replica=True)`` only.
    """

    home: Path
    postgres: Urls | None = None
    mongodb: Urls | None = None
    replica: Urls | None = None


def up(
    home: Path | str | None = None,
    *,
    stores: Sequence[str] = STORES,
    owner_pid: int | None = None,
    idle_minutes: float | None = None,
    replica: bool = False,
    progress: Progress | None = None,
) -> Servers:
    """Start the servers of `home` that do not run, and return the URLs of all asked for.

    Servers outlive this process. They stop when nobody has been connected for `idle_minutes`
    (FWDB_IDLE_STOP, 30; 0 is never), and within 5 s after the process `owner_pid` has ended, if
    it is given. Both hold for servers started here; those that run already are joined as they
    are. Several processes may call this at once. `progress` is told, in short sentences, what
    takes time. With `replica` a streaming replica of PostgreSQL is brought up as well, and made
    the first time.

    Raises `FeatureUnavailable` when there is no program to run, and `EmbeddedError` when a server
    cannot be started; the other one runs then all the same.
    """
    wanted = check_stores(stores)
    if replica and "postgres" not in wanted:
        raise ParameterError(
            "a replica needs its primary: add 'postgres' to stores.", name="stores"
        )
    everything = [*wanted, REPLICA] if replica else wanted
    check_extra()
    with opened(home) as place:
        if joined := join(place, everything):
            return joined
        start = Start(place, owner_pid, idle_minutes, progress or log.info)
        place.create()
        with place.lock(start.progress):
            if joined := join(place, everything):  # another process has started them meanwhile
                return joined
            servers = join(place, wanted) or start.run(wanted)
            if not replica:
                return servers
            return replace(servers, replica=start.run([REPLICA]).replica)


def running(home: Path | str | None = None, *, stores: Sequence[str] = STORES) -> Servers | None:
    """The URLs of the servers of `home` if all of `stores` run; None otherwise, at once.

    A server counts as running when the process has the pid, the time of start and the data folder
    that were written down, and answers or is silent: one that is frozen would not start anew
    either, and who asks it waits no longer than FWDB_CONNECT_TIMEOUT_SECONDS.
    """
    with opened(home) as place:
        return join(place, check_stores(stores))


def down(home: Path | str | None = None, *, stores: Sequence[str] = STORES) -> bool:
    """Stop the servers of `home`; whether there was one to stop. A replica stops with PostgreSQL.

    Data, ports and passwords stay. Raises `EmbeddedError` when a server does not end.
    """
    with opened(home) as place:
        return _stop(place, check_stores(stores)) if place.path.is_dir() else False


def remove(home: Path | str | None = None) -> None:
    """Kill the servers of `home` and delete it with all their data, wherever that lies.

    For tests and for starting anew: as root, data may lie outside of `home` (see `status`), where
    deleting the folder itself would leave it behind. Nothing is asked. A missing home is nothing
    to remove.
    """
    with opened(home) as place:
        folders = {KINDS[name](place).folder for name in STORES} | {place.path}
        if place.path.is_dir():
            _stop(place, list(STORES), kill=True)
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)


def _stop(place: Home, wanted: list[str], *, kill: bool = False) -> bool:
    """Stop what runs of `wanted`, all at the same time; `kill` does it at once."""
    place.create()  # refuses a home of another user
    stopped: list[bool] = []
    with place.lock(log.info):
        # The replica first: a primary that stops waits for one that does not answer.
        with_replica = "postgres" in wanted and ReplicaServer(place).data.exists()
        for names in ([REPLICA] if with_replica else [], wanted):
            targets = [
                (*process, () if kill else server.signals)
                for server in (KINDS[name](place) for name in names)
                for process in server.running()
            ]
            with ThreadPoolExecutor(len(STORES)) as pool:
                stopped += pool.map(lambda target: end(*target), targets)
        state = place.read_state()
        for name in (*wanted, REPLICA) if with_replica else wanted:
            state.servers.pop(name, None)
        place.write_state(state)
    return any(stopped)


@contextmanager
def opened(home: Path | str | None) -> Iterator[Home]:
    """The state folder at `home`, with errors of the file system as one sentence with a remedy."""
    path = find_home() if home is None else Path(home).expanduser()
    with disk_sentences(path):
        yield Home(path)


def check_stores(stores: Sequence[str]) -> list[str]:
    for name in stores:
        if name not in STORES:
            raise UnknownName("store", name, STORES)
    return [name for name in STORES if name in stores]


def join(place: Home, wanted: list[str]) -> Servers | None:
    servers = [KINDS[name](place) for name in wanted]
    if not all(server.record and server.knows_passwords for server in servers):
        return None
    place.touch_used()  # before the look: the watcher must not stop what is about to be handed out
    for server in servers:
        if not server.is_recorded() or server.ping(LOOK_SECONDS) is False:
            return None
    return Servers(place.path, **{server.name: server.urls() for server in servers})


class Start:
    """One start, under the lock of its home: from nothing, from data, or over what runs."""

    def __init__(
        self, place: Home, owner_pid: int | None, idle_minutes: float | None, progress: Progress
    ) -> None:
        self.place = place
        self.progress = progress
        self.idle_seconds = 60 * (settings().idle_stop if idle_minutes is None else idle_minutes)
        self.owner: Process | None = None
        if owner_pid is not None:
            began = identity(owner_pid)
            if began is None:
                raise EmbeddedError(f"there is no process {owner_pid} that could own the servers.")
            self.owner = (owner_pid, began)

    def run(self, wanted: list[str]) -> Servers:
        """Bring up what of `wanted` does not run. Raises the first failure, after all is tried."""
        self.place.touch_used()
        servers = [KINDS[name](self.place, self.progress) for name in wanted]
        lost = {
            one.name: {user: secrets.token_hex(20) for user in one.users}  # needs no quoting
            for one in servers
            if one.reset
        }
        if lost:
            self.place.write_secrets(self.place.read_secrets() | lost)
            for server in servers:
                server.passwords |= lost.get(server.name, {})
        try:
            with ThreadPoolExecutor(len(servers), thread_name_prefix="fwdb-up") as pool:
                try:
                    self._bring_up(servers, pool)
                except BaseException:  # Ctrl-C: the threads wait for programs that now end
                    for server in servers:
                        server.cancel()
                    raise
        except BaseException:
            for server in servers:  # whatever was started, told of it or not
                if not server.adopted:
                    for process in server.processes():
                        end(*process, server.signals)
            raise
        state = self.place.read_state()
        for server in servers:
            state.servers.pop(server.name, None)
            if server.record and not server.failure:
                state.servers[server.name] = server.record
                state.ports[server.name] = server.port
        self.place.write_state(state)
        for server in servers:
            if server.failure:
                raise server.failure
        return Servers(self.place.path, **{server.name: server.urls() for server in servers})

    def _bring_up(self, servers: list[Server], pool: ThreadPoolExecutor) -> None:
        ports = self.place.read_state().ports
        list(pool.map(self._prepare, servers))
        ready = [server for server in servers if not server.failure]
        for server in ready:
            if not server.adopted:
                others = [other.port for other in ready if other is not server]
                server.port = free_port(ports.get(server.name), avoid=others)
        self._watch([server for server in ready if server.watcher is None])
        list(pool.map(self._finish, ready))

    def _watch(self, servers: list[Server]) -> None:
        if servers:
            base.watch(servers, self.place, idle_seconds=self.idle_seconds, owner=self.owner)

    def _prepare(self, server: Server) -> None:
        """Go on with a server that runs already, or get everything ready to start one."""
        try:
            found = server.running()
            # Its passwords are lost: they are set while it is stopped. Or its primary has moved.
            if found and (server.reset or not server.fits()):
                for process in found:
                    end(*process, server.signals)
            elif found:
                self._adopt(server, *found[0])
                return
            server.choose()
            self._make_ready(server)
            self.progress(f"Starting {server.title} {server.version}")
        except FwdbError as error:
            server.failure = error

    @staticmethod
    def _make_ready(server: Server) -> None:
        with disk_sentences(server.folder):
            guard_folders(server.folder, server.data, server.account)
            server.rotate_log()
            server.prepare()

    @staticmethod
    def _adopt(server: Server, pid: int, began: float) -> None:
        """Take over a server that somebody else started, with its watcher if that still lives."""
        server.adopted, server.pid, server.began = True, pid, began
        record = server.record
        if record and (record.pid, record.began) == (pid, began):
            server.version, server.binary = record.version, record.binary
            if identity(record.watcher_pid) == record.watcher_began:
                server.watcher = (record.watcher_pid, record.watcher_began)
            return
        server.record = None
        words = argv(pid)
        server.version = server.data_version() or ""
        server.binary = next(one for one in words if Path(one).name in server.programs)
        server.port = int(words[1 + next(words.index(f) for f in ("-p", "--port") if f in words)])

    def _finish(self, server: Server) -> None:
        """Wait until the server answers and takes our password; write down what it is."""
        try:
            for _ in range(PORT_TRIES):
                if self._answers(server):
                    break
                self._again(server, free_port())
            else:
                raise server.not_started()
            if not server.login():
                self._repair(server)
            assert server.watcher
            known = server.record if server.adopted else None
            server.record = Record(
                pid=server.pid,
                began=server.began,
                port=server.port,
                data=str(server.data),
                engine=server.engine,
                version=server.version,
                binary=server.binary,
                started_at=known.started_at if known else time.time(),
                watcher_pid=server.watcher[0],
                watcher_began=server.watcher[1],
            )
        except FwdbError as error:
            server.failure = error
            if server.began and not server.adopted:
                end(server.pid, server.began, server.signals)

    def _answers(self, server: Server) -> bool:
        """True when the server answers; False when another process has taken its port.

        Raises `EmbeddedError` when it ends or is silent for too long.
        """
        started = time.monotonic()
        told_at = started + 3
        while not server.ping():
            now = time.monotonic()
            if identity(server.pid) != server.began:
                if not server.adopted and port_taken(server.port):
                    return False
                raise server.not_started()
            if now - started > READY_SECONDS:
                raise EmbeddedError(
                    f"{server.title} (process {server.pid}) does not answer on port {server.port} "
                    f"within {READY_SECONDS:g} s; see '{server.start_log}'."
                )
            if now > told_at:
                told_at = now + 5
                self.progress(f"Waiting for {server.title}, which has to replay its log first")
            time.sleep(0.01)
        # Another server may answer on a port that ours did not get.
        return identity(server.pid) == server.began

    def _again(self, server: Server, port: int) -> None:
        server.port = port
        self._watch([server])

    def _repair(self, server: Server) -> None:
        """Set the passwords anew: those in the data are not those in our file."""
        end(server.pid, server.began, server.signals)
        if server.adopted:
            raise EmbeddedError(
                f"{server.title} in '{server.data}' did not take the password in "
                f"'{self.place.path / 'secrets.json'}' and was stopped; start it again."
            )
        server.reset = True
        self._make_ready(server)
        self._again(server, server.port)
        if not self._answers(server) or not server.login():
            raise EmbeddedError(
                f"{server.title} in '{server.data}' does not take the password that was "
                "just set; move that folder away to begin anew."
            )
