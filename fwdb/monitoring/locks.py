"""What sessions of PostgreSQL wait for: idle transactions, the blocking tree, wait events."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import UTC, datetime

import pandas as pd

from fwdb.monitoring.redaction import redacted_frame
from fwdb.stores import PostgresStore, frames

# A look costs the server a third of a millisecond, so ten in a second are no load, and a wait of
# 100 ms is seen once on average.
SAMPLES_PER_SECOND = 10

WAIT_COLUMNS = {
    "wait_type": "string",
    "wait_event": "string",
    "is_waiting": "boolean",
    "samples": "int64",
    "average_sessions": "float64",
    "share_percent": "float64",
}


def idle_transactions(store: PostgresStore) -> pd.DataFrame:
    """See `Monitor.idle_transactions`."""
    return redacted_frame(store.frame("idle_transactions"))


def blocking(store: PostgresStore) -> pd.DataFrame:
    """See `Monitor.blocking`."""
    return redacted_frame(store.frame("blocking"))


def wait_events(store: PostgresStore, live_seconds: float, samples: int | None) -> pd.DataFrame:
    """See `Monitor.wait_events`."""
    looks = samples or max(1, round(SAMPLES_PER_SECOND * live_seconds))
    sessions: Counter[tuple[str, str, bool]] = Counter()
    seen: Counter[tuple[str, str, bool]] = Counter()
    since, began = datetime.now(UTC), time.monotonic()
    pause = threading.Event()
    for look in range(looks):
        # By the clock and not by pauses of one length: a look takes time itself.
        pause.wait(max(0.0, began + look * live_seconds / looks - time.monotonic()))
        for row in store.rows("wait_events"):
            key = (row["wait_type"], row["wait_event"], row["is_waiting"])
            sessions[key] += row["sessions"]
            seen[key] += 1
    total = sum(sessions.values())
    rows = [
        [*key, seen[key], count / looks, 100 * count / total]
        for key, count in sorted(sessions.items(), key=lambda item: (-item[1], item[0]))
    ]
    frame = frames.from_rows(list(WAIT_COLUMNS), rows, WAIT_COLUMNS)
    frame.attrs.update(
        samples=looks,
        window={"since": since, "until": datetime.now(UTC)},
        status="ok" if rows else "no_data",
        reason="" if rows else "no session of a client was active at any of the looks",
    )
    return frame
