"""The wheel, installed into an empty environment, makes a report: nothing was left out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from support import ROOT
from support.urls import url_of

from fwdb.database import Database


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT))
    return next(folder.glob("fwdb-*.whl"))


def test_the_wheel_carries_what_is_not_python(wheel: Path):
    """Queries, notebooks, migrations and templates are in it, and no test is."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "fwdb/py.typed",
        *(
            f"fwdb/_{path.relative_to(ROOT)}"
            for folder in ("notebooks", "migrations")
            for path in (ROOT / folder).rglob("*")
            if path.suffix in {".ipynb", ".py", ".json", ".mako"}
        ),
        *(
            str(path.relative_to(ROOT))
            for path in (ROOT / "fwdb").rglob("*")
            if path.suffix in {".sql", ".conf", ".toml", ".json", ".yml", ".j2", ".css"}
        ),
    }

    assert wanted <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_an_installed_wheel_makes_a_report(wheel: Path, tmp_path: Path, db: Database):
    """Without the tree beside it, and without an extra: both servers are named by URL."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", "--no-compile", str(wheel))
    urls = {
        "FWDB_POSTGRES_URL": url_of(db.postgres),
        "FWDB_MONGODB_URL": url_of(db.mongodb),
    }
    fwdb = str(environment / "bin" / "fwdb")
    user = db.users.first(role="designer")
    assert user is not None
    db.audit.log_read("User", user.id, user_id=user.id)

    _run(fwdb, "migrate", "--check", cwd=tmp_path, env=urls)
    _run(fwdb, "report", "audit_trail", "-p", "since=7d", cwd=tmp_path, env=urls)

    results = json.loads((tmp_path / "reports/audit_trail/results.json").read_text())
    assert results["report"] == "audit_trail"
    assert (tmp_path / "reports/audit_trail/report.html").stat().st_size > 5_000


def _run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
