"""The small HTTP server of the standard library, in a thread."""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fwdb.errors import MetricsError, ParameterError
from fwdb.metrics.routes import Routes, internal_error

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"  # what a process knows of its databases is not for everybody on the network

# A client that sends nothing, or takes nothing, holds a thread no longer than this.
_CLIENT_SECONDS = 5.0
_MOST_BODY = 1 << 16


class MetricsServer:
    """A running server; `url` is where it answers. `close` frees its port."""

    def __init__(self, routes: Routes, host: str, port: int) -> None:
        if not 0 <= port <= 65535:
            raise ParameterError(f"'port' is {port}; give one from 0 to 65535.", name="port")
        try:
            self._http = _Http(routes, host, port)
        except OSError as error:
            raise MetricsError(_refusal(error, host, port)) from error
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


class _Http(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for those that answer
    block_on_close = True

    def __init__(self, routes: Routes, host: str, port: int) -> None:
        self.routes = routes
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # That of HTTPServer asks the name service who we are, which can take many seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no trouble of ours."""
        logger.debug("a client went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    timeout = _CLIENT_SECONDS
    server_version, sys_version = "fwdb", ""

    def _answer(self) -> None:
        try:
            reply = self.server.routes.reply(
                self.command, self.path, self.headers.get("Accept", "")
            )
        except Exception:
            logger.exception("%s cannot be answered", self.path.partition("?")[0])
            reply = internal_error()
        self._drain()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer

    def _drain(self) -> None:
        """Take what came with the request: closing with something unread resets the connection,
        and the client may lose the answer."""
        length = self.headers.get("Content-Length", "0")
        if length.isdigit():
            self.rfile.read(min(int(length), _MOST_BODY))

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)


def _refusal(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken by another program; choose another with --port, or 0 "
            "for a free one."
        )
    if error.errno == errno.EACCES:
        return (
            f"this account may not open port {port} of {host}; choose one above 1023 with --port."
        )
    reason = (error.strerror or str(error)).lower()
    return f"the metrics cannot be served at {host}, port {port} ({reason}); choose another --host."
