"""How fast the trail answers over two million rows of one year, and a table as it was.

    python benchmarks/audit_questions.py [rows]

FWDB_TEST_POSTGRES_URL names a server to use (an account that may create databases); without it
the built-in one. Medians of wall time, through `Audit`, until the DataFrame is there; of the two
smallest also the time in the server, planning included. The table of `as_of` has 100,000 rows, half
of which changed five times in the year, beside creations and removals; `SELECT *` of it is the
measure.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from audit import ROWS, USERS, most
from sqlalchemy.engine import make_url

from fwdb import embedded, migrating, queries
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

ITEMS = 100_000
TABLE = f"""
INSERT INTO catalog.catalog_items (id, name, description, type, properties, price, created_at)
SELECT CAST(md5('item' || g) AS uuid), 'Item ' || g, repeat('d', 100), 'fabric',
    jsonb_build_object('color', g, 'tags', jsonb_build_array('a', 'b')), g % 1000,
    now() - interval '400 days'
FROM generate_series(1, {ITEMS}) AS g
"""
# What a trigger leaves: five changes of every second item over the year.
CHANGES = f"""
INSERT INTO audit.audit_logs (
    entity_type, entity_id, action, old_values, new_values, origin, created_at
)
SELECT 'CatalogItem', CAST(md5('item' || (1 + g % ({ITEMS} / 2))) AS uuid), 'UPDATE',
    jsonb_build_object('price', g % 1000, 'updated_at', now()),
    jsonb_build_object('price', (g + 1) % 1000, 'updated_at', now()),
    'trigger', now() - g * interval '365 days' / (2.5 * {ITEMS})
FROM generate_series(1, 5 * {ITEMS} / 2) AS g
"""


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    server = os.environ.get("FWDB_TEST_POSTGRES_URL")
    if server is None:
        running = embedded.up(stores=("postgres",)).postgres
        assert running
        server = running.superuser
    name = f"bench_audit_questions_{os.getpid()}"
    admin = PostgresStore(server)
    admin.execute(sa.text(f"CREATE DATABASE {name}"))
    store = PostgresStore(make_url(server).set(database=name).render_as_string(hide_password=False))
    try:
        migrating.migrate(store, None)
        store.rows(
            sa.text(
                "SELECT audit.add_partitions(CAST(now() - interval '1 year' AS date), CURRENT_DATE)"
            )
        )
        with store.transaction(timeout_ms=0) as connection:
            # The rows are made here, and not recorded a second time.
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            for user_trigger in ("shared.users", "catalog.catalog_items"):
                connection.execute(sa.text(f"ALTER TABLE {user_trigger} DISABLE TRIGGER USER"))
            connection.execute(sa.text(USERS))
            connection.execute(sa.text(TABLE))
            connection.execute(sa.text(ROWS), {"rows": rows - 5 * ITEMS // 2})
            connection.execute(sa.text(CHANGES))
        store.execute(sa.text("VACUUM ANALYZE audit.audit_logs"))
        store.execute(sa.text("VACUUM ANALYZE catalog.catalog_items"))
        measure(store, rows)
    finally:
        store.close()
        admin.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.close()


def measure(store: PostgresStore, rows: int) -> None:
    audit = Audit(store)
    print(f"PostgreSQL {store.server_version // 10000}, {rows:,} rows of one year")
    top = most(store, "user_id", "user_id IS NOT NULL")
    entity = most(store, "entity_id", "entity_type = 'User'")
    item = str(store.rows(sa.text("SELECT CAST(md5('item7') AS uuid) AS id"))[0]["id"])
    show("history of one entity", 50, lambda: audit.history("User", entity))
    in_server(store, "audit_history", entity_type="User", entity_id=entity)
    show("timeline of one entity", 50, lambda: audit.timeline("User", entity))
    show("diff of one entity over 30 days", 50, lambda: audit.diff("User", entity, "30d"))
    show("last 24 h of the busiest user", 50, lambda: audit.by_user(top, since="24h"))
    nothing = dict.fromkeys(
        ("until", "entity_types", "actions", "changed_field", "changed_field_too", "row_limit")
    )
    day = datetime.now(UTC) - timedelta(hours=24)
    in_server(store, "audit_search", **nothing, since=day, users=[top])
    show("newest 50 of the busiest user", 50, lambda: audit.by_user(top, limit=50))
    show("who changed a field in 7 days", 10, lambda: audit.who_changed("name", since="7d"))
    show("one item 90 days ago", 20, lambda: audit.as_of("CatalogItem", "90d", id=item))
    everything = sa.text("SELECT * FROM catalog.catalog_items ORDER BY id")
    show(f"SELECT * of {ITEMS:,} rows", 3, lambda: store.frame(everything))
    for days in (7, 73, 365):
        show(f"the table {days} days ago", 3, lambda: audit.as_of("CatalogItem", f"{days}d"))  # noqa: B023
    show("designs replayed, 30 days ago", 3, lambda: audit.as_of("Design", "30d"))
    show("anomalies in 7 days", 3, lambda: audit.anomalies("7d"))
    show("anomalies in a year", 2, lambda: audit.anomalies("365d"))


def in_server(store: PostgresStore, name: str, **parameters: Any) -> None:
    """Planning and execution of a query file, as the server times them."""
    plan = sa.text("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + queries.load(name).text)
    took = []
    for _ in range(30):
        with store.connection() as connection:
            found = connection.execute(plan, parameters).scalar_one()[0]
        took.append(found["Planning Time"] + found["Execution Time"])
    print(f"{'  of it in the server':<38}{statistics.median(took):>10.1f} ms")


def show(what: str, rounds: int, ask: Callable[[], Any]) -> None:
    ask()
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        answer = ask()
        took.append(1000 * (time.perf_counter() - started))
    print(f"{what:<38}{statistics.median(took):>10.1f} ms{len(answer):>10,} rows")


if __name__ == "__main__":
    main()
