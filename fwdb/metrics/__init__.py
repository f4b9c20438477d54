"""What Prometheus gets to see: series, their collection at scrape time, a small server."""

from __future__ import annotations

from fwdb.metrics.metrics import Metrics
from fwdb.metrics.series import SERIES, Series
from fwdb.metrics.server import MetricsServer

__all__ = ["SERIES", "Metrics", "MetricsServer", "Series"]
