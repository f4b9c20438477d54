"""Real faults, seen by a real Prometheus and a real Alertmanager at a webhook, and seen to end.

In short the waiting times of the rules are a sixtieth of what is shipped: a minute is a second.
With FWDB_TEST_FULL=1 a healthy ten minutes under the shipped times come first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
from support.embedded import record
from support.promql import selectors
from support.receivers import receiving

import fwdb
from fwdb import config, embedded, migrating
from fwdb.database import Database
from fwdb.metrics import dashboard, rules
from fwdb.stores import PostgresStore

FULL = bool(os.environ.get("FWDB_TEST_FULL"))
SOAK_SECONDS = 600 if FULL else 5

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")),
        reason="install Debian's prometheus and prometheus-alertmanager",
    ),
]

Alert = tuple[str, str, str]  # name, severity, database


class Webhook(dict[Alert, str]):
    """What Alertmanager said last of each alert: ``firing`` or ``resolved``."""

    def __init__(self) -> None:
        self.ever: set[Alert] = set()  # that fired

    def take(self, message: dict[str, Any]) -> None:
        for alert in message["alerts"]:
            labels = alert["labels"]
            key = (labels["alertname"], labels["severity"], labels.get("database", ""))
            self[key] = alert["status"]
            self.ever |= {key} if alert["status"] == "firing" else set()

    @property
    def is_quiet(self) -> bool:
        return "firing" not in self.values()


@dataclass
class Watched:
    """Servers of their own with a replica, a process that tells of them, and who watches it."""

    home: Path
    servers: embedded.Servers
    db: Database
    webhook: Webhook
    prometheus: str

    def query(self, expression: str) -> list[Any]:
        """What Prometheus answers to `expression` now."""
        url = f"{self.prometheus}/api/v1/query?{urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
        return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scaled(text: str) -> str:
    """The rules with a second for each minute of waiting and of looking back."""
    text = re.sub(r"for: (\d+)m", r"for: \1s", text)
    return re.sub(r"\[(\d+)m\]", r"[\1s]", text).replace("[1d]", "[60s]")


@contextlib.contextmanager
def running(*command: str, folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def watching(folder: Path, target: str, webhook: Webhook, text: str) -> Iterator[str]:
    """Prometheus with Alertmanager behind it, scraping `target` every second."""
    web, alerts = free_port(), free_port()
    with receiving(lambda _, body: webhook.take(json.loads(body))) as hook:
        (folder / "rules.yml").write_text(text)
        (folder / "prometheus.yml").write_text(
            f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alerts}"]}}]}}]}}
scrape_configs: [{{job_name: fwdb, static_configs: [{{targets: ["{target}"]}}]}}]
"""
        )
        (folder / "alertmanager.yml").write_text(
            f"""
route: {{receiver: hook, group_by: ["..."], group_wait: 0s, group_interval: 1s}}
receivers: [{{name: hook, webhook_configs: [{{url: "http://127.0.0.1:{hook}/"}}]}}]
"""
        )
        prometheus = (
            *("prometheus", "--config.file=prometheus.yml"),
            *("--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{web}"),
        )
        alertmanager = (
            *("prometheus-alertmanager", "--config.file=alertmanager.yml"),
            *("--storage.path=alerts", f"--web.listen-address=127.0.0.1:{alerts}"),
            "--cluster.listen-address=",
        )
        with running(*alertmanager, folder=folder), running(*prometheus, folder=folder):
            yield f"http://127.0.0.1:{web}"


@contextlib.contextmanager
def followed(postgres_url: str, mongodb_url: str) -> Iterator[None]:
    """Changes of designs are recorded, as they are where all is well, by connections of their own.

    The small pool of what is watched would be full of them.
    """
    with (
        fwdb.connect(postgres_url=postgres_url, mongodb_url=mongodb_url) as db,
        db.audit.following(),
    ):
        yield


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("watched") / ".fwdb"
    folder = tmp_path_factory.mktemp("prometheus")
    servers = embedded.up(home, replica=True, owner_pid=os.getpid(), idle_minutes=0)
    assert servers.postgres
    assert servers.mongodb
    settings = config.settings().model_copy(
        update={"pool_size": 2, "pool_max_overflow": 0, "pool_timeout_seconds": 120.0}
    )
    webhook = Webhook()
    with fwdb.connect(
        postgres_url=servers.postgres.owner, mongodb_url=servers.mongodb.owner, settings=settings
    ) as db:
        migrating.migrate(db.postgres, db.mongodb)
        db.seeder.seed_all()
        target = db.metrics.serve().url.removeprefix("http://")
        text = rules() if FULL else scaled(rules())
        with (
            followed(servers.postgres.owner, servers.mongodb.owner),
            watching(folder, target, webhook, text) as prometheus,
        ):
            yield Watched(home, servers, db, webhook, prometheus)
    embedded.remove(home)


