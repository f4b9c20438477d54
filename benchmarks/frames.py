"""How much less work `frame()` is than `pandas.read_sql`: 10,000 audit rows of 11 columns.

    python benchmarks/frames.py

On a built-in server of its own, or on the one of FWDB_BENCH_POSTGRES_URL, in whose database the
tables are made. Prints medians of interleaved rounds: CPU time of this process, which another
load does not change, and the time on the clock. Ends with 1 if `frame()` is not 5 times cheaper.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import sqlalchemy as sa

from fwdb import embedded, migrating, queries
from fwdb.models import AUDIT_LOGS, audit_logs
from fwdb.repositories import PostgresRepository
from fwdb.stores import PostgresStore, frames

ROWS, ROUNDS, GOAL = 10_000, 15, 5.0
FILL = sa.text(
    """INSERT INTO audit.audit_logs (entity_type, entity_id, action, old_values, new_values,
           ip_address, user_agent, created_at)
       SELECT 'CatalogItem', gen_random_uuid(),
              (ARRAY['CREATE', 'UPDATE', 'DELETE', 'READ'])[1 + i % 4],
              CASE WHEN i % 3 = 0 THEN jsonb_build_object('name', 'Item ' || i, 'price', i) END,
              jsonb_build_object('name', 'Item ' || i, 'price', i + 1, 'tags', ARRAY['casual']),
              '10.0.' || i % 200 || '.7', 'Mozilla/5.0 (X11; Linux x86_64)',
              now() - i * interval '5 minutes'
       FROM generate_series(1, :rows) AS i"""
)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of an account that may make tables."""
    if given := os.environ.get("FWDB_BENCH_POSTGRES_URL"):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fwdb-bench-") as folder:
        home = Path(folder) / ".fwdb"
        servers = embedded.up(home, stores=("postgres",), owner_pid=os.getpid(), idle_minutes=0)
        assert servers.postgres
        try:
            yield servers.postgres.owner
        finally:
            embedded.down(home)


def measure(
    ways: dict[str, Callable[[], pd.DataFrame]], rows: int = ROWS
) -> dict[str, tuple[float, float]]:
    """Median CPU and wall milliseconds of each way, the ways taking turns."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            gc.collect()
            started, used = time.perf_counter(), time.process_time()
            assert len(way()) == rows
            cpu[name].append(1000 * (time.process_time() - used))
            wall[name].append(1000 * (time.perf_counter() - started))
    return {name: (statistics.median(cpu[name]), statistics.median(wall[name])) for name in ways}


def small(store: PostgresStore, rows: int) -> None:
    """The answer of a query file, which comes as rows, made into a frame of its types."""
    declared = queries.load("audit_search").columns
    given = dict.fromkeys(("since", "until", "entity_types", "users", "actions"))
    given |= dict.fromkeys(("changed_field", "changed_field_too"))
    fetched = store.rows("audit_search", **given, row_limit=rows)
    names, values = list(fetched[0]), [tuple(row.values()) for row in fetched]

    def of_pandas() -> pd.DataFrame:
        frame = pd.DataFrame(values, columns=names)
        types = {name: "str" for name in names if declared[name] == "string"}
        return frame.astype(types | {"transaction_id": "Int64"})

    ways = {"from_rows": lambda: frames.from_rows(names, values, declared), "pandas": of_pandas}
    found = measure(ways, rows)
    print(
        f"{rows:>5} rows of a query file: {found['from_rows'][0]:.2f} ms CPU, "
        f"DataFrame and astype {found['pandas'][0]:.2f} ms"
    )


def main() -> int:
    with server() as url, contextlib.closing(PostgresStore(url)) as store:
        migrating.migrate(store, None)
        months = "SELECT audit.add_partitions(current_date - 40, current_date)"
        store.rows(sa.text(months))
        store.execute(sa.text("TRUNCATE audit.audit_logs"))
        store.execute(FILL, {"rows": ROWS})
        logs = PostgresRepository(store, AUDIT_LOGS)
        newest = sa.select(audit_logs).order_by(audit_logs.c.created_at.desc())

        def read_sql() -> pd.DataFrame:
            with store.connection() as connection:
                return pd.read_sql(newest, connection)

        found = measure(
            {
                "frame()": lambda: logs.frame(sort="-created_at"),
                "pandas.read_sql": read_sql,
                "find()": lambda: pd.DataFrame({"id": logs.find(sort="-created_at")}),
            }
        )
        for rows in (10, 100, 1000):
            small(store, rows)
    for name, (cpu, wall) in found.items():
        print(f"{name:<18}{cpu:8.1f} ms CPU {wall:8.1f} ms")
    ratio = found["pandas.read_sql"][0] / found["frame()"][0]
    print(f"frame() takes 1/{ratio:.1f} of the CPU time of pandas.read_sql (goal: 1/{GOAL:.0f})")
    return int(ratio < GOAL)


if __name__ == "__main__":
    sys.exit(main())
