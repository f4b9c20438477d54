"""Pools, slow queries, cache, replication and health of both stores, now and over a window."""

from __future__ import annotations

from fwdb.measure import Measure
from fwdb.monitoring.health import Health, StoreHealth
from fwdb.monitoring.monitor import Monitor
from fwdb.monitoring.plans import Plan
from fwdb.monitoring.sampler import Sample

__all__ = ["Health", "Measure", "Monitor", "Plan", "Sample", "StoreHealth"]
