"""Data to work with: the seed data, synthetic volume, and a workload that makes things happen."""

from __future__ import annotations

from fwdb.seeding.seeder import Counts, Seeder
from fwdb.seeding.workload import POOL, WorkloadResult, run_workload

__all__ = ["POOL", "Counts", "Seeder", "WorkloadResult", "run_workload"]
