"""Reports made for real: from the databases of this run, in kernels, into folders."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from support.urls import url_of
from test_reports import assert_self_contained

from fwdb import config, reports
from fwdb.database import Database
from fwdb.errors import ReportError
from fwdb.reports import notebook as notebooks
from fwdb.reports import run
from fwdb.stores import MongoStore, PostgresStore

pytestmark = pytest.mark.server  # kernels, at least

NOWHERE = "postgresql://nobody:s3cret-canary@127.0.0.1:1/none"
NO_MONGODB = "mongodb://nobody:s3cret-canary@127.0.0.1:1/none"


@pytest.fixture
def connected(db: Database, mongodb_database: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The seeded databases, named by the environment, as kernels find them."""
    url = url_of(db.postgres.engine)
    monkeypatch.setenv("FWDB_POSTGRES_URL", url)
    monkeypatch.setenv("FWDB_MONGODB_URL", mongodb_database)
    return db


def quick(**changes: object) -> config.Settings:
    """Settings under which a server that is down is noticed soon."""
    return config.settings().model_copy(update={"connect_timeout_seconds": 0.5, **changes})


def texts(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text(encoding="utf-8")
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def delete_items(db: Database, count: int, wait_until: Callable[..., None]) -> str:
    """Records so many deletes by one user; their id."""
    actor = db.users.find(role="admin")[0].id
    for _ in range(count):
        db.audit.log_delete("CatalogItem", uuid.uuid4(), {"name": "x"}, user_id=actor)
    # A window that ends now ends with the last full second.
    done = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) - done > timedelta(seconds=1.05))
    return str(actor)


def test_the_suite_leaves_every_artefact_and_no_secret(
    connected: Database,
    mongodb_database: str,
    tmp_path: Path,
    wait_until: Callable[..., None],
) -> None:
    """A folder for each and an index, told as they grow, without password or personal data."""
    delete_items(connected, 12, wait_until)
    out = tmp_path / 'a {b} \'ü "q"'
    told: list[run.Progress] = []

    runs = reports.suite(out=out, progress=told.append, since="2h")

    assert [r.name for r in runs] == list(reports.NAMES)
    assert sorted(p.name for p in out.iterdir()) == [
        *("audit_trail", "entity_history", "health", "index.html", "pool", "slow_queries"),
    ]
    for result in runs:
        found = texts(result.folder)
        assert {"report.html", "results.json", "executed.ipynb", "run.json"} <= set(found)
        assert (
            f'fwdb_report_last_run_success{{report="{result.name}"}} 1.0' in found["metrics.prom"]
        )
        content = json.loads(found["results.json"])
        assert {t["file"] for t in content["tables"]} == {f for f in found if f.endswith(".csv")}
        assert (content["verdict"], content["summary"]) == (result.verdict, result.summary)
        assert_self_contained(found["report.html"])
        assert "Traceback" not in found["executed.ipynb"]
    assert_self_contained((out / "index.html").read_text())
    doing = [(p.report, p.doing) for p in told]
    assert doing.index(("audit_trail", "save")) < doing.index(("pool", "open"))
    everything = "\n".join(text for f in [out] for text in texts(f).values())
    for url in (os.environ["FWDB_POSTGRES_URL"], mongodb_database):
        password = make_url(url).password
        assert url not in everything
        assert not password or str(password) not in everything
    assert "@fashionwallet.com" not in everything
    assert str(tmp_path) not in everything


