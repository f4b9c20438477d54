"""The command line: one command, one call of a public function."""

from __future__ import annotations

import os
import signal
import sys

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
    from fwdb.cli import servers, data, questions, auditing, asking, serving, reporting  # noqa: F401

    # isort: on
    from fwdb.cli.program import app

    return app


def main() -> NoReturn:
    """Run the command line. Every foreseen failure is one sentence on stderr and an exit code."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:  # not ignored, as for a background job
        signal.signal(signal.SIGINT, stop)
    # Loaded here, where Ctrl-C cannot end in the middle of somebody's import.
    import contextlib
    import errno
    import logging

    import typer

    from fwdb import errors
    from fwdb.cli import app
    from fwdb.cli.program import (
        BAD_USE,
        FAILED,
        INTERRUPTED,
        NO_DATA,
        asked_to_end,
        fail,
        terminate,
        usage_sentence,
    )

    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    before = signal.signal(signal.SIGTERM, terminate)
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    signal.signal(signal.SIGINT, interrupt)
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except usage_error as error:
        fail(usage_sentence(error), BAD_USE)
    except (errors.ParameterError, errors.ConfigError) as error:
        fail(str(error), BAD_USE)
    except errors.StoreUnavailable as error:
        fail(str(error), NO_DATA)
    except errors.FwdbError as error:
        fail(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped.", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # `fwdb sql … | head` closes our output; that is no failure
        sys.exit(0)
    except OSError as error:
        remedy = {
            errno.ENOSPC: "; make room on that disk",
            errno.EDQUOT: "; make room within your quota",
            errno.ENAMETOOLONG: "; use a shorter path, FWDB_HOME for the built-in servers",
        }
        where = f"'{error.filename}': " if error.filename else ""
        fail(f"{where}{error.strerror or error}{remedy.get(error.errno or 0, '')}.", FAILED)
    finally:
        ending = sys.exc_info()[1]
        # All is in order; to take the interpreter apart would take a busy machine seconds.
        if asked_to_end.is_set() and isinstance(ending, SystemExit):
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(int(ending.code or 0))
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, before)
        if interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)


def stop(_: int, __: object) -> NoReturn:
    """Ctrl-C before anything has begun, or after all: there is nothing to put in order."""
    os.write(2, b"fwdb: stopped.\n")
    os._exit(130)
