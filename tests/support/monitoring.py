"""What the tests of monitoring share: statements to recognise, readings by hand, other roles."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import sqlalchemy as sa

from fwdb.monitoring import statements
from fwdb.monitoring.readings import Reading, jsonable
from fwdb.stores import PostgresStore
from support.urls import url_of as url_of

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
NO_MONGODB = "mongodb://127.0.0.1:1/nothing?serverSelectionTimeoutMS=200"

# Tables of `watched`, by which statements are recognised: names of columns make no other one.
WORDS = (
    "apples", "cherries", "dates", "figs", "hidden_one", "kiwis", "grapes", "lemons", "limes",
    "melons", "mended", "other", "pears", "plums", "rest",
)  # fmt: skip


def do(store: PostgresStore, *texts: str) -> None:
    for text in texts:
        store.execute(sa.text(text))


def ask(store: PostgresStore, text: str, **parameters: Any) -> list[dict[str, Any]]:
    return store.rows(sa.text(text), **parameters)


def stored(store: PostgresStore, table: str, where: str = "true") -> int:
    """Rows of a table of the schema `monitoring`."""
    return int(ask(store, f"SELECT count(*) AS n FROM monitoring.{table} WHERE {where}")[0]["n"])


def set_back(store: PostgresStore, interval: str = "1 hour") -> None:
    """Let all stored readings be of so long ago."""
    do(store, f"UPDATE monitoring.readings SET read_at = read_at - interval '{interval}'")


def flush(store: PostgresStore) -> None:
    """Counters of this session reach the server's statistics at once."""
    with store.connection() as connection:
        connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        connection.execute(sa.text("SELECT 1"))


def forget(store: PostgresStore, query_id: int = 0) -> None:
    """Remove this database's entries from pg_stat_statements, or one of them."""
    ask(
        store,
        "SELECT pg_stat_statements_reset(0, oid, :query_id) FROM pg_database "
        "WHERE datname = current_database()",
        query_id=query_id,
    )


def run(store: PostgresStore, word: str, times: int, seconds: float = 0) -> None:
    """The statement that is recognised by its table `word`."""
    for _ in range(times):
        ask(store, f"SELECT pg_sleep(:n), (SELECT count(*) FROM {word})", n=seconds)


def found(frame: pd.DataFrame, word: str) -> pd.Series:
    """The row of that statement."""
    rows = frame[frame["statement"].str.contains(f"FROM {word})", regex=False)]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def reading(minutes: float, *entries: dict[str, Any], **more: Any) -> Reading:
    """A reading of pg_stat_statements so many minutes after noon."""
    kept = {
        "server_started_at": NOON - timedelta(days=1),
        **dict.fromkeys(("stats_reset", "database_reset_at")),
        "dealloc": 0,
        "max_entries": 100,
        "io_timed": True,
        "plans_timed": False,
        "transactions": 0,
        "active_ms": 0.0,
    }
    at = NOON + timedelta(minutes=minutes)
    return statements.reading(at, jsonable(kept | more), list(entries))


def entry(calls: int, since: float | None = -60, **more: Any) -> dict[str, Any]:
    """An entry of it; before PostgreSQL 17 none tells `since` when it is there."""
    began = None if since is None else NOON + timedelta(minutes=since)
    return {
        "user_id": 10,
        "database_id": 5,
        "toplevel": True,
        "query_id": 1,
        "calls": calls,
        "total_ms": 10.0 * calls,
        "squares_ms2": 100.0 * calls,
        "row_count": calls,
        "hit_blocks": calls,
        "read_blocks": 0,
        "read_ms": 0.0,
        "temp_blocks": 0,
        "wal_bytes": 0,
        "plan_ms": 0.0,
        "stats_since": began,
        **more,
    }


@contextmanager
def wire(store: PostgresStore, delay: float = 0) -> Iterator[tuple[str, threading.Event]]:
    """The URL of the same database through a wire whose first word takes the `delay`, and that is
    silent while the event is set."""
    frozen, ended = threading.Event(), threading.Event()
    sockets: list[socket.socket] = []

    def copy(source: socket.socket, sink: socket.socket, pause: float) -> None:
        ended.wait(pause)
        with suppress(OSError):
            while block := source.recv(65536):
                while frozen.is_set() and not ended.is_set():
                    ended.wait(0.01)
                sink.sendall(block)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((store.url.host, store.url.port or 5432))
                sockets.extend((near, far))
                for ends, pause in (((near, far), delay), ((far, near), 0.0)):
                    threading.Thread(target=copy, args=(*ends, pause), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield url_of(store, host="127.0.0.1", port=listener.getsockname()[1]), frozen
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for one in sockets:
            one.close()
