"""Changes of one MongoDB collection, as events that know nothing of the driver.

The driver's own change stream resumes by itself with a token. Tokens of SecantusDB are numbers
that it gives out anew after a crash, so that a stream resumed by one skips changes without a word.
Therefore a `ChangeFeed` ends with the connection, and whoever reads it decides where to go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import bson
from bson import json_util
from bson.timestamp import Timestamp
from pymongo import errors as driver

from fwdb import errors

if TYPE_CHECKING:
    from fwdb.stores.mongodb import MongoStore

Document = dict[str, Any]

_MOST_BYTES = 1 << 24  # of events read at once: they are held in memory and written together

# src/mongo/base/error_codes.yml
# ChangeStreamHistoryLost, and tokens of another collection or of a server that forgot it.
_LOST = {286, 260, 280, 50811}
_TOO_LARGE = {10334}  # BSONObjectTooLarge
# What the specification of change streams calls resumable, for servers that set no label.
_RESUMABLE = {6, 7, 43, 63, 89, 91, 133, 150, 189, 234, 237, 262, 9001, 10107, 11600, 11602}
_RESUMABLE |= {13388, 13435, 13436}


class HistoryLost(errors.QueryError):
    """The server no longer has the changes from the wanted position on."""


class EventsTooLarge(errors.QueryError):
    """An answer is larger than a message may be: MongoDB's of one event, SecantusDB's of many."""


class ClusterTime(NamedTuple):
    """The time of a change in MongoDB: seconds since 1970 and a number within the second."""

    seconds: int
    increment: int

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    @property
    def next(self) -> ClusterTime:
        return ClusterTime(self.seconds, self.increment + 1)

    def back(self, seconds: int) -> ClusterTime:
        return ClusterTime(max(0, self.seconds - seconds), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One event. `operation` is insert, update, replace, delete, drop, rename, invalidate, …

    `at` is when it happened: the server's clock, but not before the second of `time`, so that
    events of one second keep their order when the clock is set back. `before` is the document
    before an update, replacement or deletion, None where the server has not kept it; `after` that
    of an insertion or replacement. `transaction` names the session and number of a transaction.
    `digest` is of what changed, without `before`: two readings of one event have the same.
    """

    operation: str
    time: ClusterTime
    at: datetime
    token: str
    key: Any = None
    before: Document | None = None
    after: Document | None = None
    updated: Mapping[str, Any]
    removed: tuple[str, ...]
    truncated: tuple[tuple[str, int], ...]
    paths: Mapping[str, list[Any]]
    transaction: str | None
    to: str | None
    digest: bytes


class Present(NamedTuple):
    """Where a server is: its cluster time, its clock shortly before, and a collection of it.

    `collection_id` is None while there is no such collection; `images` tells whether the server
    keeps its documents as they were before each change.
    """

    time: ClusterTime
    at: datetime
    collection_id: str | None
    images: bool


def present(store: MongoStore, collection: str) -> Present:
    """Where `store` is now."""
    with store.errors(), store.client.start_session() as session:
        # The clock first: what happens after `time` must not be earlier than `at`.
        clock = store.client.admin.command("hello", session=session)["localTime"]
        found = list(store.database.list_collections(filter={"name": collection}, session=session))
        time: Timestamp | None = session.operation_time
    if time is None:
        raise errors.FeatureUnavailable(
            "mongodb has change streams in a replica set only; this server is not in one."
        )
    known = found[0] if found else {}
    uuid = known.get("info", {}).get("uuid")
    named = uuid.hex() if isinstance(uuid, bytes) else uuid and str(uuid)
    kept = known.get("options", {}).get("changeStreamPreAndPostImages", {})
    return Present(ClusterTime(time.time, time.inc), clock, named, bool(kept.get("enabled")))


def documents(store: MongoStore, collection: str) -> Iterator[Document]:
    """All documents of `collection`, decoded as those of a `ChangeFeed`."""
    with store.errors():
        yield from store.collection(collection).find({}, comment="fwdb")


class ChangeBatch(NamedTuple):
    """What one reading gave.

    `idle`: the server had nothing more to give; `passed` and `token` are then where it has looked
    up to, if it says so. `alive`: whether more can come.
    """

    events: list[ChangeEvent]
    idle: bool
    passed: ClusterTime | None
    token: str | None
    alive: bool


