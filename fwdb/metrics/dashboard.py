"""The Grafana dashboard that comes with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

# Panels of a row share Grafana's 24 columns.
_COLUMNS, _HEIGHT = 24, 8
_SELECT = 'job=~"$job", instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are pairs of an expression and the legend of its lines.

    ``@`` in an expression stands for the selection of job and instance.
    """

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    lines: tuple[tuple[float, str], ...] = ()
    top: float | None = None


# Blue is normal, orange a warning, vermilion critical: the colours of fwdb's reports (Okabe-Ito).
_NORMAL, _WARNING, _CRITICAL = "#0072B2", "#E69F00", "#D55E00"

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Are they there?",
        (
            Panel(
                "Health",
                "1 if the server answered within a second. DatabaseUnhealthy after a minute of 0.",
                "short",
                (("db_health_status{@}", "{{database}}"),),
                kind="stat",
                lines=((0, _CRITICAL), (1, _NORMAL)),
            ),
            Panel(
                "Answers, but not as it should",
                "1 if it is slow, read-only, or all connections of the pool are in use.",
                "short",
                (("db_health_degraded{@}", "{{database}}"),),
                kind="stat",
                lines=((0, _NORMAL), (1, _WARNING)),
            ),
            Panel(
                "Questions that fail",
                "Probes whose series are missing at the moment; nothing here is good.",
                "short",
                (("1 - fwdb_probe_success{@}", "{{database}} {{probe}}"),),
                kind="stat",
                lines=((0, _NORMAL), (1, _WARNING)),
            ),
        ),
    ),
    (
        "Operations",
        (
            Panel(
                "Operations",
                "Ended per second, with success or not.",
                "ops",
                (
                    (
                        "sum by (database, operation) "
                        "(rate(db_queries_total{@}[$__rate_interval]))",
                        "{{database}} {{operation}}",
                    ),
                ),
            ),
            Panel(
                "Slower than a second",
                "Share of the operations that took longer than 1 s. SlowQueries over 5 %.",
                "percentunit",
                (
                    (
                        "1 - sum by (database) (rate(db_query_duration_seconds_bucket"
                        '{@, le=~"1|1\\\\.0"}[$__rate_interval])) / sum by (database) '
                        "(rate(db_query_duration_seconds_count{@}[$__rate_interval]))",
                        "{{database}}",
                    ),
                ),
                lines=((0, _NORMAL), (0.05, _WARNING)),
                top=1,
            ),
            Panel(
                "Duration, 95th percentile",
                "Within the bounds of the histogram's buckets: the point between them is a guess.",
                "s",
                (
                    (
                        "histogram_quantile(0.95, sum by (database, le) "
                        "(rate(db_query_duration_seconds_bucket{@}[$__rate_interval])))",
                        "{{database}}",
                    ),
                ),
            ),
            Panel(
                "Errors",
                "Failed operations per second, by cause.",
                "ops",
                (
                    (
                        "sum by (database, error_type) "
                        "(rate(db_query_errors_total{@}[$__rate_interval]))",
                        "{{database}} {{error_type}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Pools",
        (
            Panel(
                "Pool utilisation",
                "Connections in use, percent of all that the pool may open.",
                "percent",
                (("db_connection_pool_utilization{@}", "{{database}} {{instance}}"),),
                lines=((0, _NORMAL), (80, _WARNING), (95, _CRITICAL)),
                top=100,
            ),
            Panel(
                "Callers that wait",
                "Now, for a connection of the pool. ConnectionPoolStarved after a minute.",
                "short",
                (
                    (
                        'db_connection_pool_size{@, state="waiting"}',
                        "{{database}} {{instance}}",
                    ),
                ),
                lines=((0, _NORMAL), (1, _WARNING)),
            ),
            Panel(
                "Waits and time-outs",
                "Callers per second that had to wait, and those that waited in vain.",
                "ops",
                (
                    (
                        "sum by (database) (rate(db_connection_pool_waits_total{@}"
                        "[$__rate_interval]))",
                        "{{database}} waited",
                    ),
                    (
                        "sum by (database) (rate(db_connection_pool_timeouts_total{@}"
                        "[$__rate_interval]))",
                        "{{database}} gave up",
                    ),
                ),
            ),
        ),
    ),
    (
        "Servers",
        (
            Panel(
                "Cache hit ratio",
                "Blocks found in memory, of those asked for; no line where the server cannot tell.",
                "percentunit",
                (
                    (
                        'sum by (database) (rate(db_cache_reads_total{@, result="hit"}'
                        "[$__rate_interval])) / sum by (database) "
                        "(rate(db_cache_reads_total{@}[$__rate_interval]))",
                        "{{database}}",
                    ),
                ),
                lines=((0, _CRITICAL), (0.8, _WARNING), (0.95, _NORMAL)),
                top=1,
            ),
            Panel(
                "Replication lag",
                "Of the slowest replica; no line without a replica.",
                "s",
                (("db_replication_lag_seconds{@}", "{{database}}"),),
                lines=((0, _NORMAL), (5, _WARNING)),
            ),
            Panel(
                "Replicas",
                "That follow the server now.",
                "short",
                (("db_replication_replicas{@}", "{{database}}"),),
            ),
        ),
    ),
    (
        "Audit trail",
        (
            Panel(
                "Audit entries",
                "Written per second by the processes watched here, by action.",
                "ops",
                (
                    (
                        "sum by (action) (rate(fwdb_audit_records_total{@}[$__rate_interval]))",
                        "{{action}}",
                    ),
                ),
            ),
            Panel(
                "Audit entries that could not be written",
                "Any is an alert: AuditWritesFailing.",
                "short",
                (("increase(fwdb_audit_failures_total{@}[$__rate_interval])", "{{instance}}"),),
                lines=((0, _NORMAL), (1, _CRITICAL)),
            ),
        ),
    ),
)


def dashboard() -> str:
    """The dashboard as JSON, ready for Grafana's import; the same text at every call.

    It asks for a Prometheus data source when it is imported, and has variables for job and
    instance. `fwdb dashboard` prints it.
    """
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(_row(len(panels) + 1, title, top))
        top += 1
        width = _COLUMNS // len(row)
        for place, panel in enumerate(row):
            grid = {"x": place * width, "y": top, "w": width, "h": _HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, grid))
        top += _HEIGHT
    document = {
        "uid": "fwdb-databases",
        "title": "Fashion Wallet databases",
        "description": "PostgreSQL and MongoDB as fwdb sees them. Alerts: docs/runbooks.md.",
        "tags": ["fwdb"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"


def _row(id: int, title: str, top: int) -> dict[str, Any]:
    grid = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
    return {
        "id": id, "type": "row", "title": title, "gridPos": grid, "collapsed": False, "panels": []
    }  # fmt: skip


def _panel(id: int, panel: Panel, grid: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    thresholds = [
        {"color": color, "value": None if n == 0 else value}
        for n, (value, color) in enumerate(panel.lines or ((0, _NORMAL),))
    ]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": thresholds},
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.kind == "timeseries" and len(panel.lines) > 1:
        defaults["custom"] = {"thresholdsStyle": {"mode": "dashed"}}
    return {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": grid,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {"colorMode": "background", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "expr": expression.replace("@", _SELECT),
                "legendFormat": legend,
                "datasource": source,
            }
            for n, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    values = (("job", "label_values(db_health_status, job)"),
              ("instance", 'label_values(db_health_status{job=~"$job"}, instance)'))  # fmt: skip
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        *(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": source,
                "query": {"query": query, "refId": name},
                "definition": query,
                "refresh": 2,
                "includeAll": True,
                "multi": True,
                "current": {"text": "All", "value": "$__all"},
            }
            for name, query in values
        ),
    ]
