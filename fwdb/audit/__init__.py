"""The audit trail: what changed, who did it, when; written with the change, asked as frames."""

from __future__ import annotations

from fwdb.audit.partitions import Retired
from fwdb.audit.retention import PartitionsAhead, Retention
from fwdb.audit.trail import Audit

__all__ = ["Audit", "PartitionsAhead", "Retention", "Retired"]
