"""MongoDB as a built-in server: SecantusDB in a process of its own, or a mongod when asked for.

Written for mongod from its documentation; only SecantusDB is run by the tests.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwdb.embedded.accounts import (
    private_folder,
    server_account,
    server_folder,
)
from fwdb.embedded.binaries import (
    MongoBinary,
    choose_mongo,
    interpreter_reachable,
    mongo_candidates,
)
from fwdb.embedded.home import Home, disk_full, disk_sentences, free_bytes
from fwdb.embedded.processes import (
    HOST,
    Children,
    Kind,
    Progress,
    end,
    find,
    free_port,
    last_line,
    server_plan,
    watch,
)
from fwdb.embedded.urls import APP, DATABASE, OWNER, REPORT, Urls
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError

if TYPE_CHECKING:
    from pymongo import MongoClient

ROOM_BYTES = 40_000_000  # an empty data folder takes 10 MB, the first writes as much again
MARKER = "engine.json"
SETTINGS = "secantusd.toml"
REPLICA_SET = "fwdb"  # of a mongod; a set of one, which transactions and change streams need
START_SECONDS = 30.0

_ROLES: dict[str, list[dict[str, str]]] = {
    OWNER: [{"role": "root", "db": "admin"}],
    APP: [{"role": "readWrite", "db": DATABASE}, {"role": "clusterMonitor", "db": "admin"}],
    REPORT: [{"role": "read", "db": DATABASE}, {"role": "clusterMonitor", "db": "admin"}],
}


class MongoServer:
    """The MongoDB data of one home: what `launch` needs to know of it."""

    name = "mongodb"
    users = (OWNER, APP, REPORT)
    kind = Kind(frozenset({"secantusd-py", "mongod"}), frozenset({"--storage-path", "--dbpath"}))
    signals = (signal.SIGTERM,)

    def __init__(self, home: Home, run_as: str | None) -> None:
        self.home = home
        self.account = server_account(run_as)
        self.folder = server_folder(home.path, self.account)
        if not self._has_data(self.folder) and self._has_data(home.path):
            self.account, self.folder = None, home.path  # of a time when it had to run as root
        self.start_log = home.log / "mongodb.log"
        self._binary: MongoBinary | None = None

    @staticmethod
    def _has_data(folder: Path) -> bool:
        return (folder / "mongo" / MARKER).exists()

    @property
    def data(self) -> Path:
        return self.folder / "mongo"

    # What is there

    def data_engine(self) -> str | None:
        """``secantusdb`` or ``mongod``, whichever made the existing data; None without data."""
        try:
            content = json.loads((self.data / MARKER).read_text())
            return str(content["engine"])
        except FileNotFoundError:
            if self.data.is_dir() and any(self.data.iterdir()):
                raise EmbeddedError(
                    f"'{self.data}' holds files, and none of them ({MARKER}) says which server "
                    "made them; move the folder away."
                ) from None
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EmbeddedError(
                f"'{self.data / MARKER}', which names the server that made the data, cannot be "
                'read; write {"engine": "secantusdb"} or {"engine": "mongod"} into it.'
            ) from error

    def choose(self, configured: str | None, progress: Progress) -> None:
        """Decide which program to run; nothing is started. Raises as `choose_mongo`."""
        self._binary = choose_mongo(mongo_candidates(configured), self.data_engine())
        if self.account and not interpreter_reachable(self._binary, self.account):
            if self._has_data(self.folder):
                raise EmbeddedError(
                    f"the MongoDB data in '{self.data}' belongs to user '{self.account.name}', "
                    f"who cannot read '{self._binary.command[0]}'; set FWDB_RUN_AS to a user who "
                    "can, or FWDB_HOME to a new folder."
                )
            progress(
                f"SecantusDB runs as root: user '{self.account.name}' cannot read the installation "
                f"around {self._binary.command[0]}"
            )
            self.account, self.folder = None, self.home.path

    @property
    def chosen(self) -> MongoBinary:
        assert self._binary is not None, "choose() comes first"
        return self._binary

    @property
    def version(self) -> str:
        return self.chosen.version

    @property
    def title(self) -> str:
        """The name for people: SecantusDB is not to be taken for a MongoDB."""
        return "SecantusDB" if self.engine == "secantusdb" else "mongod"

    @property
    def engine(self) -> str:
        """``secantusdb`` or ``mongod``: the program chosen, else the one that made the data."""
        return self._binary.engine if self._binary else self.data_engine() or "secantusdb"

    @property
    def binary(self) -> str:
        return self.chosen.command[-1]

    # Getting ready to start

    def prepare(
        self, passwords: dict[str, str], *, reset: bool, children: Children, progress: Progress
    ) -> None:
        """Make the data folder if there is none; `reset` gives the users of one `passwords`."""
        private_folder(self.folder, self.account)
        if self.data_engine() is not None:
            if reset:
                progress(f"Setting new passwords in {self.title}: the file of the old ones is lost")
                self._with_open_server(self.data, passwords)
            self._rotate_log()
            return
        if free_bytes(self.folder) < ROOM_BYTES:
            raise EmbeddedError(disk_full(self.folder))
        progress(f"Creating the {self.title} data folder in {self.data}")
        making = self.folder / "mongo.tmp"
        for pid in find(self.kind, making):  # of a start that was killed half-way
            if (began := identity(pid)) is not None:
                end(pid, began, [])
        try:
            self._initialise(making, passwords)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _initialise(self, making: Path, passwords: dict[str, str]) -> None:
        """Make the data beside its place and move it there when it is complete."""
        with disk_sentences(self.folder):
            shutil.rmtree(making, ignore_errors=True)
            private_folder(making, self.account)
            self._with_open_server(making, passwords)
            marker = {"engine": self.engine, "version": self.version}
            (making / MARKER).write_text(json.dumps(marker) + "\n")
            (making / MARKER).chmod(0o644)  # inside a folder that is closed to others
            if self.data.exists():
                self.data.rmdir()
            making.rename(self.data)

    def _with_open_server(self, data: Path, passwords: dict[str, str]) -> None:
        """Make the users, or give them `passwords`, with a server that asks for none.

        It listens on a random port of 127.0.0.1 for some tenths of a second. It is watched with
        this process as its owner, so that it does not outlive a start that is killed.
        """
        self._rotate_log()
        if self.engine == "mongod":
            self._write_key(data)
        else:
            (data / SETTINGS).touch(mode=0o644)
        port = free_port()
        mine = identity(os.getpid())
        assert mine is not None, "this process is alive"
        plan = self.plan(port, data=data, authenticated=False)
        watched = watch([plan], folder=self.home.path, idle_seconds=0, owner=(os.getpid(), mine))
        pid, began = watched.servers[self.name]
        try:
            deadline = time.monotonic() + START_SECONDS
            while not self.ping(port):
                if identity(pid) != began or time.monotonic() > deadline:
                    raise EmbeddedError(self.failed())
                time.sleep(0.01)
            self._make_users(port, passwords)
        finally:
            # What was written is on disk: see the fsync in _make_users. A gentle stop may take
            # seconds.
            end(pid, began, [])

    def _make_users(self, port: int, passwords: dict[str, str]) -> None:
        import pymongo
        from pymongo.errors import OperationFailure, PyMongoError

        client: MongoClient[dict[str, Any]] = pymongo.MongoClient(
            HOST, port, directConnection=True, serverSelectionTimeoutMS=10_000
        )
        try:
            if self.engine == "mongod":
                self._initiate(client, port)
            for user, roles in _ROLES.items():
                words: dict[str, Any] = {"pwd": passwords[user], "roles": roles}
                try:
                    client.admin.command("createUser", user, **words)
                except OperationFailure as error:
                    if error.code != 51003:  # the user exists
                        raise
                    client.admin.command("updateUser", user, **words)
            # A write concern given to createUser does not bring it to disk in SecantusDB: killed
            # right after, it came back without the users. This does.
            client.admin.command("fsync")
        except PyMongoError as error:
            raise EmbeddedError(f"MongoDB refused to make its users: {error}.") from error
        finally:
            client.close()

    def _initiate(self, client: MongoClient[dict[str, Any]], port: int) -> None:
        """Make a mongod a replica set of one, at the address it has now, and wait for its turn."""
        from pymongo.errors import OperationFailure

        member = {"_id": 0, "host": f"{HOST}:{port}"}
        try:
            config = client.admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code != 94:  # NotYetInitialized
                raise
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [member]})
        else:
            if config["members"][0]["host"] != member["host"]:
                config["members"][0]["host"] = member["host"]
                config["version"] += 1
                client.admin.command("replSetReconfig", config, force=True)
        deadline = time.monotonic() + START_SECONDS
        while not client.admin.command("hello").get("isWritablePrimary"):
            if time.monotonic() > deadline:
                raise EmbeddedError("mongod did not become the primary of its replica set of one.")
            time.sleep(0.05)

    def _write_key(self, data: Path) -> None:
        """The key file without which a mongod of a replica set takes no passwords."""
        key = data / "keyfile"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
                if self.account:
                    os.fchown(file.fileno(), self.account.uid, self.account.gid)
                file.write(secrets.token_hex(256))

    def _rotate_log(self) -> None:
        """Keep one older log beside the new one."""
        if self.start_log.exists():
            self.start_log.replace(self.start_log.with_suffix(".log.1"))

    def failed(self) -> str:
        """The sentence for a server that did not come up."""
        reason = last_line(*self.logs())
        if "No space left on device" in reason:
            return disk_full(self.folder)
        return f"{self.title} {self.version} did not start: {reason} (log '{self.start_log}')."

    # Running

    def plan(
        self, port: int, *, data: Path | None = None, authenticated: bool = True
    ) -> dict[str, Any]:
        """What the watcher needs to start the server over `data`."""
        return server_plan(
            name=self.name,
            command=self.command(port, data or self.data, authenticated=authenticated),
            port=port,
            signals=self.signals,
            log=self.start_log,
            logs=[self.start_log],
            cwd=data or self.data,
            account=self.account,
        )

    def command(self, port: int, data: Path, *, authenticated: bool = True) -> list[str]:
        if self.engine == "mongod":
            words = ["--bind_ip", HOST, "--port", str(port), "--dbpath", str(data)]
            words += ["--replSet", REPLICA_SET, "--nounixsocket"]
            words += ["--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "256"]
            if authenticated:
                words += ["--auth", "--keyFile", str(data / "keyfile")]
            return [*self.chosen.command, *words]
        # An empty file of settings, or it would look for one in the current folder and in HOME.
        words = ["--config", str(data / SETTINGS), "--log-level", "WARNING"]
        words += ["--host", HOST, "--port", str(port), "--storage-path", str(data)]
        words += ["--cache-size", "256M", "--session-max", "300", "--noop-heartbeat-seconds", "10"]
        # A day of changes for who follows them, where the default is an hour.
        words += ["--oplog-retention-seconds", "86400", "--oplog-max-entries", "1000000"]
        # Whatever a client asks for, a confirmed change survives kill -9: one that is lost would
        # have been recorded by then. A write with journal, as ours are, takes 0.74 of the time it
        # takes without this flag, one without journal 1.8 times as much, one of 1,000 the same.
        words += ["--sync-on-commit"]
        return [*self.chosen.command, *words, *(["--auth"] if authenticated else [])]

    @staticmethod
    def ping(port: int, seconds: float = 2) -> bool | None:
        """Whether the server answers ``hello``, which needs no login and no driver.

        None when it says nothing in `seconds`.
        """
        # One OP_MSG with {hello: 1, $db: "admin"}, by hand: a driver takes longer to load.
        document = b"\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0"
        body = struct.pack("<iB", 0, 0) + struct.pack("<i", 4 + len(document)) + document
        packet = struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body
        try:
            with socket.create_connection((HOST, port), seconds) as link:
                link.sendall(packet)
                return b"isWritablePrimary\0" in link.recv(4096)
        except TimeoutError:
            return None
        except OSError:
            return False

    def login(self, port: int, passwords: dict[str, str]) -> bool:
        """Whether the password of the owner is right; raises `EmbeddedError` for other refusals."""
        import pymongo
        from pymongo.errors import OperationFailure, PyMongoError

        client: MongoClient[dict[str, Any]] = pymongo.MongoClient(
            self._url(OWNER, port, passwords), serverSelectionTimeoutMS=10_000
        )
        try:
            client.admin.command("usersInfo", OWNER)
            if self.engine == "mongod":
                self._initiate(client, port)
        except OperationFailure as error:
            if error.code == 18:  # AuthenticationFailed
                return False
            raise EmbeddedError(f"MongoDB refuses a login: {error}.") from error
        except PyMongoError as error:
            raise EmbeddedError(f"MongoDB refuses a login: {error}.") from error
        finally:
            client.close()
        return True

    @classmethod
    def urls(cls, port: int, passwords: dict[str, str]) -> Urls:
        owner, app, report = (cls._url(user, port, passwords) for user in (OWNER, APP, REPORT))
        return Urls(owner, app, report)

    @staticmethod
    def _url(user: str, port: int, passwords: dict[str, str]) -> str:
        # journal: SecantusDB killed at once loses majority writes that are not yet in the journal.
        # directConnection: the set has one member, and its address need not be looked up.
        return (
            f"mongodb://{user}:{passwords[user]}@{HOST}:{port}/{DATABASE}"
            "?authSource=admin&authMechanism=SCRAM-SHA-256&directConnection=true"
            "&w=majority&journal=true"
        )

    def logs(self) -> list[Path]:
        return [self.start_log]
