"""Over HTTP: the right status, headers and body for whoever asks, and a port that is free after."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse
from support.urls import url_of

from fwdb.database import Database
from fwdb.errors import MetricsError, ParameterError
from fwdb.metrics import MetricsServer
from fwdb.metrics import server as server_module
from fwdb.metrics.exposition import Exposition
from fwdb.monitoring import Health, StoreHealth

OPEN = "application/openmetrics-text;version=1.0.0,*/*;q=0.1"
PATHS = ["/metrics", "/metrics/json", "/health", "/health/database", "/health/live"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


Ask = Callable[..., Answer]


def over_http(db: Database) -> Ask:
    url = db.metrics.serve().url

    def ask(path: str, method: str = "GET", accept: str = "", body: bytes | None = None) -> Answer:
        request = urllib.request.Request(url + path, method=method, data=body)
        if accept:
            request.add_header("Accept", accept)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return Answer(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    return ask


def over_wsgi(db: Database) -> Ask:
    application = validator(db.metrics.wsgi)

    def ask(path: str, method: str = "GET", accept: str = "", body: bytes | None = None) -> Answer:
        plain, _, query = path.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": plain, "QUERY_STRING": query}
        environ["SCRIPT_NAME"] = ""
        setup_testing_defaults(environ)
        if accept:
            environ["HTTP_ACCEPT"] = accept
        found: list[tuple[str, list[tuple[str, str]]]] = []
        parts = application(environ, lambda status, headers: found.append((status, headers)))
        content = b"".join(parts)
        parts.close()
        ((status, headers),) = found
        return Answer(int(status[:3]), dict(headers), content)

    return ask


@pytest.fixture(params=[over_http, over_wsgi], ids=["http", "wsgi"])
def ask(request: pytest.FixtureRequest, module_db: Database) -> Ask:
    """Asks for a path, over our own server and as a part of somebody else's."""
    return request.param(module_db)


@pytest.mark.parametrize(
    ("path", "accept", "content_type"),
    [
        ("/metrics", "", "text/plain; version=0.0.4"),
        ("/metrics", OPEN, "application/openmetrics-text; version=1.0.0"),
        ("/metrics/json", "", "application/json"),
    ],
)
def test_metrics_come_in_the_format_asked_for(ask, path, accept, content_type):
    answer = ask(path, accept=accept)

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith(content_type)
    assert answer.body.endswith(b"# EOF\n") == bool(accept)
    body = answer.body.decode()
    read = parse_open if accept else parse
    names = {f["name"] for f in answer.json} if "json" in path else {f.name for f in read(body)}
    assert names >= {"db_health_status", "fwdb_build_info"}


@pytest.mark.parametrize("path", PATHS)
def test_head_gives_the_headers_without_the_body(ask, path):
    """Status and type are those of GET; no proxy keeps an answer about health."""
    head, get = ask(path, "HEAD"), ask(path)

    assert (head.status, head.body) == (get.status, b"") == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0
    assert int(get.headers["Content-Length"]) == len(get.body)
    kept = get.headers.get("Cache-Control") != "no-cache, no-store, must-revalidate"
    assert kept == path.startswith("/metrics")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_refused_with_the_ones_there_are(ask, path, method):
    answer = ask(path, method, body=b"x" * 1000 if method == "POST" else None)

    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.body.startswith(b"Method Not Allowed: ")
    assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/health/../metrics", "/healthz"])
def test_an_unknown_path_is_not_found(ask, path):
    """The client's own server answers 200 with metrics to any path, /health too."""
    answer = ask(path)

    assert answer.status == 404
    assert answer.body.decode().strip().endswith(f"{', '.join(PATHS)}.")
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_health_has_the_shape_of_terminus(ask):
    """info, error and details; an entry per store, with pool and schema where they are asked for.
    A query part, as a cache-buster, is no other path, and nothing of it reaches a database."""
    answer = ask("/health?t=1'; DROP TABLE x; --".replace(" ", "%20"))
    entries = ask("/health/database").json["details"]

    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert answer.json["error"] == {}
    assert answer.json["info"] == answer.json["details"]
    assert list(entries) == list(answer.json["details"]) == ["postgres", "mongodb"]
    assert entries["postgres"]["schema"]["current"] == entries["postgres"]["schema"]["head"]
    for entry in answer.json["details"].values():
        assert entry["status"] == "up"
        assert entry["responseTime"] > 0
        assert entry["version"]
    for pool in (entry["pool"] for entry in entries.values()):
        assert (pool["capacity"], pool["waiting"]) == (100, 0)
        assert pool["total"] == pool["active"] + pool["idle"]


