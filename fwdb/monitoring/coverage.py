"""How much of what ran between two readings of pg_stat_statements they can show, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fwdb.monitoring.readings import Reading, moment, restarted

# A full pg_stat_statements drops 5 % of its entries at once, and ten at least
# (USAGE_DEALLOC_PERCENT in contrib/pg_stat_statements/pg_stat_statements.c).
_DROPPED_SHARE, _DROPPED_LEAST = 0.05, 10

# An idle session hands its counters in up to 10 s late (PGSTAT_IDLE_INTERVAL in pgstat.c).
# Below a minute that would decide the estimate.
LEAST_WINDOW = timedelta(seconds=60)


@dataclass(slots=True)
class Coverage:
    """How much of what ran between two readings they can show.

    `restarted` entries began anew, so that calls before are missing; `lost` ones are gone;
    `unknown` ones are older than the first reading, which did not have them, and are left out;
    `dealloc` is how often entries were dropped to make room, and `evicted` how many that were,
    about.

    `calls` and `total_ms` are what is visible, of fwdb too. Beside them stand two counters of
    the database that no eviction touches. Sessions worked for `active_ms`, planning and sending
    included, so that `time_percent` is the least that was seen of the time: a bound.
    `calls_percent`, calls ÷ `transactions`, is no bound but an estimate: a transaction of several
    calls makes it too high, and the empty one that a pool sends to see whether a connection
    lives makes it too low. So there is one only when something is known to be missing, and
    fewer calls are visible than transactions. `estimate` says why there are no such numbers.
    """

    restarted: int = 0
    lost: int = 0
    unknown: int = 0
    dealloc: int = 0
    evicted: int = 0
    max_entries: int = 0
    emptied: bool = False
    server_restarted: bool = False
    calls: int = 0
    total_ms: float = 0.0
    transactions: int | None = None
    active_ms: float | None = None
    estimate: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing."""
        return not (self.restarted or self.lost or self.unknown or self.dealloc or self.emptied)

    @property
    def calls_percent(self) -> float | None:
        """About what was seen of the calls."""
        if self.complete or not self.transactions or self.calls >= self.transactions:
            return None
        return 100 * self.calls / self.transactions

    @property
    def time_percent(self) -> float | None:
        """The least that was seen of the time in statements."""
        return min(100.0, 100 * self.total_ms / self.active_ms) if self.active_ms else None

    @property
    def sentence(self) -> str:
        """What is missing, for the reader; empty when nothing is known to be."""
        reasons = (
            (self.emptied, "all statistics were reset within the window"),
            (self.restarted, f"{_entries(self.restarted)} began anew"),
            (self.lost, f"{_entries(self.lost)} went away"),
            (
                self.dealloc,
                f"about {_entries(self.evicted)} evicted, in {self.dealloc} rounds, to make room "
                f"(raise pg_stat_statements.max from {self.max_entries})",
            ),
            (self.unknown, f"{_entries(self.unknown)} of unknown begin were left out"),
        )
        missing = ", ".join(text for there, text in reasons if there)
        told = [self.seen, f"totals are lower bounds: {missing}"] if missing else []
        if self.server_restarted:
            told.append("the server was restarted within the window")
        return "; ".join(filter(None, told))

    @property
    def seen(self) -> str:
        """The two estimates as one clause; empty without them."""
        parts = []
        if self.calls_percent is not None:
            parts.append(
                f"about {self.calls_percent:.0f} % of the calls were seen ({self.calls:,} beside "
                f"{self.transactions:,} transactions)"
            )
        if self.time_percent is not None:
            parts.append(f"at least {self.time_percent:.0f} % of the time in statements was seen")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For ``attrs`` of a frame."""
        names = (
            *("complete", "sentence", "seen", "estimate", "restarted", "lost", "unknown"),
            *("dealloc", "evicted", "max_entries", "emptied", "server_restarted"),
            *("calls", "transactions", "calls_percent", "time_percent"),
        )
        return {name: getattr(self, name) for name in names}


def between(first: Reading, second: Reading) -> Coverage:
    """What the state of the extension and of the database tells about the time between."""
    before, now = first.state, second.state
    emptied = _emptied(first, second)
    dealloc = now["dealloc"] if emptied else max(0, now["dealloc"] - before["dealloc"])
    found = Coverage(
        dealloc=dealloc,
        evicted=dealloc * max(_DROPPED_LEAST, int(_DROPPED_SHARE * now["max_entries"])),
        max_entries=now["max_entries"],
        emptied=emptied,
        server_restarted=restarted(first, second),
    )
    transactions = now["transactions"] - before["transactions"]
    active_ms = now["active_ms"] - before["active_ms"]
    if second.read_at - first.read_at < LEAST_WINDOW:
        found.estimate = "a window under one minute is too short to compare with other counters"
    elif _later(moment(now["database_reset_at"]), first) or transactions < 0 or active_ms < 0:
        found.estimate = "the counters of the database were reset within the window"
    else:
        found.transactions, found.active_ms = transactions, active_ms
    return found


def _emptied(first: Reading, second: Reading) -> bool:
    """Whether all entries were removed: by a reset, or by a restart that could not keep them."""
    if second.reset_at != first.reset_at and _later(second.reset_at, first):
        return True
    if not restarted(first, second):
        return False
    if second.reset_at != first.reset_at or second.state["dealloc"] < first.state["dealloc"]:
        return True  # after a crash the time of the last reset is that of no reset
    if second.state["dealloc"] > first.state["dealloc"]:
        return False  # what fell or went away may have been evicted
    gone: int = sum(
        key not in second.rows or second.rows[key]["calls"] < row["calls"]
        for key, row in first.rows.items()
    )
    return gone > len(first.rows) / 2


def _later(moment: datetime | None, first: Reading) -> bool:
    return moment is not None and moment > first.read_at


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"
