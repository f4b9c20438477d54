"""MongoDB's own record of its commands, `system.profile`, where somebody switched it on.

The second source, after the timings of the clients: it sees the commands of all clients and knows
how many documents each examined, but it holds only those above a threshold, maybe a sample, and
forgets the oldest. fwdb reads it and never switches it on: it costs every command a write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fwdb.errors import FwdbError, PermissionDenied
from fwdb.stores import CommandStats, MongoStore
from fwdb.stores.commands import shape

_Key = tuple[str, str, str]

# The collection is capped at 1 MB unless somebody made it larger; a bound for that case.
MOST_ENTRIES = 20_000
TIME_LIMIT_MS = 5000

ON = "db.setProfilingLevel(1, {slowms: 100})"
_WRITES = {"update": "updates", "remove": "deletes"}
_COMMANDS = (
    "find",
    "aggregate",
    "insert",
    "update",
    "delete",
    "findAndModify",
    "count",
    "distinct",
)
_DOCUMENTS = ("nreturned", "nModified", "ninserted", "ndeleted")
_FIELDS = (
    *("ts", "op", "ns", "command", "originatingCommand", "millis", "docsExamined", *_DOCUMENTS),
    *("errCode", "ok", "appName"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """The commands that the server recorded in a window, or the `reason` why there are none.

    `sentence` says what of all commands that is. `docs_examined_per_call` has only those for
    which the server recorded it, `counted` those for which it recorded the documents returned
    or changed.
    """

    window: tuple[datetime, datetime]
    commands: list[CommandStats] = field(default_factory=list)
    docs_examined_per_call: dict[_Key, float] = field(default_factory=dict)
    counted: frozenset[_Key] = frozenset()
    sentence: str = ""
    reason: str = ""
    examined_reason: str = ""


def profiled(store: MongoStore, since: datetime, until: datetime | None, own: str) -> Profile:
    """What `system.profile` holds of the window, without what the application `own` asked."""
    window = (since, until or datetime.now(UTC))
    try:
        return _read(store, window, own)
    except PermissionDenied:
        reason = "the role may not read the profiler: grant it clusterMonitor"
    except FwdbError as error:  # the clients' timings are there all the same
        reason = str(error)
    return Profile(window, reason=reason, examined_reason=reason)


def _read(store: MongoStore, window: tuple[datetime, datetime], own: str) -> Profile:
    with store.errors():
        state = store.database.command("profile", -1, comment="fwdb")
    if not state.get("was"):
        reason = f"the profiler of MongoDB is off; {ON} records slow commands"
        return Profile(window, reason=reason, examined_reason=reason)
    with store.errors():
        collection = store.database["system.profile"]
        entries = list(
            collection.find(
                {"ts": {"$gte": window[0], "$lt": window[1]}},
                dict.fromkeys(_FIELDS, 1),
                limit=MOST_ENTRIES,
                max_time_ms=TIME_LIMIT_MS,
                comment="fwdb",
            )
        )
        oldest = collection.find_one(
            {}, {"ts": 1}, sort=[("$natural", 1)], comment="fwdb", max_time_ms=TIME_LIMIT_MS
        )
    commands, examined, counted = _counted([e for e in entries if e.get("appName") != own])
    kind = "SecantusDB does not record" if store.is_secantus else "the profiler did not record"
    return Profile(
        window,
        commands=commands,
        docs_examined_per_call=examined,
        counted=counted,
        sentence=_extent(state, oldest, window[0], len(entries)),
        reason="" if commands else "the profiler is on and recorded no command in this window",
        examined_reason="" if examined else f"{kind} how many documents a command examined",
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


def _counted(
    entries: list[dict[str, Any]],
) -> tuple[list[CommandStats], dict[_Key, float], frozenset[_Key]]:
    """The entries per shape, documents examined per call, and whose documents were counted."""
    found: dict[_Key, dict[str, float]] = {}
    for entry in entries:
        identified = _identified(entry)
        if identified is None:
            continue
        key, more = identified
        ms = float(entry.get("millis", 0))
        sums = found.setdefault(key, dict.fromkeys(_SUMS, 0.0))
        sums["calls"] += not more  # further batches belong to the command that began them
        sums["errors"] += "errCode" in entry or not entry.get("ok", 1)
        sums["total_ms"] += ms
        sums["squares_ms2"] += ms * ms
        sums["max_ms"] = max(sums["max_ms"], ms)
        documents = [int(entry[name]) for name in _DOCUMENTS if name in entry]
        sums["documents"] += sum(documents)
        sums["counted"] += bool(documents)
        if "docsExamined" in entry:
            sums["examined"] += int(entry["docsExamined"])
            sums["told"] += not more
    commands = [
        CommandStats(
            *key,
            calls=int(sums["calls"]),
            errors=int(sums["errors"]),
            total_ms=sums["total_ms"],
            squares_ms2=sums["squares_ms2"],
            max_ms=sums["max_ms"],
            documents=int(sums["documents"]),
            histogram=(),
        )
        for key, sums in found.items()
        if sums["calls"]
    ]
    examined = {key: sums["examined"] / sums["told"] for key, sums in found.items() if sums["told"]}
    return commands, examined, frozenset(key for key, sums in found.items() if sums["counted"])


_SUMS = (
    *("calls", "errors", "total_ms", "squares_ms2", "max_ms"),
    *("documents", "counted", "examined", "told"),
)


def _identified(entry: Mapping[str, Any]) -> tuple[_Key, bool] | None:
    """The same key as the clients give this command, and whether it is a further batch.

    None for what is no question of a user: administration, the profiler itself, fwdb.
    """
    namespace, command = str(entry.get("ns", "")), entry.get("command") or {}
    collection = namespace.partition(".")[2]
    more = entry.get("op") == "getmore"
    if more:
        command = entry.get("originatingCommand") or {}
    if not command or collection.startswith("system."):
        return None
    if str(command.get("comment", "")).startswith("fwdb"):
        return None
    # A single write stands there as one statement of its command: {q: …, u: …}.
    if (op := entry.get("op")) in _WRITES and "q" in command:
        name = "delete" if op == "remove" else "update"
        command = {name: collection, _WRITES[op]: [command]}
    name = next((n for n in _COMMANDS if n in command), "")
    if not name or next(iter(command)) not in _COMMANDS:
        return None
    return (name, namespace, shape(name, command)), more
