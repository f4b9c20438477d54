"""The list of series, the documentation and what is scraped say the same."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from prometheus_client import Metric
from support import ROOT
from support.promql import selectors, series

from fwdb.audit.coverage import KINDS
from fwdb.metrics import dashboard
from fwdb.metrics.series import BY_NAME, DATABASES, POOL_STATES, PROBES, QUERY_BOUNDS_MS, SERIES
from fwdb.stores import commands, timing
from fwdb.stores.errors import ERROR_TYPES

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


def test_every_series_is_documented_and_no_other():
    """Those of the existing service come first, with their names, types and labels."""
    assert set(documented()) == set(BY_NAME)
    assert {one.name: (one.kind, one.labels) for one in SERIES[: len(SEED)]} == SEED


@pytest.mark.parametrize("name", BY_NAME)
def test_a_name_follows_the_customs_of_prometheus(name):
    """Counters end in _total, times are in seconds, and nothing else does or is. The row of the
    documentation says type, labels and an example that asks for this very series."""
    one, row = BY_NAME[name], documented()[name]
    Metric(name, one.help, one.kind)  # refuses a name that is none

    assert name.endswith("_total") == (one.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|percent)\b", name)
    assert one.help.endswith(".")
    assert row[1] == one.kind
    assert re.findall(r"`(\w+)`", row[2]) == list(one.labels)
    assert all(row[3:5])
    assert name in row[-1]


@pytest.mark.parametrize(
    "words",
    [
        *(DATABASES, POOL_STATES, PROBES, ERROR_TYPES, timing.OPERATIONS, commands.OPERATIONS),
        tuple(kind for kinds in KINDS.values() for kind in kinds),
    ],
    ids=["database", "state", "probe", "error_type", "operation", "command", "kind"],
)
def test_every_value_of_a_label_is_documented(words):
    """Whoever writes a rule can look up what there is to select."""
    assert [word for word in words if f"`{word}`" not in PAGE] == []


def test_the_buckets_are_documented():
    listed = re.search(r"^Buckets: (.+?)\.$", PAGE, re.MULTILINE | re.DOTALL)

    assert listed
    assert [float(n) for n in re.findall(r"[\d.]+\d|\d+", listed[1])] == [
        b / 1000 for b in QUERY_BOUNDS_MS
    ]


# -- the Grafana dashboard: what a linter would ask of it; Grafana itself is not run -------------

DASHBOARD = json.loads(dashboard())
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]


def test_numbers_and_places_are_unique():
    """No two panels share an id or a place, and nothing sticks out of the 24 columns."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in itertools.combinations(DASHBOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_says_what_it_shows_and_of_which_job(panel):
    """Title, meaning and unit; the chosen source and job; counters as rates; series that exist."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs)) > 0
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert target["legendFormat"]
        for name, labels in selectors(target["expr"]):
            known = series(name)
            assert set(labels) <= {*known.labels, "job", "instance", "le"}
            assert {"job", "instance"} <= set(labels)
            if known.kind != "gauge":
                assert "[$__rate_interval]" in target["expr"]


def test_the_variables_ask_for_a_series_that_there_is():
    """Job and instance are those that tell a health."""
    asked = [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]

    assert [selectors(text)[0][0] for text in asked] == ["db_health_status", "db_health_status"]
