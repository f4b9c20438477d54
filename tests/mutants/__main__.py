"""python -m tests.mutants [NAME …]: break one behaviour at a time and see that tests notice.

A NAME is that of a mutant, a part of one, or a folder of the package (``audit``); without any, all
of them are tried. First their tests run on the code as it is, where they must pass. Exits with 1
when a mutant survives, or does not apply: its snippet is not, or not once, in its file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

ROOT = Path(__file__).parents[2]
CATALOGUE = Path(__file__).with_name("mutants.toml")
# What tests read or run; the copy is of its own, so that work in the tree goes on.
COPIED = ("fwdb", "tests", "notebooks", "migrations", "docs", "pyproject.toml", "README.md")
SECONDS = 180  # a mutant that makes its tests hang is noticed too


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One behaviour, what `says` in a sentence, and the change of `file` that breaks it."""

    name: str
    says: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The part of the package that it is in."""
        parts = Path(self.file).parts
        return parts[1] if parts[0] == "fwdb" and len(parts) > 2 else "root"


def mutants() -> list[Mutant]:
    """All of the catalogue, in its order."""
    found = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return [
        Mutant(name=name, **{**entry, "tests": tuple(entry["tests"])})
        for name, entry in found.items()
    ]


@contextmanager
def servers(folder: Path) -> Iterator[Mapping[str, str]]:
    """The environment for pytest: one pair of servers for all of its runs."""
    given = ("FWDB_TEST_POSTGRES_URL", "FWDB_TEST_MONGODB_URL")
    if all(name in os.environ for name in given):
        yield {}
        return
    from fwdb import embedded

    home = folder / "servers"
    running = embedded.up(home, owner_pid=os.getpid(), idle_minutes=0)
    assert running.postgres
    assert running.mongodb
    with psycopg.connect(running.postgres.superuser, autocommit=True) as admin:
        for setting in ("fsync", "full_page_writes"):
            admin.execute(f"ALTER SYSTEM SET {setting} = off")  # they are thrown away
        admin.execute("SELECT pg_reload_conf()")
    try:
        yield dict(zip(given, (running.postgres.superuser, running.mongodb.owner), strict=True))
    finally:
        embedded.remove(home)


def pytest(
    tree: Path,
    tests: tuple[str, ...],
    more: Mapping[str, str],
    *options: str,
    seconds: float = SECONDS,
) -> str:
    """What pytest printed; empty when all passed. Raises when it could not run the tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    # No bytecode: two versions of a file within a second would look alike to it.
    environment = {**os.environ, **more, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, *options, *tests],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    return done.stdout if done.returncode else ""


def outcome(mutant: Mutant, tree: Path, more: Mapping[str, str]) -> tuple[str, str]:
    """``killed``, ``survived``, ``does not apply`` or ``broken``, and by what."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mutant.before) != 1:
        return "does not apply", f"{text.count(mutant.before)} such snippets in {mutant.file}"
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    try:
        printed = pytest(tree, mutant.tests, more, "-x", "--tb=line", "-rfE")
    except subprocess.TimeoutExpired:
        return "killed", f"no end within {SECONDS} s"
    except RuntimeError as error:
        return "broken", str(error)
    finally:
        path.write_text(text, encoding="utf-8")
    lines = [line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return ("killed", " ".join(lines[:1])) if printed else ("survived", ", ".join(mutant.tests))


def main() -> int:
    """Try the mutants that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    parser.add_argument("--unmutated", action="store_true", help="only run their tests as they are")
    asked = parser.parse_args()
    chosen = [
        mutant
        for mutant in mutants()
        if not asked.names or any(n == mutant.folder or n in mutant.name for n in asked.names)
    ]
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.folder:<13}{mutant.name:<34}{mutant.says}")
        return 0
    with tempfile.TemporaryDirectory(prefix="fwdb-mutants-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # the servers may run as another user
        tree = folder / "tree"
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
                shutil.copytree(source, tree / name, ignore=ignored)
            else:
                tree.mkdir(exist_ok=True)
                shutil.copy2(source, tree / name)
        with servers(folder) as more:
            tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
            if printed := pytest(
                tree, tests, more, "-rfE", "--tb=short", seconds=SECONDS * len(tests)
            ):
                print(f"{printed}\nThese tests fail on the code as it is.")
                return 1
            if asked.unmutated:
                return 0
            bad = 0
            for mutant in chosen:
                begun = time.monotonic()
                how, why = outcome(mutant, tree, more)
                bad += how != "killed"
                seconds = time.monotonic() - begun
                print(f"{how:<15}{mutant.name:<34}{seconds:5.1f} s  {why}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants are killed.")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
