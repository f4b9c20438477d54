"""The command line: one command, one call of a public function."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # Ctrl-C is handled from here on: the less is loaded before, the better
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from fwdb.cli.program import app

__all__ = ["app", "main", "stop"]


def __getattr__(name: str) -> Any:
    """`app`, the program with all its commands, is loaded when it is asked for."""
    if name != "app":
        raise AttributeError(f"module 'fwdb.cli' has no attribute '{name}'")
    # Each registers its commands, in the order in which help lists them.
    # isort: off
    from fwdb.cli import databases, questions, audit, monitoring, reports  # noqa: F401

    # isort: on
    from fwdb.cli.program import app

    return app


def main() -> NoReturn:
    """Run the command line. Every foreseen failure is one sentence on stderr and an exit code."""
    interrupt = signal.getsignal(signal.SIGINT)
    is_handled = interrupt is signal.default_int_handler  # not ignored, as for a background job
    if is_handled:
        signal.signal(signal.SIGINT, stop)
    # Loaded here, where Ctrl-C cannot end in the middle of somebody's import.
    from fwdb.cli import app
    from fwdb.cli.program import run

    signal.signal(signal.SIGINT, interrupt)
    try:
        run(app)
    finally:
        if is_handled:
            signal.signal(signal.SIGINT, stop)


def stop(_: int, __: object) -> NoReturn:
    """Ctrl-C before anything has begun, or after all: there is nothing to put in order."""
    os.write(2, b"fwdb: stopped.\n")
    os._exit(130)