def test_the_same_window_gives_the_same_bytes_by_every_way(
    connected: Database, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """Two runs, the session at hand, and plain papermill: all that is data is equal."""
    connected.designs.count()
    for kind in ("full", "light", "full"):
        connected.monitor.sample(kind)
    delete_items(connected, 12, wait_until)
    # The monitor takes an end of a moment ago for now, and reads the servers again.
    for table, column in (("monitoring.readings", "read_at"), ("audit.audit_logs", "created_at")):
        with connected.postgres.transaction() as c:
            c.execute(sa.text(f"UPDATE {table} SET {column} = {column} - interval '1 hour'"))
    until = (datetime.now(UTC) - timedelta(minutes=30)).replace(microsecond=0)
    given = {"since": "2026-01-01T00:00Z", "until": until.isoformat(), "top": 5}

    for way in ("one", "two"):
        reports.suite(out=tmp_path / way, **given)
    reports.open_report("audit_trail", db=connected, **given).save(tmp_path / "session")
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    papermill += [str(config.resource("notebooks") / "audit_trail.ipynb"), "/dev/null"]
    for name, value in given.items():
        papermill += ["-p", name, str(value)]
    subprocess.run(
        papermill,
        env=os.environ | {"FWDB_REPORT_DIR": str(tmp_path / "plain")},
        check=True,
        capture_output=True,
        timeout=120,
    )

    for name in reports.NAMES:
        one, two = (texts(tmp_path / way / name) for way in ("one", "two"))
        for changing in ("run.json", "metrics.prom"):
            assert one.pop(changing) != two.pop(changing)
        assert two == one
    assert '"verdict": "ok"' in texts(tmp_path / "one" / "pool")["results.json"]
    one = texts(tmp_path / "one" / "audit_trail")
    for of_a_run in ("run.json", "executed.ipynb", "metrics.prom"):
        del one[of_a_run]
    assert texts(tmp_path / "session" / "audit_trail") == one
    assert texts(tmp_path / "plain" / "audit_trail") == one


def test_a_burst_of_deletes_is_named_with_its_number(
    connected: Database, wait_until: Callable[..., None]
) -> None:
    """The injected fault is what the verdict says, and who did it."""
    connected.seeder.seed_scale(5)  # a past, without which nothing is unusual
    actor = delete_items(connected, 23, wait_until)

    report = reports.open_report("audit_trail", db=connected, since="1h")

    found = {c.id: c for c in report.result.checks}["audit_trail.burst_of_deletes"]
    assert report.result.verdict == "critical"
    assert (found.status, found.value) == ("critical", 23.0)
    assert "23 CatalogItem deletes in the hour from" in report.result.summary
    assert actor[:8] in report.result.summary
    assert report.table("bursts").frame["top_user_id"].tolist() == [actor]
    assert report.table("recent").frame.columns.tolist() == [
        *("created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"),
    ]


def test_a_filter_narrows_the_report(connected: Database, wait_until: Callable[..., None]) -> None:
    """`action=READ` counts reads and nothing else."""
    delete_items(connected, 12, wait_until)

    report = reports.open_report("audit_trail", db=connected, since="1h", action="READ")

    events = next(c for c in report.result.checks if c.id == "audit_trail.events")
    assert events.status == "no_data"
    assert "No data in this window" in [
        t.get_text() for t in report.chart("audit_trail").figure.texts
    ]


def test_a_full_pool_is_named(connected: Database, mongodb_database: str) -> None:
    """One connection, held: 100 % of the capacity, critical, with the process in the table."""
    url = os.environ["FWDB_POSTGRES_URL"]
    small = quick(pool_size=1, pool_max_overflow=0)
    with Database(
        PostgresStore(url, application_name="crowded", settings=small),
        MongoStore(mongodb_database, settings=small),
        settings=small,
    ) as crowded:
        crowded.designs.count()  # a pool that was never used is not sampled
        with crowded.postgres.connection():
            crowded.monitor.sample("light")
        report = reports.open_report("pool", db=crowded, since="1h", until="now")

    checks = {(c.id, c.database): c for c in report.result.checks}
    assert report.result.verdict == "critical"
    assert checks["pool.utilisation", "postgres"].value == 100.0
    assert checks["pool.utilisation", "postgres"].action
    assert checks["pool.utilisation", "mongodb"].status == "ok"
    pools = report.table("pools").frame
    assert pools["process"].iloc[0].startswith("crowded")
    assert report.chart("pool").figure is report.result.charts["pool"]


def test_a_pool_that_nobody_sampled_is_no_data_and_says_what_to_do(connected: Database) -> None:
    """Never 0 % in place of 'not known'."""
    result = reports.open_report("pool", db=connected).result

    assert result.verdict == "no_data"
    assert result.kpis[0].value is None
    assert result.kpis[0].status == "no_data"
    assert any("fwdb monitor" in c.action for c in result.checks)


@pytest.mark.parametrize("name", ["pool", "slow_queries"])
@pytest.mark.parametrize("down", ["postgres", "mongodb"])
def test_the_other_half_of_a_report_is_still_made(
    connected: Database, mongodb_database: str, name: str, down: str
) -> None:
    """With one database down the report says what is missing, and the rest is there."""
    settings = quick()
    postgres = NOWHERE if down == "postgres" else os.environ["FWDB_POSTGRES_URL"]
    mongodb = NO_MONGODB if down == "mongodb" else mongodb_database
    with Database(
        PostgresStore(postgres, settings=settings),
        MongoStore(mongodb, settings=settings),
        settings=settings,
    ) as db:
        report = reports.open_report(name, db=db, since="1h")

    reach = {c.database: c for c in report.result.checks if c.id == f"{name}.reachable"}
    other = {"postgres": "mongodb", "mongodb": "postgres"}[down]
    assert reach[down].status == "not_available"
    assert reach[other].status == "ok"
    assert "is missing from this report" in report.result.summary
    assert report.result.verdict in ("warning", "no_data")
    assert "canary" not in report.result.json()


def test_without_any_server_a_report_is_no_data_and_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run itself went well: it says that there is nothing to say."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", NOWHERE)
    monkeypatch.setenv("FWDB_MONGODB_URL", NO_MONGODB)
    monkeypatch.setenv("FWDB_CONNECT_TIMEOUT_SECONDS", "0.5")

    runs = reports.suite(["pool", "audit_trail"], out=tmp_path)

    assert [r.verdict for r in runs] == ["no_data", "no_data"]
    assert reports.exit_code(runs) == 4
    assert "canary" not in "".join(texts(tmp_path).values())


