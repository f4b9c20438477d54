"""The Grafana dashboard: what a linter of dashboards would ask of it. Grafana itself is not run."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from support.promql import selectors, series

from fwdb.metrics import dashboard

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
