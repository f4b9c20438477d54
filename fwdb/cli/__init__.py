"""The command line: one command, one call of a public function."""

from __future__ import annotations

import logging
import signal
import sys
from typing import NoReturn

import typer

from fwdb import errors

# Each registers its commands, in the order in which help lists them.
# isort: off
from fwdb.cli import servers, data, questions, auditing, asking, serving, reporting  # noqa: F401

# isort: on
from fwdb.cli.program import (
    BAD_USE,
    FAILED,
    INTERRUPTED,
    NO_DATA,
    app,
    fail,
    terminate,
    usage_sentence,
)

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Run the command line. Every foreseen failure is one sentence on stderr and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    before = signal.signal(signal.SIGTERM, terminate)
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
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
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, before)
