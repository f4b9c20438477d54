"""What Prometheus gets to see: series, their collection at scrape time, a small server."""

from __future__ import annotations

from importlib import resources

from fwdb.metrics.metrics import Metrics
from fwdb.metrics.series import SERIES, Series
from fwdb.metrics.server import MetricsServer

__all__ = ["SERIES", "Metrics", "MetricsServer", "Series", "dashboard", "rules"]


def rules() -> str:
    """The rule file for Prometheus, as YAML; its series are those of the scrape job ``fwdb``.

    Each alert has a severity, a summary, a description with the value, and a section in
    docs/runbooks.md. `fwdb rules` prints it.
    """
    return resources.files(__name__).joinpath("rules.yml").read_text(encoding="utf-8")


def dashboard() -> str:
    """The dashboard as JSON, ready for Grafana's import.

    It asks for a Prometheus data source when it is imported, and has variables for job and
    instance. Blue is normal, orange a warning, vermilion critical, as in the reports.
    `fwdb dashboard` prints it.
    """
    return resources.files(__name__).joinpath("dashboard.json").read_text(encoding="utf-8")
