"""How fast a year of history is made and loaded: 1,000 users with 100,000 audit rows.

    python benchmarks/seeding.py

On built-in servers of its own; medians of three. The load includes users, avatars, catalog items
and 2,000 designs in MongoDB.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fwdb
from fwdb import embedded, migrating
from fwdb.seeding import volume

USERS, ROWS, ROUNDS = 1_000, 100_000, 3


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as folder:
        home = Path(folder) / ".fwdb"
        servers = embedded.up(home, owner_pid=os.getpid(), idle_minutes=0)
        assert servers.postgres
        assert servers.mongodb
        try:
            with fwdb.connect(
                postgres_url=servers.postgres.owner, mongodb_url=servers.mongodb.owner
            ) as db:
                migrating.migrate(db.postgres, db.mongodb)
                made, loaded, cleared = [], [], []
                for seed in range(1, ROUNDS + 1):
                    plan = volume.Plan.of(USERS, seed=seed, audit_rows=ROWS, until=None)
                    made.append(seconds(lambda plan=plan: list(volume.parts(plan))))
                    loaded.append(
                        seconds(
                            lambda seed=seed: db.seeder.seed_scale(
                                USERS, seed=seed, audit_rows=ROWS
                            )
                        )
                    )
                    cleared.append(seconds(lambda: db.seeder.clear_all(confirm=True)))
        finally:
            embedded.down(home)
    rate = ROWS / statistics.median(loaded)
    print(f"rows made, not loaded         {statistics.median(made):7.2f} s")
    print(f"made and loaded               {statistics.median(loaded):7.2f} s  (a few seconds)")
    print(f"audit rows a second           {rate:7,.0f}")
    print(f"all of it removed             {statistics.median(cleared):7.2f} s")


if __name__ == "__main__":
    main()
