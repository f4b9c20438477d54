"""How long the commands of a MongoClient took, by shape: what was asked without the values.

The server's own profiler is switched off on most servers, and keeps a sample only. The driver
sees every command with its duration, so each process times its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
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
        if name in _IGNORED or not command or _is_own(command):
            return
        if name == "getMore":
            with self._lock:
                self._current.key = self._cursors.get(int(command["getMore"]))
            return
        collection = command[name] if isinstance(command.get(name), str) else "$cmd"
        self._current.key = (name, f"{event.database_name}.{collection}", shape(name, command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        key = getattr(self._current, "key", None)
        if key is not None:
            reply = event.reply
            error = of_reply(reply) if reply.get("writeErrors") else ""
            self._add(key, event.command_name, event.duration_micros / 1000, reply, error)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        key = getattr(self._current, "key", None)
        if key is not None:
            error = of_reply(event.failure)
            self._add(key, event.command_name, event.duration_micros / 1000, {}, error)

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
    match name:
        case "find":
            text = f"find({_filter(command.get('filter') or {})})"
            if command.get("projection"):
                text += f".project({{{', '.join(command['projection'])}}})"
        case "aggregate":
            text = f"aggregate([{', '.join(map(_stage, command.get('pipeline') or []))}])"
        case "insert":
            text = "insert(?)"
        case "update":
            text = f"update({_distinct(_update(u) for u in command.get('updates') or [])})"
        case "delete":
            text = f"delete({_distinct(_filter(d['q']) for d in command.get('deletes') or [])})"
        case "findAndModify":
            change = "remove" if command.get("remove") else _change(command.get("update"))
            text = f"findAndModify({_filter(command.get('query') or {})}, {change})"
        case "count":
            text = f"count({_filter(command.get('query') or {})})"
        case "distinct":
            text = f"distinct({command.get('key')}, {_filter(command.get('query') or {})})"
        case _:
            text = f"{name}()"
    if command.get("sort"):
        text += f".sort({_ordered(command['sort'])})"
    if command.get("hint"):
        hint = command["hint"]
        text += f".hint({_ordered(hint) if isinstance(hint, Mapping) else hint})"
    if command.get("collation"):
        text += f".collation({command['collation'].get('locale', '?')})"
    return f"{place}.{text}"


_PLAIN = frozenset({str, int, float, bool, bytes, type(None), ObjectId, datetime, list})


def _filter(value: Mapping[str, Any]) -> str:
    if len(value) == 1:
        ((field, part),) = value.items()
        if type(part) in _PLAIN and not field.startswith("$"):
            return f"{{{field}: ?}}"
    fields = (
        f"{field}: {_branches(part) if field in {'$or', '$and', '$nor'} else _value(part)}"
        for field, part in value.items()
    )
    return "{" + ", ".join(sorted(fields)) + "}"


def _branches(parts: Iterable[Any]) -> str:
    return f"[{_distinct(_filter(part) for part in parts)}]"


def _value(value: Any) -> str:
    """`?`, or the operators when the value is made of them."""
    if type(value) in _PLAIN:  # quicker than the question below, and mostly enough
        return "?"
    if not (isinstance(value, Mapping) and value and next(iter(value)).startswith("$")):
        return "?"
    parts = []
    for operator, operand in value.items():
        if operator in {"$in", "$nin", "$all"}:
            parts.append(f"{operator}: [?]")
        elif operator in {"$elemMatch", "$not"} and isinstance(operand, Mapping):
            inner = _value(operand)
            parts.append(f"{operator}: {_filter(operand) if inner == '?' else inner}")
        else:
            parts.append(f"{operator}: ?")
    return "{" + ", ".join(sorted(parts)) + "}"


def _stage(stage: Mapping[str, Any]) -> str:
    name, content = next(iter(stage.items()), ("?", None))
    if name == "$match" and isinstance(content, Mapping):
        return f"$match {_filter(content)}"
    if name == "$sort" and isinstance(content, Mapping):
        return f"$sort {_ordered(content)}"
    return name


def _update(statement: Mapping[str, Any]) -> str:
    return f"{_filter(statement['q'])}, {_change(statement.get('u'))}"


def _change(update: Any) -> str:
    if isinstance(update, Mapping):
        operators = sorted(key for key in update if key.startswith("$"))
        return "{" + ", ".join(operators) + "}" if operators else "?"
    return "[" + ", ".join(map(_stage, update or [])) + "]"


def _ordered(keys: Mapping[str, Any]) -> str:
    return (
        "{"
        + ", ".join(
            f"{key}: {order if isinstance(order, int) else '?'}" for key, order in keys.items()
        )
        + "}"
    )


def _distinct(parts: Iterable[str]) -> str:
    return " | ".join(sorted(set(parts)))


def _is_own(command: Mapping[str, Any]) -> bool:
    return str(command.get("comment", "")).startswith("fwdb")


def _documents(command: str, reply: Mapping[str, Any]) -> int:
    """Documents that came back, or that a write met."""
    cursor = reply.get("cursor")
    if isinstance(cursor, Mapping):
        batch = cursor.get("nextBatch" if command == "getMore" else "firstBatch")
        return len(batch or ())
    if command == "count":
        return 0  # the answer is a number, not documents
    count = reply.get("n")
    if isinstance(count, int):
        return count
    return int(reply.get("value") is not None)
