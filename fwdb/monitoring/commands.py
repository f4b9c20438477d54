"""MongoDB's commands in a window: as their clients timed them, else as the server recorded them.

Every process times its own commands and stores them with its readings. The second source is
`system.profile`, where somebody switched it on: it sees the commands of all clients and knows how
many documents each examined, but holds only those above a threshold, maybe a sample, and forgets
the oldest. fwdb reads it and never switches it on: it costs every command a write.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fwdb.errors import FwdbError, PermissionDenied
from fwdb.monitoring.history import History
from fwdb.monitoring.statements import COUNTERS, INNER, StoreWindow, derived
from fwdb.stores import CommandStats, MongoStore
from fwdb.stores.commands import shape

Key = tuple[str, str, str]  # command, namespace, shape
Sums = dict[Key, dict[str, Any]]

_SUMS = ("calls", "errors", "total_ms", "squares_ms2", "documents")

NOT_TIMED = (
    "no MongoDB command was timed in this window: a process times its own, and stores them while "
    "'db.monitor.sampling()' or 'fwdb workload' runs"
)

_POSTGRES_ONLY = dict.fromkeys(
    (
        *("hit_blocks", "read_blocks", "blocks_per_call", "hit_ratio", "read_ms", "temp_bytes"),
        *(name for name in COUNTERS if name not in (*_SUMS, *INNER)),
    ),
    "MongoDB does not tell it per command",
)


class Checkpoint(NamedTuple):
    """Commands between two moments of this process, and its totals at the second."""

    commands: list[CommandStats]
    since: datetime
    at: datetime
    totals: dict[Key, CommandStats]


class CommandLedger:
    """What this process has timed and not yet stored."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._stored: dict[Key, CommandStats] = {}
        self._since = store.commands_since

    def checkpoint(self) -> Checkpoint:
        """What is to be stored now; pass it to `settle` when it is stored."""
        with self._lock:
            at = datetime.now(UTC)
            now = _keyed(self._store.commands())
            return Checkpoint(_later(self._stored, now), self._since, at, now)

    def settle(self, stored: Checkpoint) -> None:
        """Note that everything up to `stored` is in the history."""
        with self._lock:
            self._stored, self._since = stored.totals, stored.at


def _keyed(commands: Iterable[CommandStats]) -> dict[Key, CommandStats]:
    return {(one.command, one.namespace, one.shape): one for one in commands}


def _later(
    earlier: Mapping[Key, CommandStats], now: Mapping[Key, CommandStats]
) -> list[CommandStats]:
    """What came after `earlier`, shapes without calls left out."""
    changed = (one.since(earlier[key]) if key in earlier else one for key, one in now.items())
    return [command for command in changed if command.calls]


