"""The paths that are answered over HTTP, whatever the server: status, headers and body."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from fwdb.metrics import exposition

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

JSON = "application/json; charset=utf-8"

# What a proxy keeps of a health check is wrong a second later.
_FRESH = {"Cache-Control": "no-cache, no-store, must-revalidate"}

_METHODS = "GET, HEAD"


class Source(Protocol):
    """What the routes give out."""

    registry: CollectorRegistry

    def json(self) -> list[dict[str, Any]]: ...
    def health(self, *, details: bool = False) -> tuple[int, dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; the body of one to HEAD is left out by the server, its length is not."""

    status: int
    headers: dict[str, str]
    body: bytes


class Routes:
    """Answers requests. Nothing of a request but its path and `Accept` reaches anything."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._paths: dict[str, Callable[[str], Reply]] = {
            "/metrics": self._metrics,
            "/metrics/json": lambda _: _json(200, self._source.json()),
            "/health": lambda _: self._health(details=False),
            "/health/database": lambda _: self._health(details=True),
            "/health/live": lambda _: _json(200, {"status": "ok"}, _FRESH),
        }

    def reply(self, method: str, path: str, accept: str = "") -> Reply:
        """The answer to a request, whatever it asks for."""
        answer = self._paths.get(path)
        if method not in {"GET", "HEAD"}:
            return _error(405, f"only {_METHODS} are answered here", {"Allow": _METHODS})
        if answer is None:
            return _error(404, f"there is nothing here; the paths are {', '.join(self._paths)}")
        try:
            return answer(accept)
        except Exception:
            logger.exception("%s cannot be answered", path)
            return _error(500, "this cannot be answered now; the log of the process says why")

    def wsgi(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The WSGI application; mounted below a path, it answers below it."""
        method = environ.get("REQUEST_METHOD", "GET")
        reply = self.reply(method, environ.get("PATH_INFO", ""), environ.get("HTTP_ACCEPT", ""))
        status = HTTPStatus(reply.status)
        start_response(f"{status.value} {status.phrase}", list(reply.headers.items()))
        return [] if method == "HEAD" else [reply.body]

    def _metrics(self, accept: str) -> Reply:
        content_type = exposition.negotiate(accept)
        body = exposition.write(self._source.registry.collect(), content_type)
        return _reply(200, body, content_type)

    def _health(self, *, details: bool) -> Reply:
        status, body = self._source.health(details=details)
        return _json(status, body, _FRESH)


def _reply(
    status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
) -> Reply:
    usual = {"Content-Type": content_type, "Content-Length": str(len(body)), "Server": "fwdb"}
    return Reply(status, {**usual, **(headers or {})}, body)


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Reply:
    # allow_nan: Python would write NaN, which no parser of JSON reads.
    body = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    return _reply(status, body, JSON, headers)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Reply:
    body = f"{HTTPStatus(status).phrase}: {sentence}.\n".encode()
    return _reply(status, body, "text/plain; charset=utf-8", headers)
