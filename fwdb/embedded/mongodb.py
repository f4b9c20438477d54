"""MongoDB as a built-in server: SecantusDB in a process of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwdb.embedded.accounts import (
    guard_folders,
    private_folder,
    server_account,
    server_folder,
    write_own,
)
from fwdb.embedded.binaries import SECANTUS, MongoBinary, choose_mongodb, interpreter_reachable
from fwdb.embedded.home import Home, disk_full, disk_sentences, free_bytes
from fwdb.embedded.processes import (
    HOST,
    Children,
    Kind,
    Progress,
    end,
    find,
    last_line,
    server_plan,
)
from fwdb.embedded.urls import APP, DATABASE, OWNER, REPORT, Urls
from fwdb.errors import EmbeddedError

if TYPE_CHECKING:
    from pymongo import MongoClient

ROOM_BYTES = 40_000_000  # an empty data folder takes 10 MB, the first writes as much again
MARKER = "engine.json"
SETTINGS = "secantusd.toml"
START_SECONDS = 30.0
USER_EXISTS = 51003  # MongoDB's code

_ROLES: dict[str, list[dict[str, str]]] = {
    APP: [{"role": "readWrite", "db": DATABASE}, {"role": "clusterMonitor", "db": "admin"}],
    REPORT: [{"role": "read", "db": DATABASE}, {"role": "clusterMonitor", "db": "admin"}],
    OWNER: [{"role": "root", "db": "admin"}],  # last: when its password is right, those of all are
}

# Users can be made only by a server that asks for no password, and it knows no way in but TCP.
# So it runs with sockets that bind and listen nowhere: its one client is the socket that it has
# as its standard input, and it ends with it. A call that got around them ends it as well.
_UNREACHABLE = """\
import os, runpy, select, socket, sys

class Socket(socket.socket):
    given = False

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno)

    def bind(self, address): pass

    def listen(self, backlog=0): pass

    def getsockname(self): return ("", 0)

    def accept(self):
        if not Socket.given:
            Socket.given = True
            return Socket(fileno=os.dup(0)), ("", 0)
        gone = select.poll()
        gone.register(0, 0)
        gone.poll()
        os._exit(0)

