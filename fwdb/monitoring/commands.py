"""MongoDB commands of a window: those stored by every process, and those of this one since."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fwdb.monitoring.history import History
from fwdb.stores import CommandStats, MongoStore

_Key = tuple[str, str, str]

NOT_TIMED = (
    "no MongoDB command was timed in this window: a process times its own, and stores them while "
    "'db.monitor.sampling()' or 'fwdb workload' runs"
)


@dataclass(frozen=True, slots=True)
class CommandWindow:
    """The commands of a window; `reason` says why there are none."""

    commands: list[CommandStats]
    window: tuple[datetime, datetime]
    reason: str = ""
    coverage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Commands between two moments of this process, and its totals at the second."""

    commands: list[CommandStats]
    since: datetime
    at: datetime
    totals: dict[_Key, CommandStats]


class CommandLedger:
    """What this process has timed and not yet stored."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._stored: dict[_Key, CommandStats] = {}
        self._since = store.commands_since

    def pending(self) -> tuple[list[CommandStats], datetime]:
        """What is not stored yet, and since when it was collected."""
        with self._lock:
            return differences(self._stored, self._store.commands()), self._since

    def checkpoint(self) -> Checkpoint:
        """What is to be stored now; pass it to `settle` when it is stored."""
        with self._lock:
            at = datetime.now(UTC)
            now = {_key(command): command for command in self._store.commands()}
            return Checkpoint(differences(self._stored, now.values()), self._since, at, now)

    def settle(self, stored: Checkpoint) -> None:
        """Note that everything up to `stored` is in the history."""
        with self._lock:
            self._stored = stored.totals
            self._since = stored.at


def differences(
    earlier: dict[_Key, CommandStats], now: Iterable[CommandStats]
) -> list[CommandStats]:
    """What came after `earlier`, shapes without calls left out."""
    changed = (
        command.since(earlier[_key(command)]) if _key(command) in earlier else command
        for command in now
    )
    return [command for command in changed if command.calls]


def window(
    ledger: CommandLedger, history: History | None, since: datetime, until: datetime | None
) -> CommandWindow:
    """The commands of the window: stored ones of all processes, and unstored ones of this one.

    What is stored counts at the moment of storing, so the edges are as exact as the sampling is
    frequent. Unstored timings of this process that began before the window are left out.
    """
    end = until or datetime.now(UTC)
    found: dict[_Key, CommandStats] = {}
    if history is not None and not history.absence():
        for row in history.rows("stored_commands", since=since, until=end):
            command = CommandStats(**row, max_ms=0.0, histogram=())
            found[_key(command)] = command
    left_out = ""
    if until is None:
        pending, collected_since = ledger.pending()
        if collected_since >= since:
            for command in pending:
                found[_key(command)] = _sum(found.get(_key(command)), command)
        elif pending:
            left_out = (
                "this process has timed commands since before the window and not stored them: "
                "sample with 'db.monitor.sampling()'"
            )
    return CommandWindow(
        commands=list(found.values()),
        window=(since, end),
        reason="" if found else left_out or NOT_TIMED,
        coverage={"complete": not left_out, "sentence": left_out},
    )


def live(
    before: list[CommandStats], after: list[CommandStats], edges: tuple[datetime, datetime]
) -> CommandWindow:
    """The commands that this process sent between two moments."""
    found = differences({_key(command): command for command in before}, after)
    reason = "" if found else "this process sent no MongoDB command while it was watched"
    coverage = {"complete": False, "sentence": "commands of this process only"}
    return CommandWindow(found, edges, reason, coverage)


def _key(command: CommandStats) -> _Key:
    return command.command, command.namespace, command.shape


def _sum(one: CommandStats | None, other: CommandStats) -> CommandStats:
    if one is None:
        return other
    return CommandStats(
        command=one.command,
        namespace=one.namespace,
        shape=one.shape,
        calls=one.calls + other.calls,
        errors=one.errors + other.errors,
        total_ms=one.total_ms + other.total_ms,
        squares_ms2=one.squares_ms2 + other.squares_ms2,
        max_ms=0.0,
        documents=one.documents + other.documents,
        histogram=(),
    )