def test_a_process_is_alive_without_any_database(alone):
    """A liveness probe that asks the database restarts everything in an outage."""
    with alone("postgresql://x@127.0.0.1:1/x", "mongodb://127.0.0.1:1/x") as db:
        assert over_http(db)("/health/live").json == {"status": "ok"}

        assert db.postgres.pool().opened == 0
        assert db.metrics._probes.postgres.pool().opened == 0


# -- failure modes --------------------------------------------------------------------------------

SECRETS = ("127.0.0.1", "ana", "s3cret", "nothing", "localhost", "mongodb://", "postgresql://")


def told(db: Database) -> Answer:
    """What both pages say; neither names a host, a user or a database."""
    ask = over_http(db)
    short, full = ask("/health"), ask("/health/database")
    assert full.status == short.status or full.json["status"] == "degraded"
    for answer in (short, full):
        assert not [word for word in SECRETS if word in answer.body.decode()]
    return full


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("database", "url", "message"),
    [
        ("postgres", "postgresql://ana:s3cret@127.0.0.1:1/nothing", "no connection could be made"),
        # Its driver tries again until the time is over.
        ("mongodb", "mongodb://ana:s3cret@127.0.0.1:1/nothing", ""),
        ("postgres", "postgresql://ana@127.0.0.1:{silent}/x", "it did not answer in time"),
        ("mongodb", "mongodb://127.0.0.1:{silent}/x", "it did not answer in time"),
        ("mongodb", "mongodb://ana:s3cret@{here}", "it refused the user or the password"),
    ],
)
def test_a_store_that_cannot_be_asked(module_db, alone, silent, database, url, message):
    """Frozen or unreachable looks the same from here: no answer. The other store is up."""
    here = url_of(module_db.mongodb).replace("mongodb://", "").rpartition("@")[2]
    with alone(**{database: url.format(silent=silent, here=here)}) as db:
        answer = told(db)

    assert (answer.status, answer.json["status"]) == (503, "error")
    assert list(answer.json["error"]) == [database]
    assert message in answer.json["error"][database]["message"]
    assert [entry["status"] for entry in answer.json["info"].values()] == ["up"]
    assert ("schema" in answer.json["details"]["postgres"]) == (database == "mongodb")


def test_a_full_pool_is_degraded_and_not_down(alone):
    with alone(pool_size=1, pool_max_overflow=0) as db, db.postgres.connection():
        answer = told(db)

    assert (answer.status, answer.json["status"]) == (200, "degraded")
    entry = answer.json["info"]["postgres"]
    assert entry["status"] == "degraded"
    assert "pool" in entry["message"]
    assert entry["pool"]["utilization"] == 100


def test_a_schema_that_is_behind(db, scrape):
    """Degraded, and 0 in the series, not absent: it is known."""
    db.postgres.execute(sa.text("UPDATE monitoring.alembic_version SET version_num = '0003'"))

    answer = told(db)

    assert (answer.status, answer.json["status"]) == (200, "degraded")
    entry = answer.json["info"]["postgres"]
    assert entry["schema"]["current"] == "0003"
    assert "fwdb migrate" in entry["message"]
    assert scrape(db).each("db_schema_current") == [0]


def test_every_cause_has_a_fixed_sentence():
    """So that none falls back to what a driver said."""
    from typing import get_args

    from fwdb.monitoring.health import Cause

    assert set(get_args(Cause)) <= set(server_module.SENTENCES)
    store = StoreHealth("postgres", "down", None, "host db.example", None, ("unreachable",))
    assert "db.example" not in json.dumps(server_module.health_answer(Health("down", (store,))))


