"""How long from a fault to the webhook, with the rules as shipped: a minute of waiting included.

    python benchmarks/alerts.py

A frozen MongoDB and a full pool at once, on built-in servers of its own, scraped and evaluated
every second by Prometheus, told by Alertmanager. Goal: within `for` + 5 s. Needs Debian's
packages prometheus and prometheus-alertmanager.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "metrics"))

from test_alerts_live import FAULTS, Watched, Webhook, watching

import fwdb
from fwdb import config, embedded, migrating
from fwdb.metrics import rules

FOR_SECONDS = 60  # of all three alerts
GIVE_UP_SECONDS = 180


def main() -> int:
    if not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")):
        print("left out: no prometheus or prometheus-alertmanager here")
        return 0
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as name:
        os.chmod(name, 0o755)
        folder, home = Path(name), Path(name, ".fwdb")
        servers = embedded.up(home, owner_pid=os.getpid(), idle_minutes=0)
        assert servers.postgres
        assert servers.mongodb
        settings = config.settings().model_copy(
            update={"pool_size": 2, "pool_max_overflow": 0, "pool_timeout_seconds": 300.0}
        )
        urls = {"postgres_url": servers.postgres.owner, "mongodb_url": servers.mongodb.owner}
        try:
            with fwdb.connect(**urls, settings=settings) as db:
                migrating.migrate(db.postgres, db.mongodb)
                webhook = Webhook()
                target = db.metrics.serve().url.removeprefix("http://")
                with watching(folder, target, webhook, rules()) as prometheus:
                    watched = Watched(home, servers, db, webhook, prometheus)
                    wait(lambda: is_scraped(watched))
                    return measure(watched)
        finally:
            embedded.remove(home)


def is_scraped(watched: Watched) -> bool:
    with contextlib.suppress(OSError):
        return len(watched.query("db_health_status == 1")) == 2
    return False


def measure(watched: Watched) -> int:
    left = {alert for name in ("frozen_mongodb", "full_pool") for alert in FAULTS[name][1]}
    late = False
    with FAULTS["frozen_mongodb"][0](watched), FAULTS["full_pool"][0](watched):
        began = time.monotonic()
        while left and time.monotonic() - began < GIVE_UP_SECONDS:
            for alert in sorted(left):
                if watched.webhook.fires(alert):
                    left.discard(alert)
                    seconds = time.monotonic() - began - FOR_SECONDS
                    late |= seconds > 5
                    print(f"{alert[0]:<26}{alert[2]:<10} for + {seconds:4.1f} s  (goal for + 5)")
            time.sleep(0.1)
    for alert in sorted(left):
        print(f"{alert[0]:<26}{alert[2]:<10} did not fire within {GIVE_UP_SECONDS} s")
    return int(late or bool(left))


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit("Prometheus read nothing within a minute.")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
