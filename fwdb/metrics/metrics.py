"""`Metrics`: the registry of one `Database`, what feeds it, and the ways to read it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, overload

import pandas as pd
from prometheus_client import CollectorRegistry

from fwdb.arguments import File, Range, checks_arguments
from fwdb.errors import MetricsError
from fwdb.metrics import exposition
from fwdb.metrics.probes import Probes, Shared
from fwdb.metrics.series import DATABASES, AuditCounts, DatabaseCollector
from fwdb.metrics.server import HOST, Application, MetricsServer, health_answer
from fwdb.stores import MongoStore, PostgresStore

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager as Tracking  # a decorator too

    from _typeshed.wsgi import WSGIApplication

    from fwdb.monitoring import Monitor

# Whoever may read an endpoint may ask it often; a server answers them all with one question. So
# short, because an answer must be right within 1.5 s, and a silent server takes 1 s of them.
HEALTH_SECONDS = 0.25

T = TypeVar("T")


def _is_name(text: str) -> bool:
    """Whether a series can have this label: text that is no Unicode would break every answer."""
    return bool(text.strip()) and text.isprintable()


@checks_arguments
class Metrics:
    """The metrics of one `Database`: what its process asked and how long it took, and the state
    of both servers, which is read when somebody asks for it.

    Every statement and command is counted without anything being done for it. `registry` is an
    ordinary one of prometheus_client and nobody else's: series of your own can be registered in
    it, and are part of every answer.
    """

    def __init__(
        self, postgres: PostgresStore, mongodb: MongoStore, monitor: Monitor, audit: AuditCounts
    ) -> None:
        self._stores: dict[str, PostgresStore | MongoStore] = {
            "postgres": postgres,
            "mongodb": mongodb,
        }
        self._health = Shared(monitor.health, HEALTH_SECONDS)
        self._probes = Probes(postgres, mongodb, monitor, self._health.read)
        self._server: MetricsServer | None = None
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self.registry.register(DatabaseCollector(postgres, mongodb, self._probes.read, audit))
        self._exposition = exposition.Exposition(self.registry)
        self.wsgi: WSGIApplication = Application(self._exposition, self.health)
        """The paths of `serve` as a WSGI application, to be mounted in a web server."""

    @overload
    def track(self, database: str, operation: str, work: Callable[[], T]) -> T: ...

    @overload
    def track(self, database: str, operation: str) -> Tracking[None]: ...

    def track(
        self,
        database: Annotated[str, DATABASES],
        operation: Annotated[str, _is_name, "the operation a name, such as 'findUser'"],
        work: Callable[[], T] | None = None,
    ) -> T | Tracking[None]:
        """What `work()` returns, counted as one operation of `database` called `operation`.

        Without `work` it is for a ``with``, or a decorator. What is asked of that database inside,
        in the same thread, is part of the operation and not counted again. The first hundred
        names of a database are kept, any other is counted as ``other``. An error that `work`
        raises is counted by its cause and raised.
        """
        tracking = self._stores[database].times.track(operation)
        if work is None:
            return tracking
        with tracking:
            return work()

    def text(self) -> str:
        """All series in Prometheus's text format, as ``/metrics`` gives them."""
        return self._exposition.text()

    def json(self) -> list[dict[str, Any]]:
        """All series in the shape of prom-client's ``getMetricsAsJSON()``."""
        return self._exposition.json()

    def frame(self) -> pd.DataFrame:
        """All samples as a table: `metric`, `type`, `database`, `labels`, `value`.

        `labels` are the others, as ``operation=select, status=success``. A histogram has a row
        per bucket (the number of values up to `le`), ``_sum`` and ``_count``.
        """
        return self._exposition.frame()

    def write(self, path: File) -> Path:
        """Write `text()` to `path`, which appears whole or not at all; where it is.

        For the textfile collector of node_exporter. Raises `MetricsError` when it cannot be
        written.
        """
        return exposition.write(Path(path), self._exposition)

    def health(self, *, details: bool = False) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of ``/health``; with `details` those of ``/health/database``."""
        found = self._health.read()
        if not details:
            return health_answer(found)
        pools = {name: store.pool() for name, store in self._stores.items()}
        answers = any(s.database == "postgres" and s.status != "down" for s in found.stores)
        return health_answer(found, pools, self._probes.schema() if answers else None)

    def serve(
        self, port: Annotated[int, Range(0, 65_535)] = 0, *, host: str = HOST
    ) -> MetricsServer:
        """Answer HTTP at `host` and `port` from a thread, until the database is closed.

        Port 0 takes a free one; the server's `url` says which. Serves once: later calls return
        the server that runs. Raises `MetricsError` when the port is taken, or when another one
        is asked for than is served.
        """
        with self._lock:
            running = self._server
            if running is None or running.is_closed:
                running = self._server = MetricsServer(self.wsgi, host, port)
            elif port not in {0, running.port}:
                raise MetricsError(
                    f"these metrics are served at {running.url} already; close that server before "
                    f"you take port {port}."
                )
            return running

    def close(self) -> None:
        """Stop serving, and close the connections for the questions to the servers."""
        with self._lock:
            if self._server is not None:
                self._server.close()
        self._probes.close()

    def __repr__(self) -> str:
        served = self._server is not None and not self._server.is_closed
        return f"Metrics({self._server.url if served and self._server else 'not served'})"