def work(db: Database) -> None:
    """A little of everything that goes well."""
    user = db.users.first()
    assert user
    with db.transaction():
        db.audit.log_read("User", user.id)
    db.users.frame()
    db.designs.find(status="published")


def test_a_healthy_run_raises_no_alert(watched, wait_until):
    """Work, rest, in full a restart of everything, and not one alert.

    Every panel of the dashboard has something to draw.
    """
    panels = {
        target["expr"]: panel["title"]
        for panel in json.loads(dashboard())["panels"]
        for target in panel.get("targets", [])
    }
    without = dict(panels)

    def every_panel_has_data() -> bool:
        work(watched.db)
        with contextlib.suppress(OSError):  # Prometheus is starting
            for expression in list(without):
                if has_data(watched, expression):
                    del without[expression]
        return not without

    wait_until(every_panel_has_data, timeout=90, what=f"data for {sorted(without.values())}")
    if not FULL:
        wait_until(lambda: watched.webhook.is_quiet, timeout=60)
        watched.webhook.ever.clear()  # five seconds without a first scrape are an alert there
    began, restarted = time.monotonic(), not FULL
    while (gone := time.monotonic() - began) < SOAK_SECONDS:
        if gone % 20 < 10:
            work(watched.db)
        else:
            threading.Event().wait(1)  # the half of the time that is idle
        if not restarted and gone > SOAK_SECONDS / 2:
            restarted = True
            restart(watched)

    assert watched.webhook.ever == set()


def restart(watched: Watched) -> None:
    """The servers and the process's endpoint end and come back at their places."""
    server = watched.db.metrics.serve()
    server.close()
    embedded.down(watched.home)
    embedded.up(watched.home, replica=True, owner_pid=os.getpid(), idle_minutes=0)
    watched.db.metrics.serve(server.port)


def has_data(watched: Watched, expression: str) -> bool:
    asked = expression.replace("$__rate_interval", "10s").replace("$job", "fwdb")
    assert selectors(asked)
    return bool(watched.query(asked.replace("$instance", ".+")))


@pytest.mark.skipif(FULL, reason="waits are those that are shipped; the short form has the faults")
@pytest.mark.parametrize("fault", ["frozen_mongodb", "full_pool", "paused_replica", "lost_replica"])
def test_a_fault_is_told_and_told_to_be_over(watched, fault, wait_until):
    """The alert that names it fires at the webhook, and is resolved there after the mend."""
    breaking, alerts = FAULTS[fault]
    said = watched.webhook
    with breaking(watched):
        wait_until(lambda: {said.get(one) for one in alerts} == {"firing"}, 60, what=str(alerts))
    wait_until(lambda: {said.get(one) for one in alerts} == {"resolved"}, 90, what=str(alerts))
    wait_until(lambda: said.is_quiet, timeout=90)


@contextlib.contextmanager
def frozen_mongodb(watched: Watched) -> Iterator[None]:
    """The process neither answers nor ends."""
    pid = record(watched.home, "mongodb")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def full_pool(watched: Watched) -> Iterator[None]:
    """Every connection of the pool is held, and a third caller waits."""
    free = threading.Event()

    def hold() -> None:
        with watched.db.postgres.connection():
            free.wait(120)

    holders = [threading.Thread(target=hold, daemon=True) for _ in range(3)]
    for holder in holders:
        holder.start()
    try:
        yield
    finally:
        free.set()
        for holder in holders:
            holder.join()


@contextlib.contextmanager
def paused_replica(watched: Watched) -> Iterator[None]:
    """The replica takes what is written and does not replay it."""
    assert watched.servers.replica
    replica = PostgresStore(watched.servers.replica.superuser or "")
    replica.rows(sa.text("SELECT pg_wal_replay_pause()"))
    try:
        work(watched.db)
        yield
    finally:
        replica.rows(sa.text("SELECT pg_wal_replay_resume()"))
        replica.close()


@contextlib.contextmanager
def lost_replica(watched: Watched) -> Iterator[None]:
    """The replica is gone, as after a crash of its machine."""
    os.kill(record(watched.home, "replica")["pid"], signal.SIGQUIT)
    try:
        yield
    finally:
        embedded.up(watched.home, replica=True, owner_pid=os.getpid(), idle_minutes=0)


FULL_POOL = ("HighConnectionPoolUsage", "ConnectionPoolStarved")
FAULTS: dict[str, tuple[Callable[..., Any], list[Alert]]] = {
    "frozen_mongodb": (frozen_mongodb, [("DatabaseUnhealthy", "critical", "mongodb")]),
    "full_pool": (full_pool, [(name, "critical", "postgres") for name in FULL_POOL]),
    "paused_replica": (paused_replica, [("HighReplicationLag", "warning", "postgres")]),
    "lost_replica": (lost_replica, [("ReplicaLost", "critical", "postgres")]),
}
