"""The program itself: its name, its options, its exit codes, and how it prints."""

from __future__ import annotations

import _thread
import errno
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer import Option

from fwdb import cli, errors

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

FAILED, BAD_USE, THRESHOLD, NO_DATA, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 130, 143

_CODES: dict[type[errors.FwdbError], int] = {
    **dict.fromkeys((errors.ParameterError, errors.ConfigError), BAD_USE),
    errors.StoreUnavailable: NO_DATA,
    errors.FwdbError: FAILED,
}
_REMEDIES = {
    errno.ENOSPC: "; make room on that disk",
    errno.EDQUOT: "; make room within your quota",
    errno.ENAMETOOLONG: "; use a shorter path, FWDB_HOME for the built-in servers",
}

# What was asked to end has so long for it, and when it is ended then, once more.
_END_SECONDS = 4
asked_to_end = threading.Event()

# A pipe has no width to fold tables for.
stdout = Console(
    highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1000
)
stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

Json = Annotated[bool, Option("--json", help="Print JSON.")]
Store = Annotated[Literal["postgres", "mongodb"], Option(help="Which store's query.")]
Parameters = Annotated[
    list[str] | None, Option("--parameter", "-p", metavar="KEY=VALUE", help="May be repeated.")
]


@app.callback()
def _options(
    profile: Annotated[
        str | None, Option(help="Take the URLs of FWDB_<PROFILE>_POSTGRES_URL and …_MONGODB_URL.")
    ] = None,
) -> None:
    from fwdb import config

    if profile is not None:
        config.settings(profile)  # refuses an unknown one
        os.environ["FWDB_PROFILE"] = profile  # the kernels of reports read it as well


def run(program: typer.Typer) -> NoReturn:
    """Run `program`, and end with its exit code or that of the error."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    before = signal.signal(signal.SIGTERM, terminate)
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        sys.exit(program(standalone_mode=False) or 0)
    except usage_error as error:
        fail(usage_sentence(error), BAD_USE)
    except errors.FwdbError as error:
        fail(str(error), next(code for kind, code in _CODES.items() if isinstance(error, kind)))
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped.", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # `fwdb sql … | head` closes our output; that is no failure
        sys.exit(0)
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        fail(f"{where}{error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}.", FAILED)
    finally:
        ending = sys.exc_info()[1]
        # All is in order; to take the interpreter apart would take a busy machine seconds.
        if asked_to_end.is_set() and isinstance(ending, SystemExit):
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(int(ending.code or 0))
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def loading() -> Iterator[None]:
    """Ctrl-C ends the process at once: nothing has begun, and imports take no exception well."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not ignored, as for a background job
        signal.signal(signal.SIGINT, cli.stop)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def database(*, role: Role = "app", application_name: str = "fwdb") -> Iterator[Database]:
    with loading():
        from fwdb.database import connect
    with connect(role=role, application_name=application_name, progress=say) as db:
        yield db


def terminate(_: int, __: object) -> NoReturn:
    """End as by Ctrl-C, with the exit code of SIGTERM."""
    _end(TERMINATED)


def _end(code: int) -> NoReturn:
    """End in order within `_END_SECONDS`, or without: what cannot end so is ended with `code`.

    A second SIGTERM changes nothing: `timeout` and service managers send it to the process and to
    its group. SIGALRM kills when not even a thread of Python can run any more.
    """
    asked_to_end.set()
    # What is cut off in the midst of closing a connection, say, logs that with a traceback.
    logging.disable()
    sys.unraisablehook = lambda _: None
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_END_SECONDS + 1)
    # No lock is taken, which the main thread may hold where the signal found it.
    _thread.start_new_thread(_end_late, (code,))
    sys.exit(code)


def _end_late(code: int) -> NoReturn:
    time.sleep(_END_SECONDS)
    os._exit(code)


@contextmanager
def ended_by_signals(ended: threading.Event) -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM of a service manager, sets `ended`; a second Ctrl-C ends it.

    So does time, when what the command is at does not come to an end. A second SIGTERM does not:
    `timeout` and service managers send it to the process and to its group.
    """
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def end(kind: int, _: object) -> None:
        ended.set()
        asked_to_end.set()
        again = signal.SIG_IGN if kind == signal.SIGTERM else before[signal.SIGINT]
        signal.signal(kind, again)
        if before[signal.SIGTERM] is terminate:
            code = INTERRUPTED if kind == signal.SIGINT else TERMINATED
            signal.signal(signal.SIGALRM, lambda *_: _end(code))
            signal.alarm(_END_SECONDS)

    for kind in before:
        signal.signal(kind, end)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def say(sentence: str) -> None:
    stderr.print(f"· {sentence}", style="dim")


def fail(sentence: str, code: int) -> NoReturn:
    stderr.print(f"fwdb: {errors.redact(sentence)}")
    sys.exit(code)


def usage_sentence(error: Exception) -> str:
    """Click's message with the nearest right name, as one sentence."""
    message = str(error.format_message()).strip()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    where = f" (see '{context.command_path} --help')" if context else ""
    return f"{message.rstrip('.')}{where}."


def pairs(given: list[str] | None) -> dict[str, Any]:
    return {
        key: float(value) if value.replace(".", "", 1).isdigit() else value
        for key, value in raw_pairs(given).items()
    }


def raw_pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise errors.ParameterError(f"'-p {pair}' is not a parameter; write -p key=value.")
        pairs[key] = value
    return pairs


def print_counts(done: str, counts: Any) -> None:
    listed = counts if isinstance(counts, dict) else asdict(counts)
    stdout.print(
        f"{done}: " + ", ".join(f"{n:,} {name}".replace("_", " ") for name, n in listed.items())
    )


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str, sort_keys=True))


def print_rows(
    frame: pd.DataFrame, shown: Sequence[str] = (), *, csv: bool = False, as_json: bool = False
) -> None:
    """All columns for programs; for people those named in `shown`, or all."""
    from fwdb.stores.frames import as_csv

    if csv:
        print(as_csv(frame), end="")
    elif as_json:
        print(frame.to_json(orient="records", date_format="iso", indent=2))
    else:
        print_frame(frame[list(shown)] if shown else frame)


def print_frame(frame: pd.DataFrame) -> None:
    table = Table(box=None, pad_edge=False)
    for column in frame.columns:
        numeric = frame[column].dtype.kind in "if"
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    stdout.print(table)
    stdout.print(f"{len(frame)} rows")


def _cell(value: Any) -> str:
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)
