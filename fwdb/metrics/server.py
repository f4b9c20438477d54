"""The paths that are answered over HTTP, and the server of the standard library for them.

It runs in a thread and is hardened against slow clients.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import LineTooLong
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from fwdb.errors import MetricsError
from fwdb.metrics.exposition import Exposition
from fwdb.monitoring import Health, StoreHealth
from fwdb.stores import PoolStats

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"  # what a process knows of its databases is not for everybody on the network

_METHODS = "GET, HEAD"

_CLIENT_SECONDS = 30.0  # for one request and its answer, however slow the client is
_CLOSE_SECONDS = 5.0  # for the answers on their way when the server is closed
_MOST_CLIENTS = 256  # each has a thread; the oldest goes when one more comes
_MOST_HEAD = 1 << 16  # bytes of a request line and its headers
_MOST_REST = 1 << 20  # bytes that come behind them and are thrown away

_REFUSALS = {
    errno.EADDRINUSE: "port {port} of {host} is taken by another program; choose another with "
    "--port, or 0 for a free one.",
    errno.EACCES: "this account may not open port {port} of {host}; choose one above 1023 with "
    "--port.",
}
_REFUSED = "the metrics cannot be served at {host}, port {port} ({reason}); choose another --host."

# What a proxy keeps of a health check is wrong a second later.
_FRESH = {"Cache-Control": "no-cache, no-store, must-revalidate"}

Reply = tuple[int, dict[str, str], bytes]  # status, headers, body


class Application:
    """The WSGI application; mounted below a path, it answers below it.

    Nothing of a request but its path and `Accept` reaches anything. `health` gives status and
    content, with `details` or without.
    """

    def __init__(
        self, exposition: Exposition, health: Callable[..., tuple[int, dict[str, Any]]]
    ) -> None:
        self._exposition = exposition
        self._paths: dict[str, Callable[[str], Reply]] = {
            "/metrics": self._metrics,
            "/metrics/json": lambda _: _json(200, exposition.json()),
            "/health": lambda _: _json(*health(), _FRESH),
            "/health/database": lambda _: _json(*health(details=True), _FRESH),
            "/health/live": lambda _: _json(200, {"status": "ok"}, _FRESH),
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        status, headers, body = self._reply(
            method, environ.get("PATH_INFO", ""), environ.get("HTTP_ACCEPT", "")
        )
        headers |= {"Content-Length": str(len(body)), "Server": "fwdb"}
        start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
        return [] if method == "HEAD" else [body]

    def _reply(self, method: str, path: str, accept: str) -> Reply:
        answer = self._paths.get(path)
        if method not in {"GET", "HEAD"}:
            return _error(405, f"only {_METHODS} are answered here", Allow=_METHODS)
        if answer is None:
            return _error(404, f"there is nothing here; the paths are {', '.join(self._paths)}")
        try:
            return answer(accept)
        except Exception:
            logger.exception("%s cannot be answered", path)
            return _error(500, "this cannot be answered now; the log of the process says why")

    def _metrics(self, accept: str) -> Reply:
        content_type, body = self._exposition.negotiated(accept)
        return 200, {"Content-Type": content_type}, body


def _json(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Reply:
    # allow_nan: Python would write NaN, which no parser of JSON reads.
    body = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    return status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body


def _error(status: int, sentence: str, **headers: str) -> Reply:
    body = f"{HTTPStatus(status).phrase}: {sentence}.\n".encode()
    return status, {"Content-Type": "text/plain; charset=utf-8", **headers}, body


# Fixed sentences: what a driver says holds hosts and users.
SENTENCES = {
    "no_answer": "it did not answer in time",
    "unreachable": "no connection could be made",
    "login_refused": "it refused the user or the password",
    "not_allowed": "the user may not ask it",
    "too_old": "its version is older than fwdb supports",
    "error": "it answered with an error",
    "slow": "it answers slowly",
    "read_only": "it takes no writes",
    "pool_full": "all connections of this process's pool are in use",
    "schema_behind": "its schema is not that of this release; run 'fwdb migrate'",
}


def health_answer(
    health: Health,
    pools: Mapping[str, PoolStats] | None = None,
    schema: tuple[str | None, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of ``/health``; with `pools` and `schema` of ``/health/database``.

    `schema` is the revision of the database and that of this release, None when not known.
    """
    entries = {store.database: _entry(store) for store in health.stores}
    for name, pool in (pools or {}).items():
        entries[name]["pool"] = {
            "total": pool.in_use + pool.idle,
            "active": pool.in_use,
            "idle": pool.idle,
            "waiting": pool.waiting,
            "capacity": pool.capacity,
            "utilization": pool.utilisation_percent,
        }
    if schema is not None:
        current, head = schema
        entries["postgres"]["schema"] = {"current": current, "head": head}
    down = {name: entry for name, entry in entries.items() if entry["status"] == "down"}
    status = {"up": "ok", "degraded": "degraded", "down": "error"}[health.status]
    return (503 if down else 200), {
        "status": status,
        "info": {name: entry for name, entry in entries.items() if name not in down},
        "error": down,
        "details": entries,
    }