# -- life -----------------------------------------------------------------------------------------


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_serving_ends_with_the_database(alone):
    """The port is free and no thread is left; a hundred calls are one server. Closed before, it can
    be served again at the same port, as a cell of a notebook does that is run again."""
    before = set(threading.enumerate())
    with alone() as db:
        port = db.metrics.serve().port
        over_http(db)("/health/live")
        db.metrics.serve().close()
        assert db.metrics.serve(port).port == port
        servers = {id(db.metrics.serve()) for _ in range(100)}
        server = db.metrics.serve()
        assert server.host == "127.0.0.1"
        assert over_http(db)("/metrics").status == 200
        assert not free(server.port)
        assert server.url in repr(db.metrics)

    assert len(servers) == 1
    assert server.is_closed
    assert free(server.port)
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("fwdb-serve")]
    assert left == []


def test_an_address_that_cannot_be_served_is_refused_with_the_remedy(module_db):
    """A second port too, rather than ignored: somebody would wait for it in vain."""
    serve, server = module_db.metrics.serve, module_db.metrics.serve()
    with pytest.raises(MetricsError, match=server.url):
        serve(server.port - 1 if server.port > 2000 else server.port + 1)
    server.close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MetricsError, match=rf"port {port} .* taken .* --port"):
            serve(port)
    for port in (-1, 70000):
        with pytest.raises(ParameterError, match="65,535"):
            serve(port)
    with pytest.raises(MetricsError, match="--host"):
        serve(0, host="192.0.2.1")


def test_a_mistake_of_ours_is_a_500_without_its_words(module_db, monkeypatch, caplog):
    """The log has them; the next request is answered as ever."""

    def fail() -> None:
        raise KeyError("host db.example")

    ask = over_http(module_db)
    monkeypatch.setattr(module_db.metrics._health, "read", fail)
    answer = ask("/health")

    assert answer.status == 500
    assert b"db.example" not in answer.body
    assert "/health cannot be answered" in caplog.text
    assert ask("/health/live").status == 200


# -- hostile clients ------------------------------------------------------------------------------


def said(server: MetricsServer, request: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)  # sends what is taken
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


LIVE = b"GET /health/live HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (LIVE + b"\r\n", 200),  # no Host
        (b"GET /health/live\r\n\r\n", 200),
        (b"TRACE /metrics HTTP/1.1\r\nHost: <x>\r\n\r\n", 405),
        (b"PROPFIND /health/live HTTP/1.1\r\n\r\n", 405),
        (b"get /health/live HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nContent-Length: 900000\r\n\r\n" + b"<" * 900_000, 405),
        (b"\x16\x03\x01\x02\x00\x01 TLS\r\n\r\n", 400),
        (b"<script>\r\n\r\n", 400),
        (b"GET /<script> HTTP/1.x\r\n\r\n", 400),
        (b"GET /<script> HTTP/2.0\r\n\r\n", 505),
        (b"GET /" + b"a" * 900_000 + b" HTTP/1.1\r\n\r\n", 414),
        (LIVE + b"A: " + b"<" * 900_000 + b"\r\n\r\n", 431),
        (LIVE + (b"A: " + b"<" * 1000 + b"\r\n") * 90 + b"\r\n", 431),
        (LIVE + b"A: b\r\n" * 101 + b"\r\n", 431),
    ],
    ids=range(14),
)
def test_any_request_gets_one_plain_answer(module_db, request_, status):
    """A reset would lose it, and a page of HTML would be a place for what the request holds."""
    head, _, body = said(module_db.metrics.serve(), request_).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert b"Content-Type: " + (b"app" if status == 200 else b"text/plain") in head
    assert (b"Allow: GET, HEAD" in head) == (status == 405)
    assert not {b"<", b"script"} & set(re.findall(b"<|script|Python", head + body))


