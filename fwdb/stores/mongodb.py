"""The MongoDB store: client, sessions, frames, and errors by code."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

import pymongo
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo import errors as driver
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database

from fwdb import errors
from fwdb.stores.base import Store
from fwdb.stores.commands import CommandStats, CommandTimes
from fwdb.stores.errors import error_type, of_mongodb, without_values
from fwdb.stores.pool import MAX_CONNECTING, MongoPoolListener
from fwdb.stores.session import OF_PARENT
from fwdb.stores.timing import CONNECT, QueryTimes

Document = dict[str, Any]

DEFAULT_DATABASE = "fashion_wallet"
_CLOSE_SECONDS = 1.0
MINIMUM_VERSION = 6  # the oldest release that MongoDB still maintained when fwdb began


class MongoStore(Store):
    """One MongoDB database. Nothing is dialled before the first question.

    Writes are acknowledged by a majority and journaled unless the URL says otherwise: without
    the journal a server that is killed loses writes it has acknowledged. `url` has no password.
    """

    name = "mongodb"
    port = 27017

    def __init__(self, url: str, **options: Any) -> None:
        parsed = _parse(url)
        self._database_name = parsed["database"] or DEFAULT_DATABASE
        self._url_options = parsed["options"]
        self.url = errors.redact(url)
        super().__init__(url, **options)

    def _begin(self) -> None:
        self._of_parent = self.__dict__.get("_client")  # kept: closing it is not ours
        self._client: pymongo.MongoClient[Document] | None = None
        self._lock = threading.Lock()
        self._connections = MongoPoolListener(
            self._options["maxPoolSize"] or None,
            max_connecting=self._url_options.get("maxConnecting", MAX_CONNECTING),
        )
        self.times = QueryTimes(slow_ms=self.settings.thresholds.slow_query_ms)
        self._commands = CommandTimes(self.times)

    @cached_property
    def _options(self) -> dict[str, Any]:
        """Options of the client, those of the URL winning over ours."""
        settings, given = self.settings, self._url_options
        milliseconds = round(1000 * settings.connect_timeout_seconds)
        # After so long a connection that says nothing is given up; the driver then reads once
        # more on another, so it is half of what a call may take.
        silence = settings.timeout_seconds / (1 if self._monitors else 2)
        ours: dict[str, Any] = {
            "appname": self.application_name,
            "maxPoolSize": settings.pool_size + settings.pool_max_overflow,
            "maxIdleTimeMS": round(1000 * settings.pool_idle_seconds),
            "waitQueueTimeoutMS": round(1000 * settings.pool_timeout_seconds),
            "serverSelectionTimeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            "socketTimeoutMS": round(1000 * silence),
            "retryReads": not self._monitors,
        }
        if "w" not in given:
            ours["w"] = "majority"
        if "journal" not in given and given.get("w") != 0:
            ours["journal"] = True
        return {**ours, **{name: given[name] for name in ours if name in given}}

    @property
    def client(self) -> pymongo.MongoClient[Document]:
        """The client; made at first use, because making it starts threads."""
        with self._lock:  # of two threads at once, one would make a client that nobody closes
            if self._client is None:
                self._client = pymongo.MongoClient(
                    self._given.get_secret_value(),
                    tz_aware=True,
                    # No document stops those beside it, or its change from being recorded: a date
                    # beyond the year 9999 and bytes that are no text are decoded to something.
                    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
                    unicode_decode_error_handler="replace",
                    connect=False,
                    event_listeners=[self._connections, self._commands],
                    **self._options,
                )
            return self._client

    @property
    def database(self) -> Database[Document]:
        """The database that the URL names, else ``fashion_wallet``."""
        return self.client[self._database_name]

    def collection(self, name: str) -> Collection[Document]:
        """The collection `name`; pass ``session=store.session`` to each call on it."""
        return self.database[name]

    # -- transactions -------------------------------------------------------------------------

    @property
    def session(self) -> ClientSession | None:
        """The session of this thread's open transaction, else None.

        Raises `QueryError` in a forked process for one that the parent began.
        """
        began, session = getattr(self._local, "session", (0, None))
        if session is not None and began != os.getpid():
            raise errors.QueryError(f"mongodb: {OF_PARENT}.")
        return session

    @contextmanager
    def transaction(self) -> Iterator[ClientSession]:
        """A transaction; rolled back on any error. Inside one, the same one goes on.

        MongoDB has no savepoints. Raises `FeatureUnavailable` for a server that is not part of
        a replica set, and `Transient` when the same work may succeed if tried again.
        """
        with self._driver_errors():
            current = self.session
            if current is not None:
                yield current
                return
            began = os.getpid()
            with ExitStack() as ending:
                session = ending.enter_context(self.client.start_session())
                ending.enter_context(session.start_transaction())
                self._local.session = began, session
                try:
                    yield session
                finally:
                    self._local.session = 0, None
                    if began != os.getpid():
                        ending.pop_all()  # it is the parent's to end

    # -- the server and the pool --------------------------------------------------------------

    @cached_property
    def build_info(self) -> Document:
        """What the server says of itself: ``version`` and more. Asked once.

        Raises `FeatureUnavailable` for a server older than MongoDB 6.
        """
        with self.errors():
            info = self.client.server_info()
        if info["versionArray"][0] < MINIMUM_VERSION:
            raise errors.FeatureUnavailable(
                f"mongodb at {self.address} is version {info['version']}; "
                f"fwdb needs {MINIMUM_VERSION} or newer."
            )
        return info

    @cached_property
    def is_secantus(self) -> bool:
        """Whether the server is SecantusDB, several of whose statistics are constants."""
        with self.errors():
            return bool("secantus" in self.client.admin.command("serverStatus"))

    def _ask(self) -> None:
        with self.errors():
            self.client.admin.command("ping")

    def commands(self) -> list[CommandStats]:
        """The commands sent through this store since `commands_since`, one entry per shape."""
        return self._commands.stats()

    @property
    def commands_since(self) -> datetime:
        """When the store was made, and its commands were first timed."""
        return self._commands.since

    def close(self) -> None:
        """Close all connections; the store cannot be used afterwards."""
        if self._client is not None:
            with pymongo.timeout(_CLOSE_SECONDS):  # it takes leave of the server first
                self._client.close()

    # -- errors -------------------------------------------------------------------------------

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of pymongo, and of what it cannot encode, into fwdb's, the cause chained."""
        with self._driver_errors():
            try:
                yield
            except OverflowError as error:
                raise errors.InvalidData("mongodb: a number is beyond 64 bits.") from error
            except UnicodeEncodeError as error:
                raise errors.InvalidData("mongodb: a text is no valid Unicode.") from error

    @contextmanager
    def _driver_errors(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except (driver.PyMongoError, BSONError) as error:
            # Of these no event tells: the command was never sent.
            if isinstance(error, driver.ServerSelectionTimeoutError | driver.WaitQueueTimeoutError):
                self.times.add(CONNECT, time.perf_counter() - started, error_type(error))
            raise of_mongodb(error, self) from without_values(error)


def _parse(url: str) -> dict[str, Any]:
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise errors.ConfigError("the MongoDB URL does not start with 'mongodb://'; write it so.")
    try:
        return pymongo.uri_parser.parse_uri(url, validate=True, warn=False)
    except (driver.PyMongoError, ValueError):
        # The text itself may hold the password, so it is not repeated.
        raise errors.ConfigError(
            "the MongoDB URL cannot be read; write "
            "mongodb://user:password@host:27017/database, with special characters as %XX."
        ) from None
