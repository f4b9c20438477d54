"""`connect()` and what it gives: the two stores and the parts that stand on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import pandas as pd
import sqlalchemy as sa
from pydantic import SecretStr

from fwdb import config, models
from fwdb.arguments import checks_arguments
from fwdb.repositories import MongoRepository, PostgresRepository
from fwdb.stores import MongoStore, PostgresStore

if TYPE_CHECKING:  # each is loaded when it is asked for
    from fwdb.audit import Audit
    from fwdb.metrics import Metrics
    from fwdb.monitoring import Health, Monitor
    from fwdb.seeding import Seeder

Role = Literal["app", "owner", "report"]
STORES = (PostgresStore.name, MongoStore.name)
E = TypeVar("E", bound=models.Record)


@checks_arguments
def connect(
    profile: str | None = None,
    *,
    postgres_url: str | None = None,
    mongodb_url: str | None = None,
    role: Role = "app",
    application_name: str = "fwdb",
    settings: config.Settings | None = None,
    progress: Callable[[str], None] | None = None,
) -> Database:
    """A `Database` over the stores that the arguments, `profile` or FWDB_* variables name.

    A store without a URL is the built-in server, which is started if it does not run; on it
    `role` chooses between the account that reads and writes rows (``app``), the one that owns
    the schema (``owner``) and the one that only reads (``report``). Servers named by a URL are
    used as the URL says, and are not dialled before the first question, so a server that is
    down shows then, as `StoreUnavailable`, and leaves the other store usable. `settings` are
    read from the environment unless given.
    """
    settings = settings or config.settings(profile)
    if postgres_url is not None:  # what is kept for the built-in server is not kept for this one
        settings = settings.model_copy(update={"postgres_url": SecretStr(postgres_url)})
    urls = {
        "postgres": postgres_url or _secret(settings.postgres_url),
        "mongodb": mongodb_url or _secret(settings.mongodb_url),
    }
    remedies = {name: _remedy(settings.profile, name) for name in urls}
    if missing := tuple(name for name, url in urls.items() if not url):
        from fwdb import embedded

        servers = embedded.up(settings.home, stores=missing, progress=progress)
        for name in missing:
            urls[name] = getattr(getattr(servers, name), role)
            remedies[name] = _START
    postgres = PostgresStore(
        urls["postgres"] or "",
        application_name=application_name,
        settings=settings,
        read_only=role == "report",
        remedy=remedies["postgres"],
    )
    mongodb = MongoStore(
        urls["mongodb"] or "",
        application_name=application_name,
        settings=settings,
        remedy=remedies["mongodb"],
    )
    return Database(postgres, mongodb, settings=settings)


@overload
def _repository(
    entity: models.TableEntity[E],
) -> cached_property[PostgresRepository[E]]: ...
@overload
def _repository(entity: models.DocumentEntity[E]) -> cached_property[MongoRepository[E]]: ...
def _repository(entity: models.Entity[Any]) -> Any:
    """The attribute of `Database` with what is stored of `entity`."""

    def made(db: Database) -> object:
        from fwdb.repositories import MongoRepository, PostgresRepository

        if isinstance(entity, models.DocumentEntity):
            return MongoRepository(db.mongodb, entity, trail=db.postgres)
        assert isinstance(entity, models.TableEntity)
        return PostgresRepository(db.postgres, entity)

    made.__doc__ = f"{entity.about} `{entity.stored_in}`."
    return cached_property(made)


@checks_arguments
class Database:
    """Both stores and every part of fwdb over them. Close it, or use it in a ``with``.

    >>> with fwdb.connect() as db:                                      # doctest: +SKIP
    ...     db.users.count(role="designer")
    """

    def __init__(
        self, postgres: PostgresStore, mongodb: MongoStore, *, settings: config.Settings
    ) -> None:
        self.postgres = postgres
        self.mongodb = mongodb
        self.settings = settings

    # -- the data -----------------------------------------------------------------------------

    # Named for those who read and complete them; the other entities are added below.
    users = _repository(models.USERS)
    avatars = _repository(models.AVATARS)
    catalog_items = _repository(models.CATALOG_ITEMS)
    designs = _repository(models.DESIGNS)
    audit_logs = _repository(models.AUDIT_LOGS)

    def frame(self, sql: str, /, **parameters: Any) -> pd.DataFrame:
        """The answer of PostgreSQL to `sql`, with ``:name`` parameters, as a DataFrame."""
        return self.postgres.frame(sa.text(sql), **parameters)

    @contextmanager
    def transaction(
        self, *, isolation: str | None = None, timeout_ms: int | None = None
    ) -> Iterator[Self]:
        """A PostgreSQL transaction that every repository and audit call of this thread joins.

        Rolled back on any error; a transaction inside one is a savepoint. Designs are in
        another database and not part of it: ``db.mongodb.transaction()`` is theirs, and nothing
        makes the two atomic together.
        """
        with self.postgres.transaction(isolation=isolation, timeout_ms=timeout_ms):
            yield self

    # -- the parts ----------------------------------------------------------------------------

    @cached_property
    def audit(self) -> Audit:
        """Who changed what, when."""
        from fwdb.audit import Audit

        return Audit(self.postgres, self.mongodb, settings=self.settings)

    @cached_property
    def monitor(self) -> Monitor:
        """Questions about the servers and the pools."""
        from fwdb import migrating
        from fwdb.monitoring import Monitor

        return Monitor(
            self.postgres,
            self.mongodb,
            settings=self.settings,
            history=self._history_store,
            behind=migrating.behind,
        )

    @cached_property
    def _history_store(self) -> PostgresStore | None:
        """Where readings are kept instead of in the database that is watched."""
        url = _secret(self.settings.history_url)
        if url is None:
            return None
        return PostgresStore(
            url,
            application_name=self.postgres.application_name,
            settings=self.settings,
            remedy="Check FWDB_HISTORY_URL.",
        )

    @cached_property
    def metrics(self) -> Metrics:
        """What Prometheus gets to see."""
        from fwdb.metrics import Metrics

        return Metrics(self.postgres, self.mongodb, self.monitor, audit=lambda: self.audit.counts())

    @cached_property
    def seeder(self) -> Seeder:
        """Seed data and synthetic volume."""
        from fwdb.seeding import Seeder

        return Seeder(self.postgres, self.mongodb)

    def health(self) -> Health:
        """Whether each store is up, degraded or down, and why."""
        return self.monitor.health()

    # -- life ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections of both stores. The servers stay as they are."""
        for part in ("metrics", "monitor"):
            if part in self.__dict__:
                self.__dict__[part].close()
        self.postgres.close()
        self.mongodb.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database(postgres={self.postgres.address}, mongodb={self.mongodb.address})"


for _entity in models.ENTITIES.values():
    if not hasattr(Database, _entity.attribute):
        _made = _repository(_entity)  # type: ignore[call-overload]
        _made.__set_name__(Database, _entity.attribute)
        setattr(Database, _entity.attribute, _made)


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None


# What to do when a store cannot be reached: a built-in one, and one that a URL names.
_START = "Start the built-in servers with 'fwdb up'; 'fwdb doctor' says what is wrong."


def _remedy(profile: str, store: str) -> str:
    middle = "" if profile == "default" else f"{profile.upper()}_"
    variable = f"FWDB_{middle}{store.upper()}_URL"
    return f"Check {variable}, or unset it to use the built-in server."
