"""Reading what is exposed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fwdb.database import Database

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
    """What a scrape of a database says now."""
    return lambda db: Exposed(db.metrics.text())
