"""The MongoDB store: client, sessions, frames, and errors by code."""

from __future__ import annotations

import os
import re
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
from pydantic import SecretStr
from pymongo import errors as driver
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database

from fwdb import config, errors
from fwdb.errors import FwdbError
from fwdb.stores.commands import CommandStats, CommandTimes
from fwdb.stores.dialling import OF_PARENT
from fwdb.stores.failures import error_type, without_values
from fwdb.stores.pools import (
    MAX_CONNECTING,
    Hold,
    MongoPoolListener,
    PoolStats,
    anew_in_child,
)
from fwdb.stores.timings import CONNECT, QueryStats, QueryTimes

Document = dict[str, Any]

DEFAULT_DATABASE = "fashion_wallet"
_CLOSE_SECONDS = 1.0
MINIMUM_VERSION = 6  # the oldest release that MongoDB still maintained when fwdb began


class MongoStore:
    """One MongoDB database. Nothing is dialled before the first question.

    Writes are acknowledged by a majority and journaled unless the URL says otherwise: without
    the journal a server that is killed loses writes it has acknowledged. `url` has no password.
    """

    name = "mongodb"

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "fwdb",
        settings: config.Settings | None = None,
        monitors: bool = False,
        remedy: str = "Check FWDB_MONGODB_URL.",
    ) -> None:
        settings = settings or config.settings()
        self._database_name = _parse(url)["database"] or DEFAULT_DATABASE
        self.address = config.address(url, 27017)
        self.url = errors.redact(url)
        self._given = SecretStr(url)
        self._application_name = application_name
        self._settings = settings
        self._monitors = monitors
        self._remedy = remedy
        self._local = threading.local()
        self._client: pymongo.MongoClient[Document] | None = None
        self._open()
        anew_in_child(self._open)

    def _open(self) -> None:
        """Begin with no connection and with no counts, as each process does."""
        self._of_parent = self._client  # kept: closing it is not ours
        self._client = None
        self._lock = threading.Lock()
        self._pool = MongoPoolListener(
            self._options.get("maxPoolSize") or None,
            max_connecting=_parse(self.url)["options"].get("maxConnecting", MAX_CONNECTING),
        )
        self.times = QueryTimes(slow_ms=self._settings.thresholds.slow_query_ms)
        self._commands = CommandTimes(self.times)

    def __repr__(self) -> str:
        return f"MongoStore({self.address})"

    def twin(self, *, application_name: str, connections: int = 1) -> MongoStore:
        """A second store on the same database with a small pool of its own.

        For questions about the server: they neither take a connection from the work nor wait
        longer than 2 s for a server to be found, or FWDB_MONITOR_TIMEOUT_SECONDS for an answer.
        """
        small = {
            "pool_size": connections,
            "pool_max_overflow": 0,
            "connect_timeout_seconds": min(2.0, self._settings.connect_timeout_seconds),
            "timeout_seconds": self._settings.monitor_timeout_seconds,
        }
        return MongoStore(
            self._given.get_secret_value(),
            application_name=application_name,
            settings=self._settings.model_copy(update=small),
            monitors=True,
            remedy=self._remedy,
        )

    @property
    def _silence(self) -> float:
        """Seconds after which a connection that says nothing is given up.

        The driver then reads once more on another, so it is half of what a call may take.
        """
        return self._settings.timeout_seconds / (1 if self._monitors else 2)

    @cached_property
    def _options(self) -> dict[str, Any]:
        """Options of the client, those of the URL winning over ours."""
        settings = self._settings
        given = _parse(self._given.get_secret_value())["options"]
        milliseconds = round(1000 * settings.connect_timeout_seconds)
        ours: dict[str, Any] = {
            "appname": self._application_name,
            "maxPoolSize": settings.pool_size + settings.pool_max_overflow,
            "maxIdleTimeMS": round(1000 * settings.pool_idle_seconds),
            "waitQueueTimeoutMS": round(1000 * settings.pool_timeout_seconds),
            "serverSelectionTimeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            "socketTimeoutMS": round(1000 * self._silence),
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
                    event_listeners=[self._pool, self._commands],
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

    def ping(self) -> float:
        """Milliseconds that an empty command took through the pool."""
        started = time.perf_counter()
        with self.errors():
            self.client.admin.command("ping")
        return 1000 * (time.perf_counter() - started)

    def pool(self) -> PoolStats:
        """The connection pool of this process, now."""
        return self._pool.stats(self.name)

    def holds(self) -> list[Hold]:
        """The connections of this process that are lent now, longest first."""
        return self._pool.usage.holds(self.name)

    def commands(self) -> list[CommandStats]:
        """The commands sent through this store since `commands_since`, one entry per shape."""
        return self._commands.stats()

    def query_stats(self) -> QueryStats:
        """What was asked through this store since it was made, and how long it took."""
        return self.times.read()

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
            raise self._translate(error) from without_values(error)

    def _translate(self, error: Exception) -> FwdbError:
        code = getattr(error, "code", None)
        if isinstance(error, driver.PyMongoError) and error.has_error_label(
            "TransientTransactionError"
        ):
            return errors.Transient(
                "mongodb: the transaction met another one; the same work may succeed if repeated."
            )
        match error:
            case driver.DuplicateKeyError() | driver.BulkWriteError():
                return _write_error(error)
            case driver.WaitQueueTimeoutError():
                return errors.PoolExhausted(
                    f"no connection to mongodb at {self.address} became free in time. "
                    "Return connections sooner, or raise FWDB_POOL_MAX_OVERFLOW.",
                    database=self.name,
                )
            case driver.OperationFailure():
                return self._refused(error, code)
            case driver.ExecutionTimeout():
                return errors.QueryTimeout("mongodb did not finish the operation in time.")
            case driver.NetworkTimeout():
                variable = "MONITOR_TIMEOUT" if self._monitors else "TIMEOUT"
                return errors.StoreUnavailable(
                    f"no answer from mongodb at {self.address} within "
                    f"{self._settings.timeout_seconds:g} s (FWDB_{variable}_SECONDS); whether a "
                    f"change under way was stored is not known. {self._remedy}",
                    database=self.name,
                )
            case driver.ConnectionFailure():
                return errors.StoreUnavailable(
                    f"no answer from mongodb at {self.address} within "
                    f"{self._settings.connect_timeout_seconds:g} s ({_reason(error)}). "
                    f"{self._remedy}",
                    database=self.name,
                )
            case driver.ConfigurationError():
                return errors.ConfigError(f"mongodb: {_reason(error)}. {self._remedy}")
            case driver.DocumentTooLarge():
                return errors.InvalidData(f"mongodb cannot store the document: {_reason(error)}.")
            case BSONError():  # its text quotes the value
                return errors.InvalidData(
                    "mongodb cannot store the document: a key is no plain text, or a value is of "
                    "a type that BSON does not have."
                )
            case _:
                return errors.QueryError(f"mongodb: {_reason(error)}.")

    def _refused(self, error: driver.OperationFailure, code: int | None) -> FwdbError:
        """The server answered with an error `code` (src/mongo/base/error_codes.yml)."""
        if code == 18:
            return errors.AuthenticationFailed(
                f"mongodb at {self.address} refused the user or password. {self._remedy}",
                database=self.name,
            )
        if code in {13, 8000}:
            return errors.PermissionDenied(
                f"mongodb at {self.address}: the user may not do this (code {code})."
            )
        if code == 50:
            return errors.QueryTimeout("mongodb stopped the operation at its time limit.")
        if code == 112:
            return errors.Transient(
                "mongodb: another transaction wrote the same document; try again."
            )
        if code == 121:
            return errors.InvalidData(
                f"mongodb refused the document: {_violations(error) or 'it breaks the validator'}."
            )
        if code in {20, 263}:
            return errors.FeatureUnavailable(
                "mongodb has transactions in a replica set only; this server is not in one."
            )
        if code in {59, 40324}:
            return errors.FeatureUnavailable(f"mongodb at {self.address}: {_reason(error)}.")
        said = re.sub(r"'[^']*'", "'…'", _reason(error))  # it may be a value of a document
        return errors.QueryError(f"mongodb: {said} (code {code}).")


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


def _write_error(error: driver.OperationFailure) -> FwdbError:
    details: Document = dict(error.details or {})
    first: Document = (details.get("writeErrors") or [details])[0]
    if first.get("code") == 121:
        return errors.InvalidData("mongodb refused a document: it breaks the validator.")
    if first.get("code") != 11000:
        return errors.QueryError(f"mongodb refused a write (code {first.get('code')}).")
    fields = tuple(first.get("keyPattern") or {})
    return errors.DuplicateKey(
        f"another document has the same {', '.join(fields) or 'unique value'}.",
        constraint=None,
        fields=fields,
    )


def _violations(error: driver.OperationFailure) -> str:
    """Names of the fields that a $jsonSchema validator refused, never their values."""
    info = (error.details or {}).get("errInfo", {}).get("details", {})
    names: list[str] = []
    for rule in info.get("schemaRulesNotSatisfied", []):
        names += rule.get("missingProperties", [])
        names += [p["propertyName"] for p in rule.get("propertiesNotSatisfied", [])]
    return f"{', '.join(names)} missing or not as the validator wants" if names else ""


def _reason(error: Exception) -> str:
    """The first clause of the driver's message: the rest repeats timeouts, topology and values."""
    text = re.split(r" \(configured timeouts|, full error| ?\{", str(error))[0]
    return text.splitlines()[0].strip().rstrip(".") if text.strip() else type(error).__name__
