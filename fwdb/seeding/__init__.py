"""Data to work with: the seed data, synthetic volume, and a workload that makes things happen."""

from __future__ import annotations

from fwdb.seeding.seeder import Counts, Seeder

__all__ = ["Counts", "Seeder"]
