"""`fwdb serve` and `fwdb metrics`, as a person or a service manager runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families as parse

from fwdb.database import Database


@pytest.fixture
def on_db(db: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Points the command line at the database of this test."""
    url = db.postgres.url.set(drivername="postgresql")
    monkeypatch.setenv("FWDB_POSTGRES_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("FWDB_MONGODB_URL", db.mongodb._given.get_secret_value())
    return db


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `fwdb serve`, and the address it printed."""
    command = [sys.executable, "-m", "fwdb.cli", "serve", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            if process.poll() is None:
                process.kill()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return reply.read().decode()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_samples_until_it_is_told_to_end(on_db, wait_until, kind):
    """It prints its address, stores readings, and ends well: no trace, the port is free."""
    with serving("--port", "0", "--interval", "1") as (process, url):
        text = get(url)
        assert {f.name for f in parse(text)} >= {"db_health_status", "db_queries"}
        base = url.removesuffix("/metrics")
        assert json.loads(get(f"{base}/health/database"))["status"] == "ok"
        count = sa.text("SELECT count(*) AS n FROM monitoring.readings")
        wait_until(lambda: on_db.postgres.rows(count)[0]["n"] >= 2, 30)
        process.send_signal(kind)
        _, said = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "Traceback" not in said
    assert "sampling every 1 s" in said
    assert said.strip().endswith("stopped.")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(base.rpartition(":")[2]))) != 0


def test_sigterm_ends_it_whatever_its_clients_do(on_db):
    """One sends nothing, one half a request, one does not read what it asked for."""
    with serving("--port", "0") as (process, url), ExitStack() as clients:
        port = int(url.rpartition(":")[2].partition("/")[0])
        for sent in (b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\n\r\n"):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(sent)
        assert "db_health_status" in get(url)
        process.send_signal(signal.SIGTERM)
        process.wait(10)

    assert process.returncode == 0


def test_who_may_only_read_is_served_all_the_same(on_db, monkeypatch):
    """It says that nothing is sampled, and why."""
    role = f"reader_{on_db.postgres.url.database}"
    on_db.postgres.execute(
        sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT pg_read_all_data TO {role}")
    )
    try:
        url = on_db.postgres.url.set(drivername="postgresql", username=role, password="x")
        monkeypatch.setenv("FWDB_POSTGRES_URL", url.render_as_string(hide_password=False))
        with serving("--port", "0") as (process, address):
            assert "db_health_status" in get(address)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    finally:
        on_db.postgres.execute(sa.text(f"DROP ROLE {role}"))

    assert process.returncode == 0
    assert "nothing is sampled: " in said
    assert "GRANT" in said


def test_a_taken_port_is_one_sentence_and_exit_code_1(on_db):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving("--port", str(port)) as (process, printed):
            _, said = process.communicate(timeout=60)

    assert (process.returncode, printed) == (1, "")
    assert len(said.strip().splitlines()) == 1
    assert f"port {port}" in said
    assert "--port" in said


def test_metrics_are_printed_as_they_are_served(on_db, tmp_path):
    """As text, and as JSON that every parser reads."""
    command = [sys.executable, "-m", "fwdb.cli", "metrics"]
    text, as_json = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], ["--json"])
    )

    names = {f.name + ("_total" if f.type == "counter" else "") for f in parse(text)}
    assert names == {family["name"] for family in json.loads(as_json, parse_constant=pytest.fail)}
    assert "db_health_status" in names