class ChangeFeed:
    """The changes of `collection` behind the token `after`, or from the time `at` on.

    The first answer has `fetch` of them at most; `names_only` leaves out what documents hold.
    Raises `HistoryLost` when the server no longer has them, `EventsTooLarge` when so many do not
    fit into an answer, and `StoreUnavailable` when the connection or the server's cursor is lost;
    the feed is then at its end.
    """

    def __init__(
        self,
        store: MongoStore,
        collection: str,
        *,
        at: ClusterTime | None = None,
        after: str | None = None,
        wait_ms: int,
        fetch: int,
        names_only: bool = False,
    ) -> None:
        self._store = store
        self._parts: list[Document] = []
        stream: Document = {
            "fullDocumentBeforeChange": "off" if names_only else "whenAvailable",
            "showExpandedEvents": True,  # tells paths from field names that hold a dot
        }
        if after is not None:
            stream["startAfter"] = json_util.loads(after)
        elif at is not None:
            stream["startAtOperationTime"] = Timestamp(*at)
        pipeline: list[Document] = [{"$changeStream": stream}]
        if names_only:
            pipeline.append({"$unset": ["fullDocument", "updateDescription"]})
        # Two images of 10 MB do not fit into one event of 16 MB.
        version = store.build_info["versionArray"]
        if version >= [7] or [6, 0, 9] <= version < [6, 1]:
            pipeline.append({"$changeStreamSplitLargeEvent": {}})
        with self._errors():
            self._cursor = store.collection(collection).aggregate(
                pipeline, batchSize=fetch, maxAwaitTimeMS=wait_ms, comment="fwdb"
            )

    def read(self, limit: int, *, seconds: float) -> ChangeBatch:
        """At most `limit` events, or 16 MB; it ends after about `seconds` when they come slowly."""
        self._cursor._batch_size = limit  # batch_size(1) asks for two
        found: list[ChangeEvent] = []
        size, deadline, idle = 0, monotonic() + seconds, False
        with self._errors():
            while len(found) < limit and size < _MOST_BYTES and monotonic() < deadline:
                if not self._cursor.alive:
                    break
                raw = self._cursor.try_next()
                if idle := raw is None:
                    break
                whole = self._joined(raw)
                if whole is not None:
                    size += len(bson.encode(whole))
                    found.append(_event(whole))
            passed, token = self._position() if idle else (None, None)
        return ChangeBatch(found, idle, passed, token, bool(self._cursor.alive))

    def close(self) -> None:
        with self._errors():
            self._cursor.close()

    def _joined(self, part: Document) -> Document | None:
        """A whole event; None while parts of it are missing."""
        split = part.pop("splitEvent", {"fragment": 1, "of": 1})
        self._parts.append(part)
        if split["fragment"] < split["of"]:
            return None
        whole = {name: value for one in self._parts for name, value in one.items()}
        self._parts.clear()
        return whole

    def _position(self) -> tuple[ClusterTime | None, str | None]:
        """Quiet streams move on too; the driver keeps their position where no method shows it."""
        token = getattr(self._cursor, "_postbatchresumetoken", None)
        passed = _token_time(token, secantus=self._store.is_secantus)
        return passed, None if passed is None else json_util.dumps(token)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._store.errors():
            try:
                yield
            except driver.ProtocolError as error:
                if "larger than" not in str(error):
                    raise
                raise EventsTooLarge("mongodb gave more events than fit into an answer.") from error
            except driver.OperationFailure as error:
                code = error.code
                if code in _TOO_LARGE:
                    raise EventsTooLarge("mongodb has an event of more than 16 MB.") from error
                if code in _LOST:
                    said = f"mongodb no longer has the wanted changes (code {code})."
                    raise HistoryLost(said) from error
                if code in _RESUMABLE or error.has_error_label("ResumableChangeStreamError"):
                    said = f"mongodb ended the change stream (code {code})."
                    raise errors.StoreUnavailable(said, database=self._store.name) from error
                raise


def _event(raw: Document) -> ChangeEvent:
    time = ClusterTime(raw["clusterTime"].time, raw["clusterTime"].inc)
    description: Document = raw.get("updateDescription") or {}
    transaction = None
    if "lsid" in raw and "txnNumber" in raw:
        transaction = f"{bytes(raw['lsid']['id']).hex()}-{raw['txnNumber']}"
    operation = str(raw["operationType"])
    content = [operation, raw.get("documentKey"), description, raw.get("fullDocument"), transaction]
    return ChangeEvent(
        operation=operation,
        time=time,
        at=max(raw.get("wallTime", time.at), time.at),
        token=json_util.dumps(raw["_id"]),
        key=raw.get("documentKey", {}).get("_id"),
        before=raw.get("fullDocumentBeforeChange"),
        after=raw.get("fullDocument") if operation in {"insert", "replace"} else None,
        updated=description.get("updatedFields") or {},
        removed=tuple(description.get("removedFields") or ()),
        truncated=tuple(
            (one["field"], one["newSize"]) for one in description.get("truncatedArrays") or ()
        ),
        paths=description.get("disambiguatedPaths") or {},
        transaction=transaction,
        to=(raw.get("to") or {}).get("coll"),
        digest=hashlib.sha256(bson.encode({"content": content})).digest(),
    )


def _token_time(token: Mapping[str, Any] | None, *, secantus: bool) -> ClusterTime | None:
    """The cluster time in a resume token, None for one that cannot be read.

    MongoDB's is hexadecimal: 82 for a timestamp, then its eight bytes (src/mongo/db/pipeline/
    resume_token.h); SecantusDB's is a BSON document.
    """
    data = (token or {}).get("_data")
    try:
        if secantus:
            inner: Any = bson.decode(bytes.fromhex(data)).get("t")  # type: ignore[arg-type]
            return ClusterTime(inner.time, inner.inc)
        if str(data).startswith("82"):
            return ClusterTime(int(data[2:10], 16), int(data[10:18], 16))  # type: ignore[index]
    except (AttributeError, TypeError, ValueError, bson.errors.BSONError):
        pass
    return None
