"""`Measure`, which the audit trail has too, under the name that the monitoring knows."""

from __future__ import annotations

from fwdb.measure import Measure, Status, Window, measured, unmeasured

__all__ = ["Measure", "Status", "Window", "measured", "unmeasured"]
