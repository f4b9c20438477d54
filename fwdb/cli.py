"""The command line: one command, one call of a public function."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fwdb import errors

if TYPE_CHECKING:
    import pandas as pd

    from fwdb.database import Database, Role

app = typer.Typer(
    name="fwdb",
    help="Fashion Wallet's PostgreSQL and MongoDB as data frames, charts and reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
audit_app = typer.Typer(
    help="The audit trail: read it and keep it to its time.", no_args_is_help=True
)
app.add_typer(audit_app, name="audit")

FAILED, BAD_USE, THRESHOLD, NO_DATA, INTERRUPTED = 1, 2, 3, 4, 130

# A pipe has no width to fold tables for.
_out = Console(
    highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1000
)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Store = Annotated[Literal["postgres", "mongodb"], typer.Option(help="Which store's query.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", metavar="KEY=VALUE", help="May be repeated."),
]


def main() -> NoReturn:
    """Run the command line. Every foreseen failure is one sentence on stderr and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except usage_error as error:
        _fail(_usage_sentence(error), BAD_USE)
    except (errors.ParameterError, errors.ConfigError) as error:
        _fail(str(error), BAD_USE)
    except errors.StoreUnavailable as error:
        _fail(str(error), NO_DATA)
    except errors.FwdbError as error:
        _fail(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped.", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # `fwdb sql … | head` closes our output; that is no failure
        sys.exit(0)


@app.callback()
def _options(
    profile: Annotated[
        str | None,
        typer.Option(help="Take the URLs of FWDB_<PROFILE>_POSTGRES_URL and …_MONGODB_URL."),
    ] = None,
) -> None:
    from fwdb import config

    if profile is not None:
        config.settings(profile)  # refuses an unknown one
        os.environ["FWDB_PROFILE"] = profile  # the kernels of reports read it as well


# -- the built-in servers -----------------------------------------------------------------------


@app.command()
def up() -> None:
    """Start the built-in servers, or join them if they run."""
    from fwdb import config, embedded

    embedded.up(config.settings().home, progress=_say)
    _print_status()


@app.command()
def down() -> None:
    """Stop the built-in servers."""
    from fwdb import config, embedded

    stopped = embedded.down(config.settings().home)
    _out.print("The built-in servers are stopped." if stopped else "No built-in server runs here.")


@app.command()
def status(as_json: Json = False) -> None:
    """Say which built-in servers run, where, and with which data."""
    _print_status(as_json=as_json)


@app.command()
def doctor() -> None:
    """Say which server binaries are taken.

    Each finding says what was found, what is taken and why. Exit 1 if one is wrong.
    """
    from fwdb import config, embedded

    findings = embedded.doctor(config.settings().home)
    for finding in findings:
        _out.print(f"{'ok ' if finding.ok else 'BAD'}  {finding.subject}: {finding.sentence}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


def _print_status(*, as_json: bool = False) -> None:
    from fwdb import config, embedded

    found = embedded.status(config.settings().home)
    if as_json:
        _print_json(found.as_dict())
        return
    _out.print(f"home      {found.home}")
    for store in found.stores:
        where = f"{store.engine} {store.version}  {store.url}" if store.running else store.reason
        _out.print(f"{store.store:<9} {where}")


# -- schema and data ----------------------------------------------------------------------------


@app.command()
def migrate(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print PostgreSQL's SQL; change nothing.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only report drift; exit 1 if any.")
    ] = False,
) -> None:
    """Bring both stores to the newest schema.

    Tables that already exist are adopted: what is missing is added, no row is lost.
    """
    from fwdb import migrating

    if sql:
        print(migrating.offline_sql())
        return
    with _database(role="owner") as db:
        if not check:
            changes = migrating.migrate(
                db.postgres,
                db.mongodb,
                progress=lambda change: _out.print(f"{change.database:<9} {change.sentence}"),
            )
            if not changes:
                _out.print("Both stores have the newest schema.")
        differences = migrating.drift(db.postgres, db.mongodb)
    for difference in differences:
        _out.print(f"{difference.database:<9} {difference.severity}: {difference.sentence}")
    if check and any(difference.severity != "information" for difference in differences):
        raise typer.Exit(FAILED)


@app.command()
def seed(
    scale: Annotated[int, typer.Option(help="Add this many users with a year of history.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same data.")] = 1,
) -> None:
    """Put in the seed data; running it twice changes nothing."""
    with _database() as db:
        _print_counts("seeded", db.seeder.seed_all())
        if scale:
            _print_counts("added", db.seeder.seed_scale(scale, seed=seed, progress=_say))


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all rows; asks first.

    Users, avatars, catalog items, designs and audit entries go; the schema stays.
    """
    with _database(role="owner") as db:
        if not yes:
            if not sys.stdin.isatty():
                raise errors.ParameterError("clear removes all rows; add --yes to mean it.")
            typer.confirm(
                f"Remove all rows of {db.postgres.address} and {db.mongodb.address}?", abort=True
            )
        _print_counts("removed", db.seeder.clear_all(confirm=True))


@app.command()
def workload(
    seconds: Annotated[float, typer.Option(help="How long.", min=1, max=3600)] = 20,
    seed: Annotated[int, typer.Option(help="The same seed asks the same questions.")] = 1,
) -> None:
    """Run load, to have something to see.

    Readers and writers, some slow statements and some failures, through the package's pools.
    """
    from fwdb.demo import run_workload

    result = run_workload(seconds=seconds, seed=seed, progress=_say)
    _print_counts("done", result.operations)
    _print_counts("failed as meant", result.errors)


@app.command()
def demo(
    scale: Annotated[int, typer.Option(help="Users to add.", min=1)] = 1000,
    seconds: Annotated[float, typer.Option(help="Seconds of load.", min=1, max=3600)] = 20,
    out: Annotated[Path, typer.Option(help="Where the reports go.")] = Path("reports"),
) -> None:
    """Do it all, from servers to reports.

    Starts both servers, migrates, seeds, runs a workload and writes all reports.
    """
    from fwdb.demo import run_demo

    index = run_demo(scale=scale, seconds=seconds, out=out, progress=_say)
    _out.print(f"\nOpen {index}")


# -- questions ----------------------------------------------------------------------------------


@app.command()
def health(as_json: Json = False) -> None:
    """Say whether each store is up.

    A store is up, degraded or down; exit 1 if one is down.
    """
    with _database() as db:
        found = db.health()
    if as_json:
        _print_json(asdict(found))
    else:
        for store in found.stores:
            latency = f"{store.latency_ms:.1f} ms" if store.latency_ms is not None else ""
            _out.print(
                f"{store.database:<9} {store.status:<9} {latency:<9} {store.reason}".rstrip()
            )
    if found.status == "down":
        raise typer.Exit(FAILED)


@app.command()
def monitor(
    interval: Annotated[float, typer.Option(help="Seconds between readings.", min=1)] = 30,
    once: Annotated[bool, typer.Option("--once", help="One full reading, then end.")] = False,
) -> None:
    """Sample both servers into the history.

    Reports read that history. Runs until Ctrl-C, or once.
    """
    with _database(application_name="fwdb-monitor") as db:
        if once:
            _out.print(str(db.monitor.sample("full")))
            return
        _say(f"sampling every {interval:g} s into {db.postgres.address}; Ctrl-C ends it")
        db.monitor.run(interval=interval)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 9464,
    host: Annotated[str, typer.Option(help="0.0.0.0 is all of this machine.")] = "127.0.0.1",
    interval: Annotated[float, typer.Option(help="Seconds between readings.", min=1)] = 30,
) -> None:
    """Answer /metrics and /health over HTTP.

    Samples both servers into the history too, as `fwdb monitor` does. Runs until Ctrl-C.
    """
    ended = threading.Event()
    with _database(application_name="fwdb-serve") as db, _ended_by_signals(ended):
        server = db.metrics.serve(port, host=host)
        # What is imported by now stays; looking through it for garbage would take 60 ms of a
        # scrape now and then.
        gc.collect()
        gc.freeze()
        _out.print(f"{server.url}/metrics")
        _say(f"sampling every {interval:g} s into {db.postgres.address}; Ctrl-C ends it")
        try:
            db.monitor.run(interval=interval, stop=ended)
        except (errors.FeatureUnavailable, errors.PermissionDenied) as error:
            _say(f"nothing is sampled: {error}")
            ended.wait()
    _say("stopped.")


@contextmanager
def _ended_by_signals(ended: threading.Event) -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM of a service manager, sets `ended`; a second one kills."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def end(kind: int, _: object) -> None:
        ended.set()
        signal.signal(kind, before[signal.Signals(kind)])

    for kind in before:
        signal.signal(kind, end)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@app.command()
def metrics(as_json: Json = False) -> None:
    """Print the series that `fwdb serve` gives out.

    Those of this process alone: what other processes asked is counted there.
    """
    with _database() as db:
        if as_json:
            print(json.dumps(db.metrics.json(), indent=2, allow_nan=False))
        else:
            print(db.metrics.text(), end="")


@app.command()
def query(
    name: Annotated[str, typer.Argument(help="A query; 'fwdb sql' lists them.")],
    parameter: Parameters = None,
    store: Store = "postgres",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Run one query file and print its rows; texts of statements without the values in them."""
    from fwdb.monitoring.redaction import redacted_frame

    with _database(role="report") as db:
        frame = redacted_frame(getattr(db, store).frame(name, **_pairs(parameter)))
    if csv:
        print(frame.to_csv(index=False), end="")
    elif as_json:
        print(frame.to_json(orient="records", date_format="iso", indent=2))
    else:
        _print_frame(frame)


@app.command()
def sql(
    name: Annotated[str | None, typer.Argument(help="A query; without it, their list.")] = None,
    store: Store = "postgres",
) -> None:
    """Print a query, ready for psql.

    Without a name it lists what there is.
    """
    from fwdb import queries

    if name is None:
        for known in queries.names(store):
            _out.print(f"{known:<24} {queries.load(known, store).about}")
        return
    print(queries.load(name, store).text, end="")


@audit_app.command("trail")
def audit_trail(
    since: Annotated[str, typer.Option(help="A span (24h, 7d) or an ISO time.")] = "24h",
    entity_type: Annotated[
        str | None, typer.Option(help="User, Avatar, CatalogItem or Design.")
    ] = None,
    action: Annotated[str | None, typer.Option(help="CREATE, UPDATE, DELETE or READ.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print the newest audit entries."""
    with _database(role="report") as db:
        frame = db.audit.search(since=since, entity_type=entity_type, action=action, limit=limit)
    if csv:
        print(frame.to_csv(index=False), end="")
    else:
        shown = ["created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"]
        _print_frame(frame[shown])


@audit_app.command("retain")
def audit_retain(
    days: Annotated[int | None, typer.Option(help="Keep this many days.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
) -> None:
    """Remove audit entries older than one year, in small batches."""
    with _database(role="owner") as db:
        kept = db.audit.retain(days, dry_run=dry_run, progress=_say)
    _print_counts(
        "would remove" if dry_run else "removed",
        {"audit_logs": kept.expired if dry_run else kept.removed},
    )


# -- reports ------------------------------------------------------------------------------------


@app.command()
def report(
    names: Annotated[list[str], typer.Argument(help="Reports, or 'all'.")],
    parameter: Parameters = None,
    out: Annotated[Path, typer.Option(help="Where the reports go.")] = Path("reports"),
    fail_on: Annotated[
        Literal["warning", "critical", "never"], typer.Option(help="Exit 3 from this verdict on.")
    ] = "never",
) -> None:
    """Make reports.

    Exit codes: 0 fine, 1 a run failed, 2 bad parameters, 3 a threshold was crossed
    (with --fail-on), 4 no data or no server.
    """
    from fwdb import reports

    failures = 0

    def failed(name: str, error: errors.FwdbError) -> None:
        nonlocal failures
        failures += 1
        _say(f"{name}: {error}")

    given: dict[str, Any] = {**_raw_pairs(parameter)}
    results = reports.suite(
        reports.NAMES if names == ["all"] else names,
        out=out,
        progress=lambda at: _say(f"{at.report}  {at.done}/{at.total}  {at.doing}"),
        failed=failed,
        **given,
    )
    for result in results:
        _out.print(f"{result.name:<12} {result.verdict:<9} {result.summary}")
        _out.print(f"{'':<22} {result.page}")
    raise typer.Exit(reports.exit_code(results, fail_on=fail_on, failures=failures))


@app.command()
def lab() -> None:
    """Open JupyterLab on the notebooks.

    Brings the servers up, migrates, seeds when empty; the kernels find the databases.
    """
    from fwdb.demo import run_lab

    raise typer.Exit(run_lab(progress=_say))


# -- printing -----------------------------------------------------------------------------------


@contextmanager
def _database(*, role: Role = "app", application_name: str = "fwdb") -> Iterator[Database]:
    from fwdb.database import connect

    with connect(role=role, application_name=application_name, progress=_say) as db:
        yield db


def _say(sentence: str) -> None:
    _err.print(f"· {sentence}", style="dim")


def _fail(sentence: str, code: int) -> NoReturn:
    _err.print(f"fwdb: {sentence}")
    sys.exit(code)


def _usage_sentence(error: Exception) -> str:
    """Click's message with the nearest right name, as one sentence."""
    message = str(error.format_message()).strip()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    where = f" (see '{context.command_path} --help')" if context else ""
    return f"{message.rstrip('.')}{where}."


def _pairs(given: list[str] | None) -> dict[str, Any]:
    return {
        key: float(value) if value.replace(".", "", 1).isdigit() else value
        for key, value in _raw_pairs(given).items()
    }


def _raw_pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise errors.ParameterError(f"'-p {pair}' is not a parameter; write -p key=value.")
        pairs[key] = value
    return pairs


def _print_counts(done: str, counts: Any) -> None:
    listed = counts if isinstance(counts, dict) else asdict(counts)
    _out.print(
        f"{done}: " + ", ".join(f"{n:,} {name}".replace("_", " ") for name, n in listed.items())
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str, sort_keys=True))


def _print_frame(frame: pd.DataFrame) -> None:
    table = Table(box=None, pad_edge=False)
    for column in frame.columns:
        numeric = frame[column].dtype.kind in "if"
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    _out.print(table)
    _out.print(f"{len(frame)} rows")


def _cell(value: Any) -> str:
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


if __name__ == "__main__":
    main()
