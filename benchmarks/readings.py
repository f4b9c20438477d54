"""What a reading costs the server: light and full, at 1,000 tables and 5,000 statements.

    python benchmarks/readings.py [tables]

Time in the server as it counts it itself (pg_stat_statements), of all that fwdb asks and stores
for one reading; median of nine, light and full ones taken in turns. Ratios are against the light
reading of the same round.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa

from fwdb import config, embedded, migrating
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

ROUNDS = 9
STATEMENTS = 5000
OWN = """
SELECT coalesce(sum(total_exec_time), 0) AS ms, coalesce(sum(calls), 0) AS calls
FROM pg_stat_statements
WHERE query LIKE '%/* fwdb */%' AND toplevel AND dbid = (
    SELECT oid FROM pg_database WHERE datname = current_database()
)
"""


def spent(store: PostgresStore) -> float:
    """Milliseconds of all that fwdb has asked of the server so far."""
    return float(store.rows(sa.text(OWN))[0]["ms"])


def fill(store: PostgresStore, tables: int) -> None:
    """Tables with two indexes each, and as many statement shapes as the extension keeps."""
    with store.transaction() as connection:
        for n in range(tables):
            connection.exec_driver_sql(
                f"CREATE TABLE t{n} (id int PRIMARY KEY, a text);"
                f"CREATE INDEX ON t{n} (a); INSERT INTO t{n} SELECT g, 'x' FROM "
                "generate_series(1, 50) AS g"
            )
    with store.connection() as connection:
        for n in range(STATEMENTS):
            connection.exec_driver_sql(f"SELECT 1 AS column_{n}")


def main() -> None:
    tables = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / ".fwdb"
        servers = embedded.up(home)
        assert servers.postgres
        assert servers.mongodb
        try:
            store = PostgresStore(servers.postgres.superuser or "")
            mongodb = MongoStore(servers.mongodb.owner)
            migrating.migrate(store, mongodb)
            fill(store, tables)
            with Database(store, mongodb, settings=config.settings()) as db:
                found: dict[str, list[float]] = {"light": [], "full": []}
                db.monitor.sample("full")  # the first one stores every text
                for _ in range(ROUNDS):
                    for kind, times in found.items():
                        before = spent(store)
                        db.monitor.sample(kind)  # type: ignore[arg-type]
                        times.append(spent(store) - before)
        finally:
            embedded.remove(home)
    medians = {kind: statistics.median(times) for kind, times in found.items()}
    print(f"{tables} tables, {2 * tables} indexes, {STATEMENTS} statements; ms in the server")
    print(f"light reading   {medians['light']:7.2f}   (goal 2)")
    print(f"full reading    {medians['full']:7.2f}   (goal 100)")
    ratios = [full / light for full, light in zip(found["full"], found["light"], strict=True)]
    print(f"full of light   {statistics.median(ratios):7.1f} times")


if __name__ == "__main__":
    main()
