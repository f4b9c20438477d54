"""The audit trail: what changed, who did it, when; written with the change, asked as frames."""

from __future__ import annotations

from fwdb.audit.draining import Drained
from fwdb.audit.erasing import Erasure
from fwdb.audit.findings import Finding, Verification
from fwdb.audit.partitions import Retired
from fwdb.audit.retention import PartitionsAhead, Retention
from fwdb.audit.sealing import Sealed
from fwdb.audit.trail import Audit

__all__ = [
    "Audit",
    "Drained",
    "Erasure",
    "Finding",
    "PartitionsAhead",
    "Retention",
    "Retired",
    "Sealed",
    "Verification",
]
