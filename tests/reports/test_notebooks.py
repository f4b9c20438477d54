"""The notebooks as they are committed: small, thin, without outputs, and running."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_reports_run import connected  # noqa: F401 a fixture

from fwdb import config
from fwdb.reports import NAMES

FOLDER = config.resource("notebooks")
ALL = sorted(p.stem for p in FOLDER.glob("*.ipynb"))
SQL = re.compile(r"(?i)\b(select .* from|insert into|update .* set|delete from)\b")


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return content


def code(name: str) -> list[str]:
    return ["".join(c["source"]) for c in load(name)["cells"] if c["cell_type"] == "code"]


def test_there_are_the_reports_and_a_start() -> None:
    """One notebook for each report, and one for the newcomer."""
    assert sorted([*NAMES, "start"]) == ALL


@pytest.mark.parametrize("name", ALL)
def test_a_notebook_is_thin(name: str) -> None:
    """At most twelve cells, one import, no SQL, no loop, no condition, no function."""
    trees = [ast.parse(source) for source in code(name)]
    imports = [ast.unparse(n) for t in trees for n in ast.walk(t) if isinstance(n, ast.Import)]
    kinds = {type(n) for t in trees for n in ast.walk(t)}

    assert len(load(name)["cells"]) <= 12
    assert imports == ["import fwdb"]
    assert not kinds & {ast.ImportFrom, ast.For, ast.While, ast.If, ast.FunctionDef, ast.ClassDef}
    assert not kinds & {ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp}
    assert not SQL.search("\n".join(code(name)))


@pytest.mark.parametrize("name", ALL)
def test_a_notebook_is_committed_clean(name: str) -> None:
    """No output, no count, no stray metadata, ids that are names: a diff shows what changed."""
    notebook = load(name)
    cells = notebook["cells"]

    assert all(c.get("outputs", []) == [] and c.get("execution_count") is None for c in cells)
    assert all(set(c["metadata"]) <= {"tags"} for c in cells)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", c["id"]) for c in cells)
    assert len({c["id"] for c in cells}) == len(cells)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_report_notebook_has_its_parts_in_order(name: str) -> None:
    """Title, parameters, verdict first, figures, charts, tables, how to read, where from, save."""
    cells = load(name)["cells"]
    kinds = [re.sub(r"(chart|table)-.*", r"\1", c["id"]) for c in cells]

    assert kinds == [
        *("title", "parameters", "open", "verdict", "kpis", "chart", "chart"),
        *("table", "table", "how-to-read", "provenance", "save"),
    ]
    assert [c["id"] for c in cells if "parameters" in c["metadata"].get("tags", [])] == [
        "parameters"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_reaches_the_report(name: str) -> None:
    """A parameter that is declared and not passed on would be ignored in silence."""
    from fwdb.reports import known_parameters

    call = next(s for s in code(name) if "open_report" in s)
    passed = {
        k.arg for n in ast.walk(ast.parse(call)) if isinstance(n, ast.Call) for k in n.keywords
    }

    assert passed == set(known_parameters(name))


@pytest.mark.usefixtures("connected")
def test_the_notebooks_run_cell_by_cell(tmp_path: Path) -> None:
    """nbval executes every cell of every notebook; an error in one fails."""
    # A pytest of its own: nbval compares streams, and coverage would stall its kernels.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--nbval-lax"]
    command += ["--nbval-current-env", "-c", os.devnull, "--rootdir", str(FOLDER), str(FOLDER)]
    done = subprocess.run(
        command,
        env=os.environ | {"FWDB_REPORT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )

    cells = sum(len(code(name)) for name in ALL)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{cells} passed" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == sorted(NAMES)
