"""Watching: the history, the endpoints, and what Prometheus and Grafana get."""

from __future__ import annotations

import gc
import json
import threading
from typing import Annotated

from typer import Option

from fwdb import errors
from fwdb.cli.program import Json, app, database, ended_by_signals, say, stdout

Interval = Annotated[float, Option(help="Seconds between readings.", min=1)]
Once = Annotated[bool, Option("--once", help="One full reading, then end.")]
Port = Annotated[int, Option(help="0 takes a free one.", min=0, max=65535)]
Host = Annotated[str, Option(help="0.0.0.0 is all of this machine.")]


@app.command()
def monitor(interval: Interval = 30, once: Once = False) -> None:
    """Sample both servers into the history.

    Reports read that history. Runs until Ctrl-C, or once.
    """
    with database(application_name="fwdb-monitor") as db:
        if once:
            stdout.print(str(db.monitor.sample("full")))
            return
        say(f"sampling every {interval:g} s into {db.postgres.address}; Ctrl-C ends it")
        db.monitor.run(interval=interval)


@app.command()
def serve(port: Port = 9464, host: Host = "127.0.0.1", interval: Interval = 30) -> None:
    """Answer /metrics and /health over HTTP.

    Samples both servers into the history too, as `fwdb monitor` does. Runs until Ctrl-C.
    """
    ended = threading.Event()
    with database(application_name="fwdb-serve") as db, ended_by_signals(ended):
        server = db.metrics.serve(port, host=host)
        # What is imported by now stays; looking through it for garbage would take 60 ms of a
        # scrape now and then.
        gc.collect()
        gc.freeze()
        stdout.print(f"{server.url}/metrics")
        say(f"sampling every {interval:g} s into {db.postgres.address}; Ctrl-C ends it")
        try:
            db.monitor.run(interval=interval, stop=ended)
        except (errors.FeatureUnavailable, errors.PermissionDenied) as error:
            say(f"nothing is sampled: {error}")
            ended.wait()
    say("stopped.")


@app.command()
def metrics(as_json: Json = False) -> None:
    """Print the series that `fwdb serve` gives out.

    Those of this process alone: what other processes asked is counted there.
    """
    with database() as db:
        if as_json:
            print(json.dumps(db.metrics.json(), indent=2, allow_nan=False))
        else:
            print(db.metrics.text(), end="")


@app.command()
def rules() -> None:
    """Print the alert rules for Prometheus.

    They are for a scrape job named fwdb; docs/runbooks.md says what to do when one fires.
    """
    from fwdb.metrics import rules

    print(rules(), end="")


@app.command()
def dashboard() -> None:
    """Print the Grafana dashboard, as JSON to import."""
    from fwdb.metrics import dashboard

    print(dashboard(), end="")
