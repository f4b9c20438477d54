"""How long the commands of a MongoClient took, by shape: what was asked without the values.

The server's own profiler is switched off on most servers, and keeps a sample only. The driver
sees every command with its duration, so each process times its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo import monitoring

from fwdb.stores.errors import OTHER as OTHER_OPERATION
from fwdb.stores.errors import of_reply
from fwdb.stores.timing import CONNECT, Histogram, QueryTimes

MOST_SHAPES = 500  # a program that builds field names from data would add shapes for ever
MOST_CURSORS = 1000  # open cursors whose further batches are counted to the first command
OTHER = "(other shapes)"

# Names of commands come from callers too, who may send any: the others are ``other``.
_OPERATIONS = frozenset(
    {
        "find", "aggregate", "insert", "update", "delete", "findAndModify", "count", "distinct",
        "getMore", "bulkWrite", "explain", "commitTransaction", "abortTransaction",
        "create", "collMod", "drop", "dropDatabase", "createIndexes", "dropIndexes",
        "listCollections", "listIndexes",
    }
)  # fmt: skip
OPERATIONS = tuple(sorted({*_OPERATIONS, OTHER_OPERATION, CONNECT}))

# Commands of the driver and of monitoring, which nobody wants in a list of their own queries.
_IGNORED = frozenset(
    {
        "hello", "isMaster", "ismaster", "ping", "buildInfo", "serverStatus", "replSetGetStatus",
        "endSessions", "killCursors", "saslStart", "saslContinue", "authenticate", "getnonce",
        "connectionStatus", "getParameter",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CommandStats:
    """All commands of one shape since the store was made.

    `shape` reads like the shell: ``designs.find({status: ?}).sort({createdAt: -1})``. Times are
    those of the client: network and every further batch of the answer included.
    `squares_ms2` is the sum of the squared times, for the standard deviation. `histogram`
    counts commands by the first of `BOUNDS_MS` that they do not exceed, the last beyond all.
    """

    command: str
    namespace: str
    shape: str
    calls: int
    errors: int
    total_ms: float
    squares_ms2: float
    max_ms: float
    documents: int
    histogram: tuple[int, ...]

    def since(self, earlier: CommandStats) -> CommandStats:
        """What came after `earlier`. `max_ms` cannot be told for a part and stays the whole's."""
        return replace(
            self,
            calls=self.calls - earlier.calls,
            errors=self.errors - earlier.errors,
            total_ms=self.total_ms - earlier.total_ms,
            squares_ms2=self.squares_ms2 - earlier.squares_ms2,
            documents=self.documents - earlier.documents,
            histogram=tuple(a - b for a, b in zip(self.histogram, earlier.histogram, strict=True)),
        )


class _Entry:
    """The commands of one shape."""

    def __init__(self) -> None:
        self.errors = self.documents = 0
        self.total_ms = self.squares = self.max_ms = 0.0
        self.calls = Histogram()


_Key = tuple[str, str, str]