def _entry(store: StoreHealth) -> dict[str, Any]:
    entry: dict[str, Any] = {"status": store.status}
    if store.latency_ms is not None:
        entry["responseTime"] = round(store.latency_ms, 3)
    if store.version is not None:
        entry["version"] = store.version
    if store.causes:
        entry["message"] = "; ".join(SENTENCES[cause] for cause in store.causes)
    return entry


class MetricsServer:
    """A running server; `url` is where it answers. `close` frees its port."""

    def __init__(self, application: WSGIApplication, host: str, port: int) -> None:
        try:
            self._http = _Http(application, host, port)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            sentence = _REFUSALS.get(error.errno or 0, _REFUSED)
            raise MetricsError(sentence.format(host=host, port=port, reason=reason)) from error
        self.host = host
        self.port = int(self._http.server_address[1])
        self.is_closed = False
        self._thread = threading.Thread(
            target=self._http.serve_forever,
            kwargs={"poll_interval": 0.05},  # `close` waits that long
            name=f"fwdb-serve-{self.port}",
            daemon=True,
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The address without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def close(self) -> None:
        """End the server and its threads; twice is no harm."""
        if self.is_closed:
            return
        self.is_closed = True
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __repr__(self) -> str:
        return f"MetricsServer({self.url}{', closed' if self.is_closed else ''})"


class _Http(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # so that none outlives the process; `server_close` waits for them
    request_queue_size = 128

    def __init__(self, application: WSGIApplication, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._clients: dict[socket.socket, float] = {}  # when each is cut off, the oldest first
        super().__init__((host, port), _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        # That of HTTPServer asks the name service who we are, which can take many seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._clients) >= _MOST_CLIENTS:
            self._cut(next(iter(self._clients)))
        self._clients[request] = time.monotonic() + _CLIENT_SECONDS
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off who is too slow; called many times a second. The thread ends by itself then."""
        now = time.monotonic()
        for client, end in list(self._clients.items()):
            if end <= now:
                self._cut(client)

    def server_close(self) -> None:
        """Free the port, and give those that answer a moment; no client can hold up the end."""
        super().server_close()
        end = time.monotonic() + _CLOSE_SECONDS
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RD)  # nothing more is asked
        while self._clients and time.monotonic() < end:
            time.sleep(0.01)
        for client in list(self._clients):
            self._cut(client)

    def _cut(self, client: socket.socket) -> None:
        self._clients.pop(client, None)
        with suppress(OSError):  # it went away
            client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no trouble of ours."""
        logger.debug("a client went away", exc_info=True)


class _Head(io.BufferedReader):
    """What a client sends, of which a limited number of bytes is read as lines."""

    left = _MOST_HEAD

    def readline(self, size: int | None = -1, /) -> bytes:
        if self.left < 0:
            raise LineTooLong("header")
        line = super().readline(self.left + 1)
        self.left -= len(line)
        return line


class _Handler(WSGIRequestHandler):
    server_version, sys_version = "fwdb", ""
    default_request_version = "HTTP/1.0"  # of a line that says none: its answer has headers too
    error_content_type, error_message_format = "text/plain; charset=utf-8", "%(message)s\n"
    wbufsize, disable_nagle_algorithm = -1, True  # head and body in one packet, at once

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.rfile.detach())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in the words of the standard, which hold nothing of the request."""
        super().send_error(code)

    def finish(self) -> None:
        """Send what is left, then take the rest of the request: closing with something unread
        resets the connection, and the client may lose the answer."""
        super().finish()
        self.connection.shutdown(socket.SHUT_WR)
        rest = 0
        while rest < _MOST_REST and (more := self.connection.recv(1 << 16)):
            rest += len(more)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)
