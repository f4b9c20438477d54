"""What the two databases hold: the tables of PostgreSQL, the `designs` documents, the entities.

`tables` has the SQLAlchemy tables, `entities` the frozen dataclasses that repositories give out
and the one mapping between a `Design` and its document, `ids` the way an id of either store
fits into the one uuid column of the audit log.
"""

from __future__ import annotations

from fwdb.models import monitoring
from fwdb.models.entities import (
    DESIGN_FIELDS,
    AuditLog,
    Avatar,
    CatalogItem,
    Design,
    User,
    design_cell,
    design_document,
    design_fields,
    design_problems,
    document_id,
)
from fwdb.models.ids import Id, document_uuid, entity_id, entity_uuid
from fwdb.models.tables import (
    ACTIONS,
    AUDIT_FACTS,
    CATALOG_CATEGORIES,
    CATALOG_TYPES,
    DESIGN_STATUSES,
    GENDERS,
    EntityId,
    Label,
    audit_logs,
    avatars,
    catalog_items,
    metadata,
    users,
)

__all__ = [
    "ACTIONS",
    "AUDIT_FACTS",
    "CATALOG_CATEGORIES",
    "CATALOG_TYPES",
    "DESIGN_FIELDS",
    "DESIGN_STATUSES",
    "GENDERS",
    "AuditLog",
    "Avatar",
    "CatalogItem",
    "Design",
    "EntityId",
    "Id",
    "Label",
    "User",
    "audit_logs",
    "avatars",
    "catalog_items",
    "design_cell",
    "design_document",
    "design_fields",
    "design_problems",
    "document_id",
    "document_uuid",
    "entity_id",
    "entity_uuid",
    "metadata",
    "monitoring",
    "users",
]
