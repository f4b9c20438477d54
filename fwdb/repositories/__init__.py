"""Entities in and out of both stores with the same verbs.

``PostgresRepository(store, models.USERS)`` serves a table, ``MongoRepository(store,
models.DESIGNS)`` a collection; `Repository` is what both can do. `fwdb.repositories.filters` has
the filters.
"""

from __future__ import annotations

from fwdb.repositories.base import Repository
from fwdb.repositories.mongodb import MongoRepository
from fwdb.repositories.paging import Page, Slice
from fwdb.repositories.postgres import PostgresRepository

__all__ = ["MongoRepository", "Page", "PostgresRepository", "Repository", "Slice"]
