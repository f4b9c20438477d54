"""Reports, and the notebooks they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from typer import Argument, Option

from fwdb import errors
from fwdb.cli.program import Parameters, app, raw_pairs, say, stdout

Names = Annotated[list[str], Argument(help="Reports, or 'all'; 'checks' lists what they judge by.")]
Out = Annotated[Path, Option(help="Where the reports go.")]
FailOn = Annotated[
    Literal["warning", "critical", "never"], Option(help="Exit 3 from this verdict on.")
]


@app.command()
def report(
    names: Names,
    parameter: Parameters = None,
    out: Out = Path("reports"),
    fail_on: FailOn = "never",
) -> None:
    """Make reports.

    Exit codes: 0 fine, 1 a run failed, 2 bad parameters, 3 a threshold was crossed
    (with --fail-on), 4 no data or no server.
    """
    from fwdb import reports

    if names == ["checks"]:
        print_checks()
        return
    failures = 0

    def failed(name: str, error: errors.FwdbError) -> None:
        nonlocal failures
        failures += 1
        say(f"{name}: {error}")

    given: dict[str, Any] = {**raw_pairs(parameter)}
    results = reports.suite(
        reports.NAMES if names == ["all"] else names,
        out=out,
        progress=lambda at: say(f"{at.report}  {at.done}/{at.total}  {at.doing}"),
        failed=failed,
        **given,
    )
    for result in results:
        stdout.print(f"{result.name:<12} {result.verdict:<9} {result.summary}")
        stdout.print(f"{'':<22} {result.page}")
    raise typer.Exit(reports.exit_code(results, fail_on=fail_on, failures=failures))


def print_checks() -> None:
    """Every line of every check as it is in force, and the variable that moves it."""
    from fwdb.reports.catalogue import declared

    table = Table("Check", "Database", "Unit", "Warning", "Critical", "Variable", box=None)
    for one in declared():
        table.add_row(
            one.id,
            ", ".join(one.databases),
            one.unit,
            *(
                "" if one.threshold(status) is None else f"{one.threshold(status):.12g}"
                for status in ("warning", "critical")
            ),
            one.variable,
        )
    stdout.print(table)


@app.command()
def lab() -> None:
    """Open JupyterLab on the notebooks.

    Brings the servers up, migrates, seeds when empty; the kernels find the databases.
    """
    from fwdb.demo import run_lab

    raise typer.Exit(run_lab(progress=say))
