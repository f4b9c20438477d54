"""How fast the audit trail answers and records, over a million rows of one year.

    python benchmarks/audit.py [rows]

FWDB_TEST_POSTGRES_URL names a server to use (an account that may create databases); without it
the built-in one. Medians of wall time, through `Audit`, until the DataFrame is there.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fwdb import embedded, migrating
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

# 2,000 users and 50,000 entities of each kind, both skewed; every sixth row without values.
USERS = """
INSERT INTO shared.users (id, email, password_hash, first_name, last_name)
SELECT CAST(md5('u' || g) AS uuid), 'u' || g || '@example.com', 'x', 'A', 'B'
FROM generate_series(1, 2000) AS g
"""
ROWS = """
INSERT INTO audit.audit_logs (
    user_id, entity_type, entity_id, action, old_values, new_values, ip_address, user_agent,
    created_at
)
SELECT
    CASE WHEN random() < 0.97
        THEN CAST(md5('u' || (1 + floor(2000 * power(random(), 3)))) AS uuid)
    END,
    kind,
    CAST(md5(kind || (1 + floor(50000 * power(random(), 1.2)))) AS uuid),
    action,
    CASE WHEN action IN ('UPDATE', 'DELETE')
        THEN jsonb_build_object('name', 'Old name ' || g, 'price', g % 1000, 'updated_at', now())
    END,
    CASE WHEN action IN ('UPDATE', 'CREATE')
        THEN jsonb_build_object('name', 'New name ' || g, 'price', g % 1000, 'updated_at', now())
    END,
    '192.0.2.7',
    'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0',
    now() - (:rows - g) * interval '365 days' / :rows
FROM (
    SELECT
        g,
        (ARRAY['User', 'Avatar', 'CatalogItem', 'Design'])[1 + floor(4 * random())] AS kind,
        (ARRAY['CREATE', 'UPDATE', 'UPDATE', 'UPDATE', 'READ', 'DELETE'])[1 + floor(6 * random())]
            AS action
    FROM generate_series(1, :rows) AS g
) AS drawn
"""


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    server = os.environ.get("FWDB_TEST_POSTGRES_URL")
    if server is None:
        running = embedded.up(stores=("postgres",)).postgres
        assert running
        server = running.superuser
    name = f"bench_audit_{os.getpid()}"
    admin = PostgresStore(server)
    admin.execute(sa.text(f"CREATE DATABASE {name}"))
    store = PostgresStore(make_url(server).set(database=name).render_as_string(hide_password=False))
    try:
        migrating.migrate(store, None)
        months = "CAST(now() - interval '367 days' AS date), current_date"
        store.rows(sa.text(f"SELECT audit.add_partitions({months})"))
        with store.transaction(timeout_ms=600_000) as connection:
            connection.execute(sa.text(USERS))
            connection.execute(sa.text(ROWS), {"rows": rows})
        store.execute(sa.text("VACUUM ANALYZE audit.audit_logs"))
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
    show("history of one entity", 50, lambda: audit.history("User", entity))
    show("last 24 h of the busiest user", 50, lambda: audit.by_user(top, since="24h"))
    show("recent(100)", 50, lambda: audit.recent(100))
    show(
        "a field's changes in 7 days",
        10,
        lambda: audit.search(since="7d", changed_field="name"),
    )
    show("activity of 7 days by hour", 20, lambda: audit.activity("7d"))
    show("activity of a year by day", 5, lambda: audit.activity("365d"))
    show("actors of a year", 5, lambda: audit.actors("365d"))
    show("totals of a year", 5, lambda: audit.totals("365d"))
    show("bursts in 7 days", 10, lambda: audit.bursts("7d"))
    show("bursts in a year", 3, lambda: audit.bursts("365d"))

    def record() -> list[Any]:
        with store.transaction():
            audit.log_update("User", uuid.uuid4(), {"name": "a"}, {"name": "b"}, user_id=top)
        return [1]

    show("log_update in its own transaction", 200, record)


def most(store: PostgresStore, column: str, where: str) -> str:
    """The value of `column` with most rows."""
    statement = sa.text(
        f"SELECT {column} AS value FROM audit.audit_logs WHERE {where}"
        f" GROUP BY {column} ORDER BY count(*) DESC LIMIT 1"
    )
    return str(store.rows(statement)[0]["value"])


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
