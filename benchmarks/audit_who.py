"""What it costs to say who acts, and to record what was read.

    python benchmarks/audit_who.py [rounds]

FWDB_TEST_POSTGRES_URL names a server to use (an account that may create databases); without it
the built-in one. The variants take turns in one process, on one connection; a ratio is the median
of one divided by the median of the other. On the same machine a round trip costs little: over a
network the number of round trips decides, which is four with a context and three without.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fwdb import embedded, migrating, models
from fwdb.audit import Audit
from fwdb.repositories import PostgresRepository
from fwdb.stores import PostgresStore

ACTOR = str(uuid.uuid4())
Variant = tuple[str, Callable[[], object]]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    server = os.environ.get("FWDB_TEST_POSTGRES_URL")
    if server is None:
        running = embedded.up(stores=("postgres",)).postgres
        assert running
        server = running.superuser
    name = f"bench_who_{os.getpid()}"
    admin = PostgresStore(server)
    admin.execute(sa.text(f"CREATE DATABASE {name}"))
    store = PostgresStore(make_url(server).set(database=name).render_as_string(hide_password=False))
    try:
        migrating.migrate(store, None)
        print(f"PostgreSQL {store.server_version // 10000}, {rounds} rounds")
        transactions(store, rounds)
        readings(store, rounds)
    finally:
        store.close()
        admin.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.close()


def transactions(store: PostgresStore, rounds: int) -> None:
    """A transaction of one statement that writes nothing, so that the rest of it shows."""
    audit = Audit(store)
    statement = sa.text("SELECT 1")

    def bare() -> None:
        with store.transaction() as connection:
            connection.execute(statement)

    def named() -> None:
        with audit.context(user_id=ACTOR, ip_address="192.0.2.7", reason="benchmark"):
            bare()

    compare(("transaction", bare), ("… in a context", named), rounds=rounds)


def readings(store: PostgresStore, rounds: int) -> None:
    items = PostgresRepository(store, models.catalog_items, models.CatalogItem)
    items.create_many({"name": f"Item {n}", "type": "fabric"} for n in range(1_000))
    read = items.with_read_audit()
    one = items.first().id  # type: ignore[union-attr]
    compare(("get", lambda: items.get(one)), ("… recorded", lambda: read.get(one)), rounds=rounds)
    compare(
        ("find 1,000", lambda: items.find()), ("… recorded", lambda: read.find()),
        rounds=max(5, rounds // 25),
    )  # fmt: skip
    compare(
        ("frame of 1,000", lambda: items.frame()), ("… recorded", lambda: read.frame()),
        rounds=max(5, rounds // 25),
    )  # fmt: skip


def compare(*variants: Variant, rounds: int) -> None:
    """Print each variant's median and its ratio to the first."""
    took: dict[int, list[float]] = {n: [] for n in range(len(variants))}
    for _, work in variants:
        work()
    for _ in range(rounds):
        for n, (_, work) in enumerate(variants):
            started = time.perf_counter()
            work()
            took[n].append(1000 * (time.perf_counter() - started))
    base = statistics.median(took[0])
    for n, (what, _) in enumerate(variants):
        median = statistics.median(took[n])
        print(f"{what:<24}{median:>10.3f} ms{median / base:>8.2f}")


if __name__ == "__main__":
    main()
