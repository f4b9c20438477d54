"""The list of series, the documentation and what is scraped say the same."""

from __future__ import annotations

import re

import pytest
from prometheus_client import Metric
from support import ROOT

from fwdb.audit.coverage import KINDS
from fwdb.metrics.series import BY_NAME, DATABASES, POOL_STATES, PROBES, SERIES
from fwdb.stores import commands, statements
from fwdb.stores.failures import ERROR_TYPES
from fwdb.stores.timings import BOUNDS_SECONDS

PAGE = (ROOT / "docs" / "metrics.md").read_text()

# The existing service's, with the labels that its dashboards and rules use.
SEED = {
    "db_query_duration_seconds": ("histogram", ("database", "operation", "status")),
    "db_query_errors_total": ("counter", ("database", "error_type")),
    "db_queries_total": ("counter", ("database", "operation")),
    "db_connection_pool_size": ("gauge", ("database", "state")),
    "db_connection_pool_utilization": ("gauge", ("database",)),
    "db_health_status": ("gauge", ("database",)),
    "db_cache_hit_ratio": ("gauge", ("database",)),
    "db_replication_lag_seconds": ("gauge", ("database",)),
}


def documented() -> dict[str, list[str]]:
    """The rows of the table of series, by name."""
    found = {}
    for line in PAGE.splitlines():
        if match := re.match(r"\| `((?:db|fwdb)_\w+)` \|", line):
            found[match[1]] = [cell.strip() for cell in line.strip("|").split(" | ")]
    return found


def test_the_series_of_the_existing_service_are_as_they_were():
    """First in the list, with their names, types and labels."""
    first = {one.name: (one.kind, one.labels) for one in SERIES[: len(SEED)]}

    assert first == SEED


def test_every_series_is_documented_and_no_other():
    assert set(documented()) == set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_row_says_type_labels_and_an_example(name: str):
    """The example asks for this very series."""
    series, row = BY_NAME[name], documented()[name]

    assert row[1] == series.kind
    assert re.findall(r"`(\w+)`", row[2]) == list(series.labels)
    assert all(row[3:5])
    assert name in row[-1]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_name_follows_the_customs_of_prometheus(name: str):
    """Counters end in _total, times are in seconds, and nothing else does or is."""
    series = BY_NAME[name]
    Metric(name, series.help, series.kind)  # refuses a name that is none

    assert name.endswith("_total") == (series.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|percent)\b", name)
    assert series.help.endswith(".")


@pytest.mark.parametrize(
    "words",
    [
        *(DATABASES, POOL_STATES, PROBES, ERROR_TYPES, statements.OPERATIONS, commands.OPERATIONS),
        tuple(kind for kinds in KINDS.values() for kind in kinds),
    ],
    ids=["database", "state", "probe", "error_type", "operation", "command", "kind"],
)
def test_every_value_of_a_label_is_documented(words: tuple[str, ...]):
    """Whoever writes a rule can look up what there is to select."""
    assert [word for word in words if f"`{word}`" not in PAGE] == []


def test_the_buckets_are_documented():
    listed = re.search(r"^Buckets: (.+?)\.$", PAGE, re.MULTILINE | re.DOTALL)

    assert listed
    assert [float(n) for n in re.findall(r"[\d.]+\d|\d+", listed[1])] == list(BOUNDS_SECONDS)
