"""PostgreSQL as a built-in server: making the cluster, its settings, its state of health."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

from fwdb.embedded import postgres_setup as setup
from fwdb.embedded.accounts import (
    SHARED_FOLDER,
    Account,
    guard_folders,
    open_own,
    private_folder,
    read_own,
    server_account,
    server_folder,
    write_own,
)
from fwdb.embedded.binaries import (
    PostgresBinaries,
    choose_postgres,
    postgres_candidates,
    within_reach,
)
from fwdb.embedded.home import Home, disk_full, disk_sentences, free_bytes
from fwdb.embedded.postgres_setup import SUPERUSER
from fwdb.embedded.processes import (
    HOST,
    Children,
    Kind,
    Progress,
    at_work_in,
    end,
    find,
    last_line,
    server_plan,
    telling_line,
)
from fwdb.embedded.urls import APP, DATABASE, OWNER, REPORT, Urls
from fwdb.errors import EmbeddedError

ROOM_BYTES = 100_000_000  # a new cluster takes 40 MB, its first WAL segments the rest


class PostgresServer:
    """The cluster of one home: what `launch` needs to know of PostgreSQL."""

    name = "postgres"
    title = "PostgreSQL"
    users: tuple[str, ...] = (SUPERUSER, OWNER, APP, REPORT)
    kind = Kind(frozenset({"postgres"}), frozenset({"-D"}))
    signals = (signal.SIGINT, signal.SIGQUIT)  # fast stop, then immediate

    def __init__(self, home: Home, run_as: str | None) -> None:
        self.home = home
        self.account = server_account(run_as)
        self.folder = server_folder(home.path, self.account)
        self.data = self.folder / "pg"
        self.start_log = home.log / "postgres.log"
        self._binaries: PostgresBinaries | None = None
        self._started_at = 0.0

    # What is there

    def data_version(self) -> str | None:
        """Major version of the existing data, None if there is none."""
        try:
            return read_own(self.data / "PG_VERSION", self.account).decode().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "PG_VERSION is damaged"
            raise EmbeddedError(
                f"'{self.data}' cannot be read ({reason}); set FWDB_HOME to another folder."
            ) from error

    def choose(self, configured: Path | None, progress: Progress) -> None:
        """Decide which binaries to run; nothing is started. Raises as `choose_postgres`."""
        chosen = choose_postgres(postgres_candidates(configured), self.data_version())
        self._binaries = within_reach(chosen, self.account, progress)

    @property
    def binaries(self) -> PostgresBinaries:
        assert self._binaries is not None, "choose() comes first"
        return self._binaries

    @property
    def version(self) -> str:
        return self.binaries.version

    @property
    def engine(self) -> str:
        return "postgresql"

    @property
    def binary(self) -> str:
        return str(self.binaries.folder / "postgres")

    # Getting ready to start

    def prepare(
        self, passwords: dict[str, str], *, reset: bool, children: Children, progress: Progress
    ) -> None:
        """Make the cluster if there is none; `reset` gives the roles of one `passwords`."""
        guard_folders(self.folder, self.data, self.account)
        if self.folder.parent == SHARED_FOLDER:
            progress(
                f"PostgreSQL's data is in {self.folder}: user {self.account and self.account.name} "
                f"cannot enter {self.home.path.parent}"
            )
            with disk_sentences(self.folder):  # whose data this is
                write_own(self.folder / "home", f"{self.home.path}\n", None)
        with disk_sentences(self.start_log):
            self.start_log.write_text("")  # what it says is about this start
        self._started_at = time.time()
        if self.data_version() is None:
            making = self.folder / "pg.tmp"
            try:
                self._initialise(making, passwords, children, progress)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        elif reset:
            self._clear_stale()
            progress("Setting new passwords in PostgreSQL: the file of the old ones is lost")
            self._sql(self.data, "postgres", setup.roles(passwords), children)
        self._clear_stale()
        self._write(self.data / "fwdb.conf", setup.settings(self.binaries.major))

    def _initialise(
        self, making: Path, passwords: dict[str, str], children: Children, progress: Progress
    ) -> None:
        """Make the cluster beside its place and move it there when it is complete."""
        if free_bytes(self.folder) < ROOM_BYTES:
            raise EmbeddedError(disk_full(self.folder))
        # What a start that was killed half-way has left: initdb outlives its starter.
        left = find(
            Kind(frozenset({"initdb", "postgres"}), frozenset({"-D"})), making, self.account
        )
        for pid, began in [*left, *at_work_in(making, self.account)]:
            end(pid, began, [])
        with disk_sentences(self.folder):
            if self.data.exists() and any(self.data.iterdir()):
                raise EmbeddedError(
                    f"'{self.data}' holds files and is no PostgreSQL data; move it away."
                )
            shutil.rmtree(making, ignore_errors=True)
        progress(f"Creating the PostgreSQL {self.version} cluster in {self.data}")
        private_folder(making, self.account)
        locales = ("C.UTF-8", "C")  # the second for systems that lack the first
        for locale in locales:
            result = children.run(
                [str(self.binaries.folder / "initdb"), *self._initdb_options(making, locale)],
                account=self.account,
                cwd=self.folder,
            )
            if result.returncode == 0:
                break
            if "locale" not in result.stderr or locale == locales[-1]:
                raise EmbeddedError(self._failed("initdb", result.stderr + result.stdout))
        self._write(making / "pg_hba.conf", setup.ACCESS)
        self._write(making / "fwdb.conf", setup.settings(self.binaries.major))
        with disk_sentences(making):
            conf = making / "postgresql.conf"
            text = read_own(conf, self.account).decode()
            self._write(conf, text + "\ninclude_if_exists = 'fwdb.conf'\n")
        self._sql(making, "postgres", setup.roles(passwords) + setup.CLUSTER, children)
        objects = setup.database_objects(self.binaries.major)
        self._sql(making, DATABASE, objects, children)
        with disk_sentences(self.folder):
            if self.data.exists():
                self.data.rmdir()
            making.rename(self.data)

    def _initdb_options(self, data: Path, locale: str) -> list[str]:
        options = ["-D", str(data), "-U", SUPERUSER, "-E", "UTF8", "--data-checksums"]
        # Nobody can log in before our own pg_hba.conf and the passwords are in place.
        options += ["--auth=reject", f"--locale={locale}"]
        if self.binaries.major >= 17:
            # Order and case by code point, the same on every system and in every version of libc.
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return options

    def _sql(self, data: Path, database: str, sql: str, children: Children) -> None:
        """Run `sql` on the stopped cluster, in single-user mode: no port is open meanwhile.

        The text, with passwords in it, goes through a pipe, and nothing of it into a log.
        """
        quiet = {
            "exit_on_error": "on",
            "logging_collector": "off",
            "log_destination": "stderr",
            "shared_preload_libraries": "",
            "log_min_duration_statement": "-1",
            "log_min_error_statement": "panic",
        }
        options = [part for name, value in quiet.items() for part in ("-c", f"{name}={value}")]
        result = children.run(
            [self.binary, "--single", "-D", str(data), "-j", *options, database],
            account=self.account,
            cwd=self.folder,
            text=sql,
        )
        if result.returncode or "ERROR:" in result.stderr:
            raise EmbeddedError(self._failed("its first set-up", result.stderr))

    def _failed(self, what: str, output: str) -> str:
        if "No space left on device" in output:
            return disk_full(self.folder)
        reason = telling_line(output.splitlines())
        return f"PostgreSQL {self.version} failed in {what}: {reason} (data in '{self.data}')."

    def _write(self, path: Path, text: str) -> None:
        """Put `text` into `path`, 0600, owned by the user the server runs under."""
        with disk_sentences(path):
            write_own(path, text, self.account)

    def _clear_stale(self) -> None:
        """Remove a postmaster.pid that no server stands behind.

        PostgreSQL itself gives up on an empty file and when the pid in it is alive, be it a
        zombie nobody reaps or a stranger that got the same number. Nothing is signalled here: as
        long as any process works in the data folder, the file stays.
        """
        file = self.data / "postmaster.pid"
        if not file.exists():
            return
        # Backends of a killed server notice its death and leave on their own.
        deadline = time.monotonic() + 10
        while workers := at_work_in(self.data, self.account):
            if find(self.kind, self.data, self.account) or time.monotonic() > deadline:
                raise EmbeddedError(
                    f"processes {', '.join(str(pid) for pid, _ in workers)} still work in "
                    f"'{self.data}'; end them and try again."
                )
            time.sleep(0.02)
        with disk_sentences(file):
            file.unlink(missing_ok=True)  # its folder is none that another could exchange

    def failed(self) -> str:
        """The sentence for a server that did not come up."""
        reason = last_line(*self.logs())
        if "No space left on device" in reason:
            return disk_full(self.folder)
        return f"PostgreSQL {self.version} did not start: {reason} (log '{self.start_log}')."

    # Running

    def plan(self, port: int) -> dict[str, Any]:
        """What the watcher needs to start the server."""
        return server_plan(
            name=self.name,
            command=[self.binary, "-D", str(self.data), "-p", str(port)],
            port=port,
            signals=self.signals,
            log=self.start_log,
            logs=[self.start_log, self.data / "log"],
            cwd=self.data,
            account=self.account,
        )

    @staticmethod
    def ping(port: int, seconds: float = 2) -> bool | None:
        """Whether the server takes logins: it answers the first packet with a password request.

        False while it starts, recovers or stops, and when nobody listens; None when it says
        nothing in `seconds`.
        """
        body = b"".join(
            part + b"\0" for part in (b"user", b"postgres", b"database", b"postgres", b"")
        )
        packet = struct.pack("!ii", 8 + len(body), 0x30000) + body
        try:
            with socket.create_connection((HOST, port), seconds) as link:
                link.sendall(packet)
                answer = link.recv(1024)
        except TimeoutError:
            return None
        except OSError:
            return False
        # R: authentication; E with 53300: all connections are taken, so it is well.
        return answer[:1] == b"R" or (answer[:1] == b"E" and b"C53300\0" in answer)

    def login(self, port: int, passwords: dict[str, str]) -> bool:
        """Whether the password of the superuser is right. Raises `EmbeddedError` otherwise."""
        import psycopg

        try:
            url = self._url(SUPERUSER, port, passwords, SUPERUSER)
            psycopg.connect(url, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                return False
            raise EmbeddedError(f"PostgreSQL refuses a login: {str(error).strip()}.") from error
        return True

    @classmethod
    def urls(cls, port: int, passwords: dict[str, str]) -> Urls:
        owner, app, report = (
            cls._url(user, port, passwords, DATABASE) for user in (OWNER, APP, REPORT)
        )
        return Urls(owner, app, report, cls._url(SUPERUSER, port, passwords, DATABASE))

    @staticmethod
    def _url(user: str, port: int, passwords: dict[str, str], database: str) -> str:
        return f"postgresql://{user}:{passwords[user]}@{HOST}:{port}/{database}"

    def logs(self) -> list[tuple[Path, Account | None]]:
        """Files with the reason of a failed start, and whose: the one that says most last."""
        written: list[tuple[Path, Account | None]] = []
        folder = self.data / "log"
        with contextlib.suppress(OSError):
            handle = open_own(folder, self.account)
            try:
                for name in os.listdir(handle):
                    changed_at = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mtime
                    if name.endswith(".json") and changed_at >= self._started_at:
                        written.append((folder / name, self.account))
            finally:
                os.close(handle)
        return [*written, (self.start_log, None)]
