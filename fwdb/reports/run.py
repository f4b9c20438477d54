"""Running the notebooks: one kernel each, and a folder of artefacts that appears whole.

Exit codes: 0 fine, 1 a run failed, 2 bad parameters, 3 a threshold was crossed, 4 no data.
"""

from __future__ import annotations

import json
import platform
import shutil
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
from fwdb.reports import check, files, notebook, parameters, render
from fwdb.reports.document import NAMES, default_folder, known_parameters

FailOn = Literal["never", "warning", "critical"]
# A cell asks a handful of questions whose statements end after 30 s each.
CELL_SECONDS = 300


@dataclass(frozen=True)
class Progress:
    """Where a run is: cell `done` of `total`, about to do `doing`."""

    report: str
    done: int
    total: int
    doing: str


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
    progress: Callable[[Progress], None] | None = None,
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
    values = parameters.accept(name, known_parameters(name), given)
    check.declared()  # refuses a wrong FWDB_LIMITS
    chosen = {key: values[key] for key in values if key in given}
    parent = Path(out) if out is not None else default_folder()
    result = _run(name, parent, chosen, progress, cell_seconds)
    with files.writing(parent):
        _write_index(parent)
    return result


@checks_arguments
def suite(
    names: Sequence[str] = NAMES,
    *,
    out: File | None = None,
    progress: Callable[[Progress], None] | None = None,
    failed: Callable[[str, FwdbError], None] | None = None,
    cell_seconds: Seconds = CELL_SECONDS,
    **given: Any,
) -> list[RunResult]:
    """Runs several reports, one after the other; each takes the parameters that it knows.

    A parameter that none of them knows is refused, before anything is written. When a run fails
    the others are still made: `failed` is told, or without it the first error is raised at the
    end. A setting or URL that cannot be used (`ConfigError`) ends the whole.
    """
    for name in names:
        notebook.path(name)
    everything = {key: p for name in names for key, p in known_parameters(name).items()}
    for key in given:
        if key not in everything:
            raise UnknownName("parameter", key, everything, where=f"report {', '.join(names)}")
    chosen = {n: {k: v for k, v in given.items() if k in known_parameters(n)} for n in names}
    for name in names:
        parameters.accept(name, known_parameters(name), chosen[name])
    results: list[RunResult] = []
    errors: list[FwdbError] = []
    for name in dict.fromkeys(names):
        try:
            results.append(
                report(name, out=out, progress=progress, cell_seconds=cell_seconds, **chosen[name])
            )
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


def error_exit_code(error: BaseException) -> int:
    """The exit code of a run that ended with this error."""
    if isinstance(error, ParameterError | ConfigError):
        return 2
    return 4 if isinstance(error, StoreUnavailable) else 1


def _run(
    name: str,
    parent: Path,
    chosen: Mapping[str, parameters.Value],
    progress: Callable[[Progress], None] | None,
    cell_seconds: float,
) -> RunResult:
    started, clock = datetime.now(UTC), time.monotonic()
    with files.workspace(parent) as space:
        executed = space / "executed.ipynb"
        problem: FwdbError | None = None
        try:
            notebook.execute(
                notebook.path(name),
                executed,
                chosen,
                space=space,
                cell_seconds=cell_seconds,
                on_cell=None if progress is None else _told(name, progress),
            )
        except (ParameterError, ConfigError):
            raise  # nothing was run, so there is nothing to keep
        except FwdbError as error:
            problem = error
        seconds = round(time.monotonic() - clock, 3)
        built = space / name
        if problem is None and not (built / "results.json").is_file():
            problem = ReportError(f"report '{name}' ended without saving; run report.save() in it.")
        if problem is not None:
            failed = space / "failed"
            failed.mkdir()
            if executed.exists():
                shutil.move(executed, failed / "executed.ipynb")
            _write_run(failed, name, started, seconds, error=str(problem))
            _tell(name, parent, failed, seconds, succeeded=False)
            files.place(failed, parent / f"{name}.failed")
            _write_index(parent)
            raise problem
        with files.writing(parent):
            shutil.move(executed, built / "executed.ipynb")
        _write_run(built, name, started, seconds)
        _tell(name, parent, built, seconds, succeeded=True)
        results = json.loads((built / "results.json").read_text(encoding="utf-8"))
        files.place(built, parent / name)
        shutil.rmtree(parent / f"{name}.failed", ignore_errors=True)
    return RunResult(name, results["verdict"], results["summary"], parent / name, seconds, results)


def _told(name: str, progress: Callable[[Progress], None]) -> Callable[[int, int, str], None]:
    def tell(done: int, total: int, doing: str) -> None:
        progress(Progress(name, done, total, doing))

    return tell


def _write_run(
    folder: Path, name: str, started: datetime, seconds: float, *, error: str = ""
) -> None:
    """All that differs from run to run on the same data; beside it only `metrics.prom` does."""
    packages = ("fwdb", "pandas", "matplotlib", "sqlalchemy", "psycopg", "pymongo", "papermill")
    record = {
        "schema": 1,
        "report": name,
        "started_at": parameters.iso(started.replace(microsecond=0)),
        "finished_at": parameters.iso(datetime.now(UTC).replace(microsecond=0)),
        "seconds": seconds,
        "error": error,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: metadata.version(package) for package in packages},
    }
    files.write(folder / "run.json", json.dumps(record, indent=2) + "\n")


def _tell(name: str, parent: Path, folder: Path, seconds: float, *, succeeded: bool) -> None:
    """`metrics.prom` into the new `folder`, and to the Pushgateway if there is one.

    The report of an earlier run stays when this one failed; its file says so too, so that there
    is one place to look at.
    """
    now = time.time()
    earlier = parent / name
    run = batch.ReportRun(
        name, succeeded, now, seconds, now if succeeded else batch.last_success(earlier)
    )
    run.write(folder)
    if not succeeded and earlier.is_dir():
        run.write(earlier)
    if gateway := settings().pushgateway:
        run.push(gateway.get_secret_value())


def _write_index(parent: Path) -> None:
    """`index.html` over everything in the folder, put into place by one rename."""
    with files.writing(parent):
        draft = parent / f".index-{time.monotonic_ns()}.html"
        files.write(draft, render.index(parent))
        draft.replace(parent / "index.html")