class CommandTimes(monitoring.CommandListener):
    """Listens to one client and adds up its commands per shape, and per name in `times`."""

    def __init__(self, times: QueryTimes) -> None:
        self._times = times
        self.since = datetime.now(UTC)
        self._lock = threading.Lock()
        self._entries: dict[_Key, _Entry] = {}
        self._cursors: OrderedDict[int, _Key] = OrderedDict()
        # A command begins and ends in one thread, and a thread has one command at a time.
        self._current = threading.local()

    def stats(self) -> list[CommandStats]:
        """One `CommandStats` per shape seen, in the order of first appearance."""
        with self._lock:
            return [
                CommandStats(
                    *key,
                    calls=calls.count,
                    errors=entry.errors,
                    total_ms=entry.total_ms,
                    squares_ms2=entry.squares,
                    max_ms=entry.max_ms,
                    documents=entry.documents,
                    histogram=calls.counts,
                )
                for key, entry in self._entries.items()
                for calls in (entry.calls.read(),)
            ]

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        name, command = event.command_name, event.command
        self._current.key = None
        # The driver hides the content of commands with secrets, and of all before login.
        if name in _IGNORED or not command or str(command.get("comment", "")).startswith("fwdb"):
            return
        if name == "getMore":
            with self._lock:
                self._current.key = self._cursors.get(int(command["getMore"]))
            return
        collection = command[name] if isinstance(command.get(name), str) else "$cmd"
        self._current.key = (name, f"{event.database_name}.{collection}", shape(name, command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        error = of_reply(event.reply) if event.reply.get("writeErrors") else ""
        self._ended(event, event.reply, error)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._ended(event, {}, of_reply(event.failure))

    def _ended(self, event: Any, reply: Mapping[str, Any], error: str) -> None:
        if (key := getattr(self._current, "key", None)) is not None:
            self._add(key, event.command_name, event.duration_micros / 1000, reply, error)

    def _add(
        self, key: _Key, command: str, ms: float, reply: Mapping[str, Any], error: str
    ) -> None:
        self._times.add(command if command in _OPERATIONS else OTHER_OPERATION, ms / 1000, error)
        cursor = reply.get("cursor")
        with self._lock:
            if key not in self._entries and len(self._entries) >= MOST_SHAPES:
                key = (key[0], "", OTHER)
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
            if command != "getMore":  # a further batch, which is no call
                entry.calls.add(ms / 1000)
            entry.errors += bool(error)
            entry.total_ms += ms
            entry.squares += ms * ms
            entry.max_ms = max(entry.max_ms, ms)
            entry.documents += _documents(command, reply)
            if cursor is not None and (open_cursor := cursor.get("id")):
                self._cursors[int(open_cursor)] = key
                self._cursors.move_to_end(int(open_cursor))
                if len(self._cursors) > MOST_CURSORS:
                    self._cursors.popitem(last=False)


def shape(name: str, command: Mapping[str, Any]) -> str:
    """`command` without its values, as one would type it in the shell.

    Fields and operators stay, values become ``?``; the order of fields in a filter and of the
    branches of ``$or`` does not matter, the order of sort keys and of pipeline stages does.

    >>> shape("find", {"find": "designs", "filter": {"status": "draft"}, "sort": {"name": 1}})
    'designs.find({status: ?}).sort({name: 1})'
    """
    target = command.get(name)
    place = target if isinstance(target, str) else "db"
    arguments = _ARGUMENTS[name](command) if name in _ARGUMENTS else []
    text = f"{place}.{name}({', '.join(arguments)})"
    if name == "find" and command.get("projection"):
        text += f".project({{{', '.join(command['projection'])}}})"
    if command.get("sort"):
        text += f".sort({_ordered(command['sort'])})"
    if command.get("hint"):
        text += f".hint({_ordered(command['hint'])})"
    if command.get("collation"):
        text += f".collation({command['collation'].get('locale', '?')})"
    return text


def _filter(value: Mapping[str, Any] | None) -> str:
    fields = (f"{field}: {_value(field, part)}" for field, part in (value or {}).items())
    return "{" + ", ".join(sorted(fields)) + "}"


def _value(field: str, value: Any) -> str:
    """`?`, or what stays of `value`: operators, and the filters in it."""
    if field.startswith("$"):
        if field in {"$or", "$and", "$nor"}:
            return f"[{_distinct(map(_filter, value))}]"
        if field in {"$in", "$nin", "$all"}:
            return "[?]"
        if field in {"$elemMatch", "$not"} and isinstance(value, Mapping):
            return _filter(value)
    if type(value) not in _PLAIN and isinstance(value, Mapping) and _operators(value):
        return _filter(value)
    return "?"


# Quicker to ask than whether it is a mapping, and mostly enough.
_PLAIN = frozenset({str, int, float, bool, bytes, type(None), ObjectId, datetime, list})


def _operators(value: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in value if key.startswith("$"))


def _stages(pipeline: Iterable[Mapping[str, Any]] | None) -> str:
    return f"[{', '.join(map(_stage, pipeline or []))}]"


def _stage(stage: Mapping[str, Any]) -> str:
    name, content = next(iter(stage.items()), ("?", None))
    if name in {"$match", "$sort"} and isinstance(content, Mapping):
        return f"{name} {_filter(content) if name == '$match' else _ordered(content)}"
    return name


def _change(update: Any) -> str:
    if not isinstance(update, Mapping):
        return _stages(update)
    return f"{{{', '.join(_operators(update))}}}" if _operators(update) else "?"


def _ordered(keys: Mapping[str, Any] | str) -> str:
    if isinstance(keys, str):
        return keys
    parts = (f"{key}: {order if isinstance(order, int) else '?'}" for key, order in keys.items())
    return "{" + ", ".join(parts) + "}"


def _distinct(parts: Iterable[str]) -> str:
    return " | ".join(sorted(set(parts)))


_ARGUMENTS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "find": lambda c: [_filter(c.get("filter"))],
    "aggregate": lambda c: [_stages(c.get("pipeline"))],
    "insert": lambda c: ["?"],
    "update": lambda c: [
        _distinct(f"{_filter(u['q'])}, {_change(u.get('u'))}" for u in c.get("updates") or [])
    ],
    "delete": lambda c: [_distinct(_filter(d["q"]) for d in c.get("deletes") or [])],
    "findAndModify": lambda c: [
        _filter(c.get("query")),
        "remove" if c.get("remove") else _change(c.get("update")),
    ],
    "count": lambda c: [_filter(c.get("query"))],
    "distinct": lambda c: [str(c.get("key")), _filter(c.get("query"))],
}


def _documents(command: str, reply: Mapping[str, Any]) -> int:
    """Documents that came back, or that a write met."""
    cursor = reply.get("cursor")
    if isinstance(cursor, Mapping):
        return len(cursor.get("nextBatch" if command == "getMore" else "firstBatch") or ())
    if command == "count":
        return 0  # the answer is a number, not documents
    count = reply.get("n")
    return count if isinstance(count, int) else int(reply.get("value") is not None)
