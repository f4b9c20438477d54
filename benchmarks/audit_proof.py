"""How fast the audit trail is sealed and verified, and what that costs writers and memory.

    python benchmarks/audit_proof.py [rows]

A million rows of one year by default, written as one import, which is the worst case: all of
one transaction. Then the same number split among many transactions. FWDB_TEST_POSTGRES_URL names a
server to use; without it the built-in one. `ratio` is the median time of single-row inserts while
the sealer runs, divided by that while it does not, in turns.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import threading
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fwdb import config, embedded, migrating
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

ROWS = """
INSERT INTO audit.audit_logs (
    user_id, entity_type, entity_id, action, old_values, new_values, ip_address, user_agent,
    created_at, origin
)
SELECT gen_random_uuid(), 'CatalogItem', gen_random_uuid(), 'UPDATE',
    jsonb_build_object('name', 'Old name ' || g, 'price', g % 1000, 'updated_at', now()),
    jsonb_build_object('name', 'New name ' || g, 'price', g % 1000, 'updated_at', now()),
    '192.0.2.7', 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0',
    now() - (CAST(:of AS int) - g) * interval '365 days' / CAST(:of AS int), 'trigger'
FROM generate_series(CAST(:since AS int), CAST(:until AS int)) AS g
"""
ONE = sa.text(
    "INSERT INTO audit.audit_logs (entity_type, entity_id, action)"
    " VALUES ('User', gen_random_uuid(), 'READ')"
)


def main(rows: int) -> None:
    """Print the figures."""
    given = os.environ.get("FWDB_TEST_POSTGRES_URL")
    if given is None:
        running = embedded.up(stores=("postgres",))
        assert running.postgres
        given = running.postgres.superuser
    admin = PostgresStore(given)
    settings = config.settings().model_copy(update={"statement_timeout_seconds": 600.0})
    for name, transactions in (("one transaction", 1), ("many transactions", 1000)):
        database = f"bench_proof_{os.getpid()}"
        admin.execute(sa.text(f"CREATE DATABASE {database}"))
        url = make_url(given).set(database=database).render_as_string(hide_password=False)
        store = PostgresStore(url, settings=settings)
        try:
            migrating.migrate(store, None)
            fill(store, rows, transactions)
            measure(store, rows, name)
        finally:
            store.close()
            admin.execute(sa.text(f"DROP DATABASE {database} WITH (FORCE)"))
    admin.close()


def fill(store: PostgresStore, rows: int, transactions: int) -> None:
    months = "audit.add_partitions(CAST(now() - interval '13 months' AS date), current_date)"
    store.rows(sa.text(f"SELECT {months}"))
    size = -(-rows // transactions)
    for since in range(1, rows + 1, size):
        until = min(rows, since + size - 1)
        store.execute(sa.text(ROWS), {"of": rows, "since": since, "until": until})
    store.execute(sa.text("ANALYZE audit.audit_logs"))


def measure(store: PostgresStore, rows: int, name: str) -> None:
    audit = Audit(store)
    seconds, _ = timed(audit.seal)
    print(f"{name}: sealed    {rows / seconds:>9,.0f} rows/s")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds, found = timed(audit.verify)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert found.intact, found.summary
        cpu = after.ru_utime - before.ru_utime
        print(
            f"{name}: verified  {rows / seconds:>9,.0f} rows/s, own CPU "
            f"{1e6 * cpu / rows:.1f} µs a row, peak memory {after.ru_maxrss / 1024:,.0f} MB"
        )
    print(f"{name}: writers while sealing, ratio {ratio(store, audit):.2f}")
    size = store.rows(
        sa.text("SELECT pg_total_relation_size('audit.seals') AS n"),
    )[0]["n"]
    print(f"{name}: seals take {size / rows:.0f} bytes a row")


def timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def ratio(store: PostgresStore, audit: Audit) -> float:
    """Time of an insert beside a sealer that never rests, to that without one."""
    quiet, sealing = [], []
    for _ in range(5):
        quiet.append(inserts(store))
        ended = threading.Event()
        thread = threading.Thread(target=audit.run_sealer, kwargs={"interval": 0.01, "stop": ended})
        thread.start()
        sealing.append(inserts(store))
        ended.set()
        thread.join()
    return statistics.median(sealing) / statistics.median(quiet)


def inserts(store: PostgresStore) -> float:
    return statistics.median(timed(lambda: store.execute(ONE))[0] for _ in range(200))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