def _add(sums: Sums, commands: Iterable[CommandStats]) -> None:
    for key, one in _keyed(commands).items():
        row = sums.setdefault(key, dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            row[name] += getattr(one, name)


def past(
    ledger: CommandLedger,
    history: History | None,
    since: datetime,
    until: datetime | None,
    profile: Profile,
) -> StoreWindow:
    """The commands of the window: stored ones of all processes, and unstored ones of this one.

    What is stored counts at the moment of storing, so the edges are as exact as the sampling is
    frequent. Unstored timings of this process that began before the window are left out.
    """
    end = until or datetime.now(UTC)
    found: Sums = {}
    if history is not None and not history.absence():
        for row in history.store.rows("stored_commands", since=since, until=end):
            found[row["command"], row["namespace"], row["shape"]] = {n: row[n] for n in _SUMS}
    left_out, pending = "", ledger.checkpoint()
    if until is None and pending.since >= since:
        _add(found, pending.commands)
    elif until is None and pending.commands:
        left_out = (
            "this process has timed commands since before the window and not stored them: "
            "sample with 'db.monitor.sampling()'"
        )
    coverage = {"complete": not left_out, "sentence": left_out}
    return _window(found, (since, end), left_out or NOT_TIMED, coverage, profile)


def live(before: list[CommandStats], after: list[CommandStats], profile: Profile) -> StoreWindow:
    """The commands that this process sent between two moments, those of the profile."""
    found: Sums = {}
    _add(found, _later(_keyed(before), _keyed(after)))
    reason = "this process sent no MongoDB command while it was watched"
    coverage = {"complete": False, "sentence": "commands of this process only"}
    return _window(found, profile.window, reason, coverage, profile)


def _window(
    timed: Sums,
    edges: tuple[datetime, datetime],
    reason: str,
    coverage: dict[str, Any],
    profile: Profile,
) -> StoreWindow:
    """As the processes that sent the commands timed them, else as the server did.

    The clients see every command; the profiler those above its threshold, of all clients. What
    only the profiler knows is added to the commands that the clients timed.
    """
    not_measured = dict(_POSTGRES_ONLY)
    if profile.examined_reason:
        not_measured["docs_examined_per_call"] = profile.examined_reason
    commands, source = timed, "commands as their clients timed them"
    if not timed and profile.commands:
        commands, edges, source = profile.commands, profile.window, "system.profile"
        coverage = {"complete": False, "sentence": profile.sentence}
        if not any(row["counted"] for row in commands.values()):
            not_measured["rows"] = "the profiler of this server does not count documents"
    if not commands:
        # That nothing was timed is what helps first; the profiler is only the second source.
        reason = "; ".join(filter(None, (reason, profile.reason)))
        return StoreWindow("mongodb", "no_data", reason, coverage=coverage)
    rows = []
    for key, row in commands.items():
        known = profile.commands.get(key)
        told = known and known["told"]
        rows.append(
            {
                **row,
                "database": "mongodb",
                "query_id": hashlib.sha256("\0".join(key).encode()).hexdigest()[:16],
                "statement": key[2],
                # The clients count documents, the profiler not everywhere.
                "rows": row["documents"] if row.get("counted", True) else None,
                "docs_examined_per_call": known["examined"] / told if known and told else None,
                "lower_bound": False,
            }
        )
    return StoreWindow(
        "mongodb",
        window=edges,
        statements=list(map(derived, rows)),
        total_ms=sum(row["total_ms"] for row in rows),
        calls=sum(row["calls"] for row in rows),
        coverage=coverage,
        not_measured=not_measured,
        source=source,
    )


# -- as the server recorded them ------------------------------------------------------------------

# The collection is capped at 1 MB unless somebody made it larger; a bound for that case.
MOST_ENTRIES = 20_000
TIME_LIMIT_MS = 5000

_WRITES = {"update": "updates", "remove": "deletes"}
_COMMANDS = [
    "find",
    "aggregate",
    "insert",
    "update",
    "delete",
    "findAndModify",
    "count",
    "distinct",
]
_DOCUMENTS = ("nreturned", "nModified", "ninserted", "ndeleted")
_FIELDS = (
    *("ts", "op", "ns", "command", "originatingCommand", "millis", "docsExamined", *_DOCUMENTS),
    *("errCode", "ok", "appName"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """The commands that the server recorded in a window, or the `reason` why there are none.

    Of each command's documents, `counted` says whether the server recorded those returned or
    changed, `examined` those it read for the `told` calls for which it recorded that. `sentence`
    says what of all commands it is.
    """

    window: tuple[datetime, datetime]
    commands: Sums = field(default_factory=dict)
    sentence: str = ""
    reason: str = ""
    examined_reason: str = ""


def profiled(store: MongoStore, since: datetime, until: datetime | None, own: str) -> Profile:
    """What `system.profile` holds of the window, without what the application `own` asked."""
    window, reason = (since, until or datetime.now(UTC)), ""
    asked = {"ts": {"$gte": window[0], "$lt": window[1]}}
    limits: dict[str, Any] = {"comment": "fwdb", "max_time_ms": TIME_LIMIT_MS}
    try:
        with store.errors():
            state = store.database.command("profile", -1, comment="fwdb")
            if state.get("was"):
                collection, fields = store.database["system.profile"], dict.fromkeys(_FIELDS, 1)
                entries = list(collection.find(asked, fields, limit=MOST_ENTRIES, **limits))
                oldest = collection.find_one({}, {"ts": 1}, sort=[("$natural", 1)], **limits)
            else:
                reason = (
                    "the profiler of MongoDB is off; db.setProfilingLevel(1, {slowms: 100}) "
                    "records slow commands"
                )
    except PermissionDenied:
        reason = "the role may not read the profiler: grant it clusterMonitor"
    except FwdbError as error:  # the clients' timings are there all the same
        reason = str(error)
    if reason:
        return Profile(window, reason=reason, examined_reason=reason)
    commands = summed(entry for entry in entries if entry.get("appName") != own)
    kind = "SecantusDB does not record" if store.is_secantus else "the profiler did not record"
    told = any(row["told"] for row in commands.values())
    return Profile(
        window,
        commands,
        _extent(state, oldest, since, len(entries)),
        reason="" if commands else "the profiler is on and recorded no command in this window",
        examined_reason="" if told else f"{kind} how many documents a command examined",
    )


def _extent(state: Mapping[str, Any], oldest: Any, since: datetime, entries: int) -> str:
    """What part of all commands the entries are."""
    parts = ["recorded by the server's profiler, in whole milliseconds"]
    if state["was"] == 1:
        parts.append(f"only commands of {state.get('slowms', 100)} ms and more")
    if (rate := float(state.get("sampleRate", 1.0))) < 1:
        parts.append(f"a sample of {100 * rate:g} %")
    if oldest is not None and oldest["ts"] > since:
        parts.append(f"nothing before {oldest['ts']:%Y-%m-%d %H:%M:%S} UTC is kept")
    if entries >= MOST_ENTRIES:
        parts.append(f"the first {MOST_ENTRIES:,} entries only")
    return ", ".join(parts)


def summed(entries: Iterable[Mapping[str, Any]]) -> Sums:
    """The entries of `system.profile` added up by command; those without a call left out."""
    found: Sums = {}
    for entry in entries:
        key, more = _identified(entry)
        if key is None:
            continue
        ms = float(entry.get("millis", 0))
        sums = found.setdefault(key, dict.fromkeys((*_SUMS, "counted", "examined", "told"), 0))
        sums["calls"] += not more  # further batches belong to the command that began them
        sums["errors"] += "errCode" in entry or not entry.get("ok", 1)
        sums["total_ms"] += ms
        sums["squares_ms2"] += ms * ms
        documents = [int(entry[name]) for name in _DOCUMENTS if name in entry]
        sums["documents"] += sum(documents)
        sums["counted"] += bool(documents)
        if "docsExamined" in entry:
            sums["examined"] += int(entry["docsExamined"])
            sums["told"] += not more
    return {key: sums for key, sums in found.items() if sums["calls"]}


def _identified(entry: Mapping[str, Any]) -> tuple[Key | None, bool]:
    """The same key as the clients give this command, and whether it is a further batch.

    None for what is no question of a user: administration, the profiler itself, fwdb.
    """
    namespace, command = str(entry.get("ns", "")), entry.get("command") or {}
    collection, op = namespace.partition(".")[2], entry.get("op")
    if more := op == "getmore":
        command = entry.get("originatingCommand") or {}
    own = str(command.get("comment", "")).startswith("fwdb")
    if not command or own or collection.startswith("system."):
        return None, more
    # A single write stands there as one statement of its command: {q: …, u: …}.
    if op in _WRITES and "q" in command:
        name = "delete" if op == "remove" else "update"
        command = {name: collection, _WRITES[op]: [command]}
    name = next((n for n in _COMMANDS if n in command), "")
    if not name or next(iter(command)) not in _COMMANDS:
        return None, more
    return (name, namespace, shape(name, command)), more