PARTS = st.sampled_from(
    ["application/openmetrics-text", "text/plain", "version=", "escaping=", "1.0.0", "x", ";", ","]
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@example(accept="application/openmetrics-text;version=x")
@example(accept="text/plain;version=1.0.0.\xb2")
@given(accept=st.lists(PARTS | st.text(st.characters(max_codepoint=255)), max_size=9).map("".join))
def test_any_accept_header_is_answered(accept):
    content_type, _ = Exposition(CollectorRegistry()).negotiated(accept)

    assert content_type in {CONTENT_TYPE_PLAIN_0_0_4, CONTENT_TYPE_LATEST}


def test_many_scrapes_at_once_are_all_answered(module_db, monkeypatch):
    """Also when they come while the server is busy with another: they wait in the backlog."""
    server, busy = module_db.metrics.serve(), threading.Event()
    monkeypatch.setattr(server_module._Http, "service_actions", lambda _: busy.wait(30))
    with ExitStack() as stack:
        address = (server.host, server.port)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(64)
        ]
        busy.set()
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        found = [b"".join(iter(lambda c=c: c.recv(1 << 16), b"")) for c in clients]

    assert {answer[:12] for answer in found} == {b"HTTP/1.0 200"}
    assert all(b"db_health_status" in answer for answer in found)


@pytest.fixture
def large() -> Iterator[MetricsServer]:
    """A server whose answers are larger than all buffers on the way."""

    def answer(_: object, start: Callable[..., object]) -> list[bytes]:
        start("200 OK", [])
        return [b"x" * (1 << 26)]

    server = MetricsServer(answer, "127.0.0.1", 0)
    yield server
    server.close()


@contextmanager
def slow(server: MetricsServer, kind: str) -> Iterator[socket.socket]:
    """A client that never comes to an end."""
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not ended.wait(0.05):
                client.sendall(b"x")

    with socket.create_connection((server.host, server.port), timeout=30) as client:
        line = {"silent": b"", "reader": LIVE + b"\r\n"}.get(kind, LIVE)
        client.sendall(line)
        dripping = threading.Thread(target=drip, daemon=True)
        if kind == "head":
            dripping.start()
        elif kind == "reader":
            client.recv(1)
        yield client
        ended.set()
        if kind == "head":
            dripping.join()


SLOW = pytest.mark.parametrize("kind", ["silent", "head", "reader"])


@SLOW
def test_a_slow_client_is_cut_off(large, kind, monkeypatch, wait_until):
    """One byte now and then keeps no thread for ever."""
    monkeypatch.setattr(server_module, "_CLIENT_SECONDS", 0.3)
    with slow(large, kind) as client:
        if kind != "reader":  # which was answered already; the others see that they are cut off
            client.settimeout(10)
            with suppress(ConnectionError):
                assert client.recv(1) == b""
        wait_until(lambda: not large._http._clients)


@SLOW
def test_closing_waits_for_no_slow_client(large, kind, monkeypatch):
    monkeypatch.setattr(server_module, "_CLOSE_SECONDS", 1)
    with slow(large, kind):
        begun = time.monotonic()
        large.close()

    assert time.monotonic() - begun < 10
    assert free(large.port)


def test_an_answer_on_its_way_is_sent_before_the_server_is_closed(wait_until):
    asked, go_on = threading.Event(), threading.Event()

    def answer(_: object, start: Callable[..., object]) -> list[bytes]:
        asked.set()
        go_on.wait(30)
        start("200 OK", [])
        return [b"whole"]

    server = MetricsServer(answer, "127.0.0.1", 0)
    with ThreadPoolExecutor(2) as pool:
        answered = pool.submit(said, server, LIVE + b"\r\n")
        asked.wait(30)
        closed = pool.submit(server.close)
        wait_until(lambda: free(server.port))
        go_on.set()
        closed.result(30)

        assert answered.result(30).endswith(b"whole")


def test_clients_that_say_nothing_hold_up_nobody(module_db, monkeypatch):
    """Each has a thread of its own; when there are too many, the oldest goes."""
    monkeypatch.setattr(server_module, "_MOST_CLIENTS", 4)
    ask, server = over_http(module_db), module_db.metrics.serve()

    with ExitStack() as clients:
        for _ in range(9):
            clients.enter_context(socket.create_connection((server.host, server.port)))
            assert ask("/health/live").status == 200
        assert len(server._http._clients) <= 4
