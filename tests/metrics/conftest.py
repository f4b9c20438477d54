"""Reading what is exposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.urls import url_of

from fwdb import config
from fwdb.database import Database
from fwdb.stores import MongoStore, PostgresStore

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Exposed:
    """The samples of one scrape: ``exposed("db_queries_total", database="postgres")``."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all samples that have these labels; 0 without any."""
        return sum(self.each(name, **labels))

    def each(self, name: str, **labels: str) -> list[float]:
        """The values of all samples that have these labels."""
        wanted = labels.items()
        return [
            s.value for s in self._samples if s.name == name and wanted <= dict(s.labels).items()
        ]


@pytest.fixture
def scrape() -> Callable[[Database], Exposed]:
    """What a scrape of a database says now, whenever the last one was."""

    def read(db: Database) -> Exposed:
        db.metrics._probes._readings.max_age = -1
        return Exposed(db.metrics.text())

    return read


@pytest.fixture
def alone(module_db: Database) -> Callable[..., AbstractContextManager[Database]]:
    """Makes a `Database` in which nothing is counted yet: on the servers of the module, or on
    those of the URLs `postgres` and `mongodb`, with other settings."""

    @contextmanager
    def make(
        postgres: str | None = None, mongodb: str | None = None, **settings: object
    ) -> Iterator[Database]:
        chosen = config.settings().model_copy(update={"connect_timeout_seconds": 1, **settings})
        stores = (
            PostgresStore(postgres or url_of(module_db.postgres), settings=chosen),
            MongoStore(mongodb or url_of(module_db.mongodb), settings=chosen),
        )
        with Database(*stores, settings=chosen) as made:
            yield made

    return make
