"""What a report run leaves for Prometheus: a file beside the report, and a push if wanted.

A run opens no port: it would be over before anybody scrapes it. Only when it ran and how it went
leave it; its query counts do not, because those of two runs would be one series, of which a
Pushgateway keeps the last and a textfile collector refuses both.
"""

from __future__ import annotations

import http.client
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from fwdb.errors import redact
from fwdb.metrics import exposition
from fwdb.metrics.series import REPORT_SERIES

logger = logging.getLogger(__name__)

FILE = "metrics.prom"
JOB = "fwdb"

# The client's own 30 s would hold up a suite of reports while a gateway is away.
_PUSH_SECONDS = 5.0

_LAST_SUCCESS = re.compile(
    r"^fwdb_report_last_success_timestamp_seconds\{[^}]*\} (\S+)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class ReportRun:
    """A run of `report` that ended at `ended_at` (seconds since 1970) and took `seconds`.

    `last_success_at` is when the last run that ended well did; None if there was none yet.
    """

    report: str
    succeeded: bool
    ended_at: float
    seconds: float
    last_success_at: float | None = None

    def write(self, folder: Path) -> None:
        """Put ``metrics.prom`` into `folder`. Raises `MetricsError`."""
        exposition.write(folder / FILE, self._registry())

    def push(self, gateway: str) -> None:
        """Send the same to the Pushgateway at `gateway`.

        Added to what is there, so that a run that failed leaves the time of the last success. A
        gateway that does not take it is a warning in the log: the report is as good without.
        """
        try:
            pushadd_to_gateway(
                gateway,
                job=JOB,
                registry=self._registry(),
                grouping_key={"report": self.report},
                timeout=_PUSH_SECONDS,
            )
        except (OSError, ValueError, http.client.HTTPException) as error:
            logger.warning(
                "the metrics of report %s were not pushed to %s (%s); the report is complete, see "
                "FWDB_PUSHGATEWAY.",
                self.report,
                redact(gateway),
                getattr(error, "reason", None) or type(error).__name__,
            )

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        values = {
            "fwdb_report_last_run_success": float(self.succeeded),
            "fwdb_report_last_run_timestamp_seconds": self.ended_at,
            "fwdb_report_last_success_timestamp_seconds": self.last_success_at,
            "fwdb_report_last_run_duration_seconds": self.seconds,
        }
        for series in REPORT_SERIES:
            value = values[series.name]
            if value is not None:
                gauge = Gauge(series.name, series.help, series.labels, registry=registry)
                gauge.labels(self.report).set(value)
        return registry


def last_success(folder: Path) -> float | None:
    """When the last good run ended, as the ``metrics.prom`` in `folder` has it; None if unknown."""
    try:
        found = _LAST_SUCCESS.search((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return float(found[1]) if found else None
