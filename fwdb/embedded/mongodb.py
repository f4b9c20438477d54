"""MongoDB as a built-in server: SecantusDB in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwdb.config import settings
from fwdb.embedded.accounts import Account, reaches, server_account, server_folder, write_own
from fwdb.embedded.home import check_room
from fwdb.embedded.server import APP, DATABASE, HOST, INSTALL, OWNER, REPORT, Server
from fwdb.errors import EmbeddedError, FeatureUnavailable

if TYPE_CHECKING:
    from pymongo import MongoClient

PROGRAM = "secantusd-py"
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


def _message(document: bytes) -> bytes:
    """One OP_MSG with the command `document`, as BSON."""
    return struct.pack("<iiiiiB", 21 + len(document), 1, 0, 2013, 0, 0) + document


def secantus() -> tuple[list[str], str]:
    """The command of SecantusDB and its version. It is under the GPL and never imported.

    Raises `FeatureUnavailable` when it is not installed.
    """
    try:
        package = importlib.metadata.distribution("SecantusDB")
    except importlib.metadata.PackageNotFoundError:
        problem = "the wheel SecantusDB is not installed"
    else:
        recorded = [Path(file.locate()) for file in package.files or () if file.name == PROGRAM]
        for script in (*recorded, Path(sysconfig.get_path("scripts")) / PROGRAM):
            if script.is_file():
                # With our own interpreter: the script's first line may be too long or be stale.
                return [sys.executable, os.path.abspath(script)], package.version
        problem = "its console script is missing"
    raise FeatureUnavailable(
        f"no MongoDB to run was found ({problem}); run {INSTALL}, or set FWDB_MONGODB_URL to a "
        "server of your own."
    )


class MongoServer(Server):
    """The MongoDB data of one home."""

    name = "mongodb"
    title = "SecantusDB"  # not to be taken for a MongoDB
    engine = "secantusdb"
    users = (OWNER, APP, REPORT)
    signals = (signal.SIGTERM,)
    # journal: SecantusDB killed at once loses majority writes that are not yet in the journal.
    # directConnection: the set has one member, and its address need not be looked up.
    address = (
        f"mongodb://{{user}}:{{password}}@{HOST}:{{port}}/{DATABASE}"
        "?authSource=admin&authMechanism=SCRAM-SHA-256&directConnection=true"
        "&w=majority&journal=true"
    )
    # {hello: 1, $db: "admin"} by hand: a driver takes longer to load.
    hello = _message(b"\x1f\0\0\0\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0")
    well = re.compile(rb"isWritablePrimary\0")
    programs = (PROGRAM,)
    flag = "--storage-path"
    data_name = "mongo"

    @cached_property
    def account(self) -> Account | None:
        """As for any server; but root where it had to be root when the data was made."""
        account = server_account(settings().run_as)
        home = self.home.path
        as_root = self._is_data(home) and not self._is_data(server_folder(home, account))
        return None if as_root else account

    @staticmethod
    def _is_data(folder: Path) -> bool:
        return (folder / "mongo" / MARKER).exists()

    def has_data(self) -> bool:
        """Whether there is data. Raises `EmbeddedError` for files that are not SecantusDB's."""
        if (self.data / "keyfile").exists():
            raise EmbeddedError(
                f"the data in '{self.data}' was made by a mongod, which fwdb does not start any "
                "more; run that mongod yourself and set FWDB_MONGODB_URL, or move the folder away."
            )
        found = self._is_data(self.folder)
        if not found and self.data.is_dir() and any(self.data.iterdir()):
            raise EmbeddedError(
                f"'{self.data}' holds files, and none of them ({MARKER}) says that SecantusDB "
                "made them; move the folder away."
            )
        return found

    def choose(self) -> None:
        """Decide under which user to run it; nothing is started. Raises as `secantus`."""
        self._program, self.version = secantus()
        self.binary = self._program[-1]
        package = importlib.metadata.distribution("SecantusDB").locate_file("secantus/__init__.py")
        library = Path(sysconfig.get_path("stdlib")) / "os.py"
        needed = (*map(Path, self._program), library, Path(str(package)))
        if self.account and not reaches(self.account, *needed):
            if self._is_data(self.folder):
                raise EmbeddedError(
                    f"the MongoDB data in '{self.data}' belongs to user '{self.account.name}', "
                    f"who cannot read '{sys.executable}'; set FWDB_RUN_AS to a user who "
                    "can, or FWDB_HOME to a new folder."
                )
            self.progress(
                f"SecantusDB runs as root: user '{self.account.name}' cannot read the installation "
                f"around {sys.executable}"
            )
            self.account, self.folder = None, self.home.path

    # Getting ready to start

    def prepare(self) -> None:
        """Make the data folder if there is none; with `reset`, give its users the `passwords`."""
        if not self.has_data():
            check_room(self.folder, ROOM_BYTES)
            self.progress(f"Creating the {self.title} data folder in {self.data}")
            with self.new_data() as making:
                self._set_passwords(making)
                marker = f'{{"engine": "{self.engine}", "version": "{self.version}"}}\n'
                write_own(making / MARKER, marker, self.account)
        elif self.reset:
            title = self.title
            self.progress(f"Setting new passwords in {title}: the file of the old ones is lost")
            self._set_passwords(self.data)

    def _set_passwords(self, data: Path) -> None:
        """Make the users, or give them `passwords`, with a server that nobody else can reach."""
        write_own(data / SETTINGS, "", self.account)
        python, script, *options = self._command_line(data)
        command = [python, "-Pc", _UNREACHABLE, script, *options]
        ours, theirs = socket.socketpair()
        with ours, theirs, open(self.start_log, "ab") as log:
            streams: dict[str, Any] = {"stdin": theirs, "stdout": log, "stderr": log}
            with subprocess.Popen(command, **streams, **self.options(data)) as process:
                theirs.close()
                ours.settimeout(START_SECONDS)
                try:
                    self._make_users(ours)
                except OSError:
                    raise self.not_started() from None
                finally:
                    process.kill()

    def _make_users(self, link: socket.socket) -> None:
        for user, roles in _ROLES.items():
            account = {"pwd": self.passwords[user], "roles": roles}
            if _command(link, {"createUser": user, **account}).get("code") == USER_EXISTS:
                _command(link, {"updateUser": user, **account})
        # A write concern given to createUser does not bring it to disk: killed right after, it came
        # back without the users. This does, and a gentle stop takes seconds.
        _command(link, {"fsync": 1})

    # Running

    def command(self) -> list[str]:
        return [*self._command_line(self.data), "--auth"]

    def _command_line(self, data: Path) -> list[str]:
        # An empty file of settings, or it would look for one in the current folder and in HOME.
        words = ["--config", str(data / SETTINGS), "--log-level", "WARNING"]
        words += ["--host", HOST, "--port", str(self.port), "--storage-path", str(data)]
        words += ["--cache-size", "256M", "--session-max", "300", "--noop-heartbeat-seconds", "10"]
        # A day of changes for who follows them, where the default is an hour.
        words += ["--oplog-retention-seconds", "86400", "--oplog-max-entries", "1000000"]
        # Whatever a client asks for, a confirmed change survives kill -9: one that is lost would
        # have been recorded by then. A write with journal, as ours are, takes 0.74 of the time it
        # takes without this flag, one without journal 1.8 times as much, one of 1,000 the same.
        words += ["--sync-on-commit"]
        return [*self._program, *words]

    def login(self) -> bool:
        """Whether the password of the owner is right; raises `EmbeddedError` for other refusals."""
        import pymongo
        from pymongo.errors import OperationFailure, PyMongoError

        client: MongoClient[dict[str, Any]] = pymongo.MongoClient(
            self.url(OWNER), serverSelectionTimeoutMS=10_000
        )
        try:
            client.admin.command("usersInfo", OWNER)
        except PyMongoError as error:
            if isinstance(error, OperationFailure) and error.code == 18:  # AuthenticationFailed
                return False
            raise EmbeddedError(f"MongoDB refuses a login: {error}.") from error
        finally:
            client.close()
        return True


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