def notebook(folder: Path, *cells: str) -> Path:
    """A notebook with these code cells, the first of them tagged as parameters."""
    made = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{place}",
                "metadata": {"tags": ["parameters"]} if place == 0 else {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for place, source in enumerate(cells)
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = folder / "odd {name} 'é.ipynb"
    path.write_text(json.dumps(made))
    return path


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("1 / 0", "failed in cell 'cell-1': ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "cell 'cell-1': its kernel died"),
        ("import threading; threading.Event().wait()", "'cell-1' took longer than 2 s"),
    ],
)
def test_a_run_that_fails_says_where_and_leaves_its_notebook(
    tmp_path: Path, cell: str, words: str
) -> None:
    """An error, a killed kernel and a cell that never ends are one sentence each."""
    executed = tmp_path / "executed.ipynb"

    with pytest.raises(ReportError, match=re.escape(words)):
        notebooks.execute(
            notebook(tmp_path, "x: int = 1", cell),
            executed,
            {"x": 2},
            space=tmp_path,
            cell_seconds=2,
        )

    assert "injected-parameters" in executed.read_text()


@pytest.mark.parametrize("room", [0, 2_000], ids=["nothing", "a part of the notebook"])
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path, room: int) -> None:
    """Nothing, or only the beginning of a file, can be written: no traceback, nothing left."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "from fwdb.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "pool"],
        cwd=tmp_path,
        env={**os.environ, "FWDB_POSTGRES_URL": NOWHERE, "FWDB_MONGODB_URL": NO_MONGODB},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.ipynb"))


def test_a_kernel_is_this_python_and_says_nothing_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The interpreter of the caller, no start-up files of the user, no remark about transport."""
    code = "import sys, os; print(sys.executable, os.environ['IPYTHONDIR'], sep='\\n')"
    executed = tmp_path / "executed.ipynb"

    notebooks.execute(
        notebook(tmp_path, "x: int = 1", code), executed, {}, space=tmp_path, cell_seconds=60
    )

    output = json.loads(executed.read_text())["cells"][-1]["outputs"][0]["text"]
    assert "".join(output).splitlines() == [sys.executable, str(tmp_path / ".ipython")]
    assert capfd.readouterr() == ("", "")


def test_a_failed_run_keeps_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The good one stays; the index shows the failure with its notebook."""
    (tmp_path / "out" / "pool").mkdir(parents=True)
    (tmp_path / "out" / "pool" / "report.html").write_text("earlier")
    broken = notebook(tmp_path, "since: str = '24h'", "raise RuntimeError('no such luck')")
    monkeypatch.setattr(notebooks, "path", lambda name: broken)

    with pytest.raises(ReportError, match="no such luck"):
        run.report("pool", out=tmp_path / "out")

    assert (tmp_path / "out" / "pool" / "report.html").read_text() == "earlier"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("index.html", "pool", "pool.failed"),
    ]
    assert "no such luck" in (tmp_path / "out" / "index.html").read_text()
    assert (tmp_path / "out" / "pool.failed" / "executed.ipynb").exists()


def test_ctrl_c_leaves_no_half_report_and_no_kernel(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """The whole command is interrupted in the middle of a cell."""
    hanging = notebook(tmp_path, "x: int = 1", "import threading; threading.Event().wait()")
    code = (
        "import sys, pathlib; from fwdb.reports import notebook, run\n"
        "notebook.path = lambda name: pathlib.Path(sys.argv[1])\n"
        "run.report('pool', out=sys.argv[2], progress=lambda p: print(p.doing, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(hanging), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert [process.stdout.readline().strip() for _ in range(2)] == ["cell-0", "cell-1"]
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)

    assert not (tmp_path / "out").exists()
    wait_until(lambda: not group_lives(process.pid), what="the kernel to end")


def group_lives(group: int) -> bool:
    """Whether any process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
