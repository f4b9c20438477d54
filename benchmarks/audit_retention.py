"""What it takes to end a month of the audit trail, and to ask for it afterwards.

    python benchmarks/audit_retention.py [rows]

Two million rows of 14 months. The time to detach and drop a month is measured beside the time to
export it, and beside the removal of as many rows by DELETE from a table in one piece. Questions are
asked of the table before and of table and files after, interleaved. FWDB_TEST_POSTGRES_URL names a
server to use (an account that may create databases); without it the built-in one.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fwdb import config, embedded, migrating
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

MONTHS = 14
RETENTION_DAYS = 365
ROUNDS = 7
ROWS = """
INSERT INTO audit.audit_logs (
    user_id, entity_type, entity_id, action, old_values, new_values, ip_address, user_agent,
    created_at
)
SELECT
    CAST(md5('u' || g % 2000) AS uuid),
    (ARRAY['User', 'Avatar', 'CatalogItem', 'Design'])[1 + g % 4],
    CAST(md5('e' || g % 50000) AS uuid),
    'UPDATE',
    jsonb_build_object('name', 'Old name ' || g, 'price', g % 1000, 'updated_at', now()),
    jsonb_build_object('name', 'New name ' || g, 'price', g % 1000, 'updated_at', now()),
    '192.0.2.7',
    'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0',
    now() - (:rows - g) * (now() - (date_trunc('month', now()) - make_interval(months => :months)))
        / :rows
FROM generate_series(1, :rows) AS g
"""


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    server = os.environ.get("FWDB_TEST_POSTGRES_URL")
    if server is None:
        running = embedded.up(stores=("postgres",)).postgres
        assert running
        server = running.superuser
    name = f"bench_retention_{os.getpid()}"
    admin = PostgresStore(server)
    admin.execute(sa.text(f"CREATE DATABASE {name}"))
    url = make_url(server).set(database=name).render_as_string(hide_password=False)
    patient = config.settings().model_copy(update={"statement_timeout_seconds": 600.0})
    store = PostgresStore(url, settings=patient)
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(store, Path(folder), rows)
    finally:
        store.close()
        admin.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.close()


def measure(store: PostgresStore, folder: Path, rows: int) -> None:
    settings = config.settings().model_copy(update={"audit_archive": folder})
    audit = Audit(store, settings=settings)
    migrating.migrate(store, None)
    fill(store, rows)
    print(f"PostgreSQL {store.server_version // 10000}, {rows:,} rows of {MONTHS} months")
    questions: dict[str, Callable[[Audit], object]] = {
        "history of one entity": lambda trail: trail.history("User", entity(store)),
        "recent(100)": lambda trail: trail.recent(100),
        "totals of all": lambda trail: trail.totals("900d"),
        "activity of all by month": lambda trail: trail.activity("900d", bucket="month"),
    }
    before = {asked: median(lambda q=ask: q(audit)) for asked, ask in questions.items()}
    started = time.perf_counter()
    kept = audit.retain(RETENTION_DAYS)
    seconds = time.perf_counter() - started
    gone = [m for m in kept.months if m.rows]
    for month in gone:
        assert month.export_ms is not None
        assert month.drop_ms is not None
        speed = 1000 * month.rows / month.export_ms
        print(
            f"month of {month.rows:,} rows: detached and dropped in {month.drop_ms:,.0f} ms, "
            f"exported in {month.export_ms:,.0f} ms ({speed:,.0f} rows/s)"
        )
    sizes = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"all of it {seconds:,.1f} s, {sizes / max(1, kept.removed):,.0f} bytes a row in files, "
        f"memory of this process at most {peak:,.0f} MiB"
    )
    trail = audit.with_archives()
    for asked, ask in questions.items():
        after = median(lambda q=ask: q(trail))
        print(
            f"{asked}: table {before[asked]:,.1f} ms, table and files {after:,.1f} ms, "
            f"ratio {after / before[asked]:.1f}"
        )
    removed, removal = by_delete(audit, store, gone[0].rows)
    print(
        f"for comparison, {removed:,} rows by DELETE in batches from a table in one piece: "
        f"{1000 * removal:,.0f} ms, {1000 * removal / (gone[0].drop_ms or 1):,.0f} times as long "
        "as detaching and dropping them"
    )


def fill(store: PostgresStore, rows: int) -> None:
    with store.transaction(timeout_ms=1_800_000) as connection:
        connection.execute(
            sa.text(
                "SELECT audit.add_partitions("
                "CAST(now() - make_interval(months => :months) AS date), current_date)"
            ),
            {"months": MONTHS},
        )
        connection.execute(sa.text(ROWS), {"rows": rows, "months": MONTHS})
    store.execute(sa.text("VACUUM ANALYZE audit.audit_logs"))


def by_delete(audit: Audit, store: PostgresStore, rows: int) -> tuple[int, float]:
    """As many rows of a table in one piece, which the service's own is."""
    for statement in (
        "ALTER TABLE audit.audit_logs RENAME TO by_months",
        "CREATE TABLE audit.audit_logs (LIKE audit.by_months INCLUDING DEFAULTS, PRIMARY KEY (id))",
        "CREATE INDEX ON audit.audit_logs (created_at DESC)",
        "CREATE INDEX ON audit.audit_logs (user_id, created_at DESC)",
        "CREATE INDEX ON audit.audit_logs (entity_type, entity_id)",
        f"INSERT INTO audit.audit_logs SELECT * FROM audit.by_months LIMIT {rows}",
        "UPDATE audit.audit_logs SET created_at = created_at - interval '3 years'",
        "ANALYZE audit.audit_logs",
    ):
        with store.transaction(timeout_ms=600_000) as connection:
            connection.execute(sa.text(statement))
    started = time.perf_counter()
    removed = audit.retain(RETENTION_DAYS).removed
    return removed, time.perf_counter() - started


def entity(store: PostgresStore) -> str:
    statement = sa.text("SELECT CAST(CAST(md5('e0') AS uuid) AS text) AS id")
    return str(store.rows(statement)[0]["id"])


def median(work: Callable[[], object]) -> float:
    """Milliseconds; the first run warms caches and does not count."""
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    main()