socket.socket = Socket
sys.addaudithook(lambda event, _: os._exit(1) if event == "socket.bind" else None)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class MongoServer:
    """The MongoDB data of one home: what `launch` needs to know of it."""

    name = "mongodb"
    users = (OWNER, APP, REPORT)
    title = "SecantusDB"  # not to be taken for a MongoDB
    engine = "secantusdb"
    kind = Kind(frozenset({SECANTUS}), frozenset({"--storage-path"}))
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

    def has_data(self) -> bool:
        """Whether there is data. Raises `EmbeddedError` for files that are not SecantusDB's."""
        if (self.data / "keyfile").exists():
            raise EmbeddedError(
                f"the data in '{self.data}' was made by a mongod, which fwdb does not start any "
                "more; run that mongod yourself and set FWDB_MONGODB_URL, or move the folder away."
            )
        if not self._has_data(self.folder) and self.data.is_dir() and any(self.data.iterdir()):
            raise EmbeddedError(
                f"'{self.data}' holds files, and none of them ({MARKER}) says that SecantusDB "
                "made them; move the folder away."
            )
        return self._has_data(self.folder)

    def choose(self, progress: Progress) -> None:
        """Decide which program to run; nothing is started. Raises as `choose_mongodb`."""
        self._binary = choose_mongodb()
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
    def binary(self) -> str:
        return self.chosen.command[-1]

    # Getting ready to start

    def prepare(
        self, passwords: dict[str, str], *, reset: bool, children: Children, progress: Progress
    ) -> None:
        """Make the data folder if there is none; `reset` gives the users of one `passwords`."""
        guard_folders(self.folder, self.data, self.account)
        if self.has_data():
            if reset:
                progress(f"Setting new passwords in {self.title}: the file of the old ones is lost")
                self._set_passwords(self.data, passwords, children)
            self._rotate_log()
            return
        if free_bytes(self.folder) < ROOM_BYTES:
            raise EmbeddedError(disk_full(self.folder))
        progress(f"Creating the {self.title} data folder in {self.data}")
        making = self.folder / "mongo.tmp"
        for pid, began in find(self.kind, making, self.account):  # of a start that was killed
            end(pid, began, [])
        try:
            self._initialise(making, passwords, children)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _initialise(self, making: Path, passwords: dict[str, str], children: Children) -> None:
        """Make the data beside its place and move it there when it is complete."""
        with disk_sentences(self.folder):
            shutil.rmtree(making, ignore_errors=True)
            private_folder(making, self.account)
            self._set_passwords(making, passwords, children)
            marker = f'{{"engine": "{self.engine}", "version": "{self.version}"}}\n'
            write_own(making / MARKER, marker, self.account)
            if self.data.exists():
                self.data.rmdir()
            making.rename(self.data)

    def _set_passwords(self, data: Path, passwords: dict[str, str], children: Children) -> None:
        """Make the users, or give them `passwords`, with a server that nobody else can reach."""
        self._rotate_log()
        ours, theirs = socket.socketpair()
        with ours, theirs, disk_sentences(data), open(self.start_log, "ab") as log:
            write_own(data / SETTINGS, "", self.account)
            python, script, *options = self._command_line(0, data)
            with children.started(
                [python, "-Pc", _UNREACHABLE, script, *options],
                account=self.account,
                cwd=data,
                stdin=theirs,
                stdout=log,
                stderr=log,
            ):
                theirs.close()
                ours.settimeout(START_SECONDS)
                try:
                    self._make_users(ours, passwords)
                except OSError:
                    raise EmbeddedError(self.failed()) from None

    @staticmethod
    def _make_users(link: socket.socket, passwords: dict[str, str]) -> None:
        for user, roles in _ROLES.items():
            account = {"pwd": passwords[user], "roles": roles}
            if _command(link, {"createUser": user, **account}).get("code") == USER_EXISTS:
                _command(link, {"updateUser": user, **account})
        # A write concern given to createUser does not bring it to disk: killed right after, it came
        # back without the users. This does, and a gentle stop takes seconds.
        _command(link, {"fsync": 1})

    def _rotate_log(self) -> None:
        """Keep one older log beside the new one."""
        if self.start_log.exists():
            self.start_log.replace(self.start_log.with_suffix(".log.1"))

    def failed(self) -> str:
        """The sentence for a server that did not come up."""
        reason = last_line((self.start_log, None))
        if "No space left on device" in reason:
            return disk_full(self.folder)
        return f"{self.title} {self.version} did not start: {reason} (log '{self.start_log}')."

    # Running

    def plan(self, port: int) -> dict[str, Any]:
        """What the watcher needs to start the server."""
        return server_plan(
            name=self.name,
            command=[*self._command_line(port, self.data), "--auth"],
            port=port,
            signals=self.signals,
            log=self.start_log,
            logs=[self.start_log],
            cwd=self.data,
            account=self.account,
        )

    def _command_line(self, port: int, data: Path) -> list[str]:
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
        return [*self.chosen.command, *words]

    @staticmethod
    def ping(port: int, seconds: float = 2) -> bool | None:
        """Whether the server answers ``hello``, which needs no login and no driver.

        None when it says nothing in `seconds`.
        """
        # {hello: 1, $db: "admin"} by hand: a driver takes longer to load.
        document = b"\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0"
        try:
            with socket.create_connection((HOST, port), seconds) as link:
                link.sendall(_message(struct.pack("<i", 4 + len(document)) + document))
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


def _message(document: bytes) -> bytes:
    """One OP_MSG with the command `document`, as BSON."""
    return struct.pack("<iiiiiB", 21 + len(document), 1, 0, 2013, 0, 0) + document


def _command(link: socket.socket, command: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `command` on the database admin.

    Raises `OSError` when there is none, `EmbeddedError` when it is a refusal other than that a
    user exists.
    """
    import bson

    link.sendall(_message(bson.encode({**command, "$db": "admin"})))
    with link.makefile("rb") as stream:
        header = stream.read(21)
        if len(header) < 21:
            raise ConnectionError("the server has ended")
        answer = bson.decode(stream.read(struct.unpack_from("<i", header)[0] - 21))
    if not answer["ok"] and answer.get("code") != USER_EXISTS:
        raise EmbeddedError(f"MongoDB refused to make its users: {answer.get('errmsg')}.")
    return answer
