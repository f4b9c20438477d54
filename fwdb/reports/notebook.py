"""The notebooks: which reports there are, what their readers should know, and running one.

One runs in a kernel by papermill, set up so that nothing of this machine shows through.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fwdb import config
from fwdb.errors import (
    ConfigError,
    FwdbError,
    ParameterError,
    ReportError,
    StoreUnavailable,
    UnknownName,
)
from fwdb.reports import files
from fwdb.reports.parameters import Value

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

# Of "how to read this": a term with its text, and in it a figure that a limit or parameter has.
_TERM = re.compile(r"\*\*(?P<term>.+?)\*\*<br>\n(?P<text>(?:.+\n?)+)")
_FIGURE = re.compile(r"\[[^\]]+\]\(#(?P<name>[\w.]+)\)")


@functools.cache
def names() -> tuple[str, ...]:
    """The reports there are: every notebook that takes parameters."""
    folder = config.resource("notebooks")
    return tuple(p.stem for p in sorted(folder.glob("*.ipynb")) if "parameters" in _cells(p))


def path(name: str) -> Path:
    """The notebook of a report. Raises `UnknownName` when there is no such report."""
    if name not in names():
        raise UnknownName("report", name, names())
    return config.resource("notebooks") / f"{name}.ipynb"


def title(name: str) -> str:
    """The title of a report, which is the heading of its notebook."""
    return _source(name, "title").partition("\n")[0].removeprefix("# ")


def how_to_read(name: str, figure: Callable[[str], str]) -> tuple[tuple[str, str], ...]:
    """The terms of a report with their explanation, from the cell of that name of its notebook.

    A figure such as ``[80](#utilisation.warning)`` is shown as `figure` has it now.
    """
    text = _FIGURE.sub(lambda m: figure(m["name"]), _source(name, "how-to-read") + "\n")
    return tuple((m["term"], " ".join(m["text"].split("\n")).strip()) for m in _TERM.finditer(text))


def _source(name: str, cell: str) -> str:
    return _cells(config.resource("notebooks") / f"{name}.ipynb")[cell]


@functools.cache
def _cells(notebook: Path) -> dict[str, str]:
    """The source of the cells of a notebook by their ids."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"the notebook {notebook} cannot be read ({error}).") from error
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def execute(
    notebook: Path,
    executed: Path,
    parameters: Mapping[str, Value],
    *,
    space: Path,
    cell_seconds: float,
    on_cell: Callable[[int, int, str], None] | None = None,
) -> None:
    """Runs `notebook` with `parameters`; the run notebook is left at `executed`, also on failure.

    The kernel gets FWDB_REPORT_DIR=`space`, where its last cell saves. `on_cell` is called before
    each code cell with the cells done, the cells in all, and the id of the cell.
    Raises `ReportError` that names the cell and the error in it, and as they are the errors that
    say that the caller, or a server, has to be put right.
    """
    # With JupyterLab installed, importing nbformat compiles grammars for a URI check that no
    # notebook needs: about a second of every run. The import is optional to its only user.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    cells = [
        (place, cell)
        for place, cell in enumerate(nbformat.read(notebook, as_version=4).cells)  # type: ignore[no-untyped-call]
        if cell.cell_type == "code"
    ]
    seen: list[str] = []

    def told(cell: Any, cell_index: int) -> None:
        seen.append(str(cell.get("id", cell_index)))
        if on_cell is not None:
            on_cell(min(len(seen) - 1, len(cells)), len(cells), seen[-1])

    name = notebook.stem
    try:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(executed),
            parameters=dict(parameters),
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
        where = seen[-1] if seen else "the first cell"
        if error.ename in _TOLD_APART:
            raise _TOLD_APART[error.ename](error.evalue) from error
        raise ReportError(
            f"report '{name}' failed in cell '{where}': {error.ename}: {error.evalue}"
        ) from error
    except CellTimeoutError as error:
        raise ReportError(
            f"report '{name}' was stopped: cell '{seen[-1]}' took longer than {cell_seconds:g} s. "
            "Ask for a shorter window, or find out what holds the database up."
        ) from error
    except DeadKernelError as error:
        where = seen[-1] if seen else "start"
        raise ReportError(
            f"report '{name}' failed in cell '{where}': its kernel died, perhaps for want of "
            "memory. Ask for a shorter window, or run it where there is more."
        ) from error
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
            return KernelSpec(
                argv=command,
                display_name="Python 3",
                language="python",
                metadata={"supported_encryption": ["curve"]},
            )

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
