"""Running the notebooks: one kernel each, and a folder of artefacts that appears whole.

Exit codes: 0 fine, 1 a run failed, 2 bad parameters, 3 a threshold was crossed, 4 no data.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from fwdb.arguments import File, Seconds, checks_arguments
from fwdb.config import settings
from fwdb.errors import (
    ConfigError,
    FwdbError,
    ParameterError,
    ReportError,
    StoreUnavailable,
    UnknownName,
)
from fwdb.metrics import batch
from fwdb.reports import catalogue, files, parameters
from fwdb.reports.document import templates

FailOn = Literal["never", "warning", "critical"]
# A cell asks a handful of questions whose statements end after 30 s each.
CELL_SECONDS = 300
# Slow machines under load need more than papermill's 60 s to bring a kernel up.
START_SECONDS = 120
# Errors of the notebook that the caller of a report tells apart; any other is a failed run.
_TOLD_APART: dict[str, type[FwdbError]] = {
    "AuthenticationFailed": StoreUnavailable,
    "ConfigError": ConfigError,
    "ParameterError": ParameterError,
    "StoreUnavailable": StoreUnavailable,
    "UnknownName": ParameterError,
}
_PACKAGES = ("fwdb", "pandas", "matplotlib", "sqlalchemy", "psycopg", "pymongo", "papermill")


@dataclass(frozen=True)
class Progress:
    """Where a run is: cell `done` of `total`, about to do `doing`."""

    report: str
    done: int
    total: int
    doing: str


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class RunResult:
    """What one run found and where it lies. `results` is the content of `results.json`."""

    name: str
    verdict: str
    summary: str
    folder: Path
    seconds: float
    results: Mapping[str, Any]

    @property
    def page(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"


@checks_arguments
def report(
    name: str,
    *,
    out: File | None = None,
    progress: Tell | None = None,
    cell_seconds: Seconds = CELL_SECONDS,
    **given: Any,
) -> RunResult:
    """Runs the report `name` in a kernel of its own, into the folder `<out>/<name>`.

    `out` is FWDB_REPORT_DIR or `reports` unless given; `given` are parameters of the report,
    typed or as text. `progress` is called before each cell. No cell may take longer than
    `cell_seconds`. The folder is replaced as a whole when the run is complete; a run that fails
    leaves the earlier one and puts its notebook into `<out>/<name>.failed`.
    Raises `UnknownName`, `ParameterError` and `ConfigError` with nothing written, and
    `ReportError` for a run that did not end well.
    """
    values = catalogue.accept(name, given).values
    return _run(name, out, {key: values[key] for key in given}, progress, cell_seconds)


@checks_arguments
def suite(
    names: Sequence[str] = catalogue.names(),
    *,
    out: File | None = None,
    progress: Tell | None = None,
    failed: Callable[[str, FwdbError], None] | None = None,
    cell_seconds: Seconds = CELL_SECONDS,
    **given: Any,
) -> list[RunResult]:
    """Runs several reports, one after the other; each takes the parameters that it knows.

    A parameter that none of them knows is refused, before anything is written. When a run fails
    the others are still made: `failed` is told, or without it the first error is raised at the
    end. A setting or URL that cannot be used (`ConfigError`) ends the whole.
    """
    names = list(dict.fromkeys(names))
    known = {name: catalogue.known_parameters(name) for name in names}
    for key in given:
        if not any(key in mine for mine in known.values()):
            everything = {key for mine in known.values() for key in mine}
            raise UnknownName("parameter", key, everything, where=f"report {', '.join(names)}")
    chosen = {name: {key: given[key] for key in given if key in known[name]} for name in names}
    checked = {name: catalogue.accept(name, chosen[name]).values for name in names}
    results: list[RunResult] = []
    errors: list[FwdbError] = []
    for name in names:
        values = {key: checked[name][key] for key in chosen[name]}
        try:
            results.append(_run(name, out, values, progress, cell_seconds))
        except ConfigError:
            raise  # the next one would read the same setting
        except FwdbError as error:
            errors.append(error)
            if failed is not None:
                failed(name, error)
    if errors and failed is None:
        raise errors[0]
    return results


@checks_arguments
def exit_code(results: Iterable[RunResult], *, fail_on: FailOn = "never", failures: int = 0) -> int:
    """The exit code of finished runs, the gravest first: failed, threshold crossed, no data."""
    verdicts = {result.verdict for result in results}
    if failures:
        return 1
    crossed = {"never": set(), "warning": {"warning", "critical"}, "critical": {"critical"}}
    if verdicts & crossed[fail_on]:
        return 3
    return 4 if "no_data" in verdicts else 0


def _run(
    name: str,
    out: File | None,
    chosen: Mapping[str, parameters.Value],
    progress: Tell | None,
    cell_seconds: float,
) -> RunResult:
    catalogue.declared()  # refuses a wrong FWDB_LIMITS
    parent = Path(out) if out is not None else files.default_folder()
    started, clock, problem = datetime.now(UTC), time.monotonic(), None
    with files.workspace(parent) as space:
        executed, built, target = space / "executed.ipynb", space / name, parent / name
        try:
            execute(catalogue.path(name), executed, chosen, space, cell_seconds, progress)
            if not (built / "results.json").is_file():
                text = f"report '{name}' ended without saving; run report.save() in it."
                raise ReportError(text)
        except (ParameterError, ConfigError):
            raise  # nothing was run, so there is nothing to keep
        except FwdbError as error:
            problem, built = error, space / "failed"
        now, seconds = time.time(), round(time.monotonic() - clock, 3)
        last = batch.last_success(target) if problem else now
        run = batch.ReportRun(name, not problem, now, seconds, last)
        with files.writing(parent):
            built.mkdir(exist_ok=True)
            if executed.exists():
                shutil.move(executed, built / "executed.ipynb")
        _describe(built, run, started, str(problem or ""))
        if problem and target.is_dir():
            run.write(target)  # the earlier report stays; there is one place to look at
        failed, found = parent / f"{name}.failed", _read(built / "results.json")
        files.place(built, failed if problem else target)
        if not problem:
            shutil.rmtree(failed, ignore_errors=True)
        with files.writing(parent):
            files.write(space / "index.html", index(parent))
            (space / "index.html").replace(parent / "index.html")
    if problem:
        raise problem
    return RunResult(name, found["verdict"], found["summary"], target, seconds, found)


def _describe(folder: Path, run: batch.ReportRun, started: datetime, error: str) -> None:
    """All that differs from run to run on the same data; beside it only `metrics.prom` does."""
    record = {
        "schema": 1,
        "report": run.report,
        "started_at": parameters.iso(started.replace(microsecond=0)),
        "finished_at": parameters.iso(datetime.now(UTC).replace(microsecond=0)),
        "seconds": run.seconds,
        "error": error,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: metadata.version(package) for package in _PACKAGES},
    }
    files.write(folder / "run.json", json.dumps(record, indent=2) + "\n")
    run.write(folder)
    if gateway := settings().pushgateway:
        run.push(gateway.get_secret_value())


def index(folder: Path) -> str:
    """The page over all reports in `folder`, the worst verdict first."""
    order, found = ["failed", "critical", "warning", "no_data", "ok"], []
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        run, results = _read(place / "run.json"), _read(place / "results.json")
        entry = {"name": place.name, "run_at": run.get("finished_at", ""), "since": ""}
        if results and results.get("schema") == 1 and (place / "report.html").is_file():
            entry |= results["window"] | {n: results[n] for n in ("verdict", "summary")}
            entry |= {"page": f"{place.name}/report.html", "title": place.name}
        elif run.get("error"):
            entry |= {"verdict": "failed", "summary": run["error"]}
            entry |= {"page": f"{place.name}/executed.ipynb", "title": run.get("report", "")}
        else:
            continue
        known = entry["title"] in catalogue.names()
        entry["title"] = catalogue.title(entry["title"]) if known else place.name
        found.append(entry)
    found.sort(key=lambda entry: (order.index(entry["verdict"]), entry["name"]))
    return templates().get_template("index.html.j2").render(entries=found)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none: the folder may hold other people's files."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def execute(
    notebook: Path,
    executed: Path,
    given: Mapping[str, parameters.Value],
    space: Path,
    cell_seconds: float,
    progress: Tell | None = None,
) -> None:
    """Runs `notebook` with the parameters `given`; the run notebook is left at `executed`.

    The kernel gets FWDB_REPORT_DIR=`space`, where its last cell saves. `progress` is called
    before each code cell. Raises `ReportError` that names the cell and the error in it, and as
    they are the errors that say that the caller, or a server, has to be put right.
    """
    # With JupyterLab installed, importing nbformat compiles grammars for a URI check that no
    # notebook needs: about a second of every run. The import is optional to its only user.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    total = sum(cell["cell_type"] == "code" for cell in cells)
    name, seen = notebook.stem, ["start"]

    def told(cell: Any, cell_index: int) -> None:
        seen.append(str(cell.get("id", cell_index)))
        if progress is not None:
            progress(Progress(name, min(len(seen) - 2, total), total, seen[-1]))

    try:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(executed),
            parameters=dict(given),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=START_SECONDS,
            execution_timeout=cell_seconds,
            shutdown_kernel="immediate",
            kernel_manager_class=_manager(space),
            on_cell_execute=told,
        )
    except PapermillExecutionError as error:
        if error.ename in _TOLD_APART:
            raise _TOLD_APART[error.ename](error.evalue) from error
        text = f"report '{name}' failed in cell '{seen[-1]}': {error.ename}: {error.evalue}"
        raise ReportError(text) from error
    except CellTimeoutError as error:
        text = f"report '{name}' was stopped: cell '{seen[-1]}' took longer than {cell_seconds:g} "
        text += "s. Ask for a shorter window, or find out what holds the database up."
        raise ReportError(text) from error
    except DeadKernelError as error:
        text = f"report '{name}' failed in cell '{seen[-1]}': its kernel died, perhaps for want of "
        text += "memory. Ask for a shorter window, or run it where there is more."
        raise ReportError(text) from error
    except (RuntimeError, OSError) as error:
        raise ReportError(f"report '{name}' could not be run: {error}") from error
    finally:
        with files.writing(executed.parent):
            _clean(executed)


def _literal(path: Path) -> str:
    """A path as papermill takes it: it would format anything in braces."""
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")


def _manager(space: Path) -> type:
    """A kernel of this very Python, talking encrypted, with a home of its own.

    The kernel named python3 could be anybody's: a user's own kernelspec comes first. Start-up
    files in the user's IPython profile would run before the report does.
    """
    import zmq
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    environment = os.environ | {
        "FWDB_REPORT_DIR": str(space.absolute()),
        "IPYTHONDIR": str(space.absolute() / ".ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }

    class Manager(AsyncKernelManager):  # type: ignore[misc,unused-ignore]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            # What it logs with a traceback, a full disk for one, it raises as well.
            self.log = logging.getLogger("fwdb.kernel")
            self.log.disabled = True
            # Other users of this machine must not read along; a pyzmq without it is rare.
            self.transport_encryption = "auto" if zmq.has("curve") else "disabled"
            self.connection_file = str(space.absolute() / "kernel.json")

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            told = {"supported_encryption": ["curve"]}
            return KernelSpec(argv=command, language="python", metadata=told)

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**options | {"env": environment})

    return Manager


def _clean(executed: Path) -> None:
    """Takes out of a run notebook what differs from run to run: times, paths, a random id."""
    try:
        notebook = json.loads(executed.read_text(encoding="utf-8"))
    except FileNotFoundError:  # nothing was run
        return
    except ValueError:  # cut short by a full disk: there is nothing to keep
        executed.unlink()
        return
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    executed.write_text(text + "\n", encoding="utf-8")
