"""What the two databases hold.

`entities` declares each entity once, `registry` says what such a declaration means and lists
them, `monitoring` has the tables of readings, `ids` the way an id of either store fits into the
one uuid column of the audit log.
"""

from __future__ import annotations

from fwdb.models import monitoring
from fwdb.models.columns import EntityId, Label, metadata
from fwdb.models.entities import (
    ACTIONS,
    AUDIT_FACTS,
    AUDIT_LOGS,
    AVATARS,
    CATALOG_ITEMS,
    CATALOG_TYPES,
    DESIGN_STATUSES,
    DESIGNS,
    GENDERS,
    USERS,
    AuditLog,
    Avatar,
    CatalogItem,
    Design,
    User,
    audit_logs,
    avatars,
    catalog_items,
    users,
)
from fwdb.models.ids import Id, document_id, document_uuid, entity_id, entity_uuid
from fwdb.models.registry import (
    BOOKKEEPING,
    COLLECTIONS,
    ENTITIES,
    MARK,
    TABLES,
    DocumentEntity,
    Entity,
    Field,
    Kind,
    Record,
    TableEntity,
    is_person,
    is_personal,
)

__all__ = [
    "ACTIONS",
    "AUDIT_FACTS",
    "AUDIT_LOGS",
    "AVATARS",
    "BOOKKEEPING",
    "CATALOG_ITEMS",
    "CATALOG_TYPES",
    "COLLECTIONS",
    "DESIGNS",
    "DESIGN_STATUSES",
    "ENTITIES",
    "GENDERS",
    "MARK",
    "TABLES",
    "USERS",
    "AuditLog",
    "Avatar",
    "CatalogItem",
    "Design",
    "DocumentEntity",
    "Entity",
    "EntityId",
    "Field",
    "Id",
    "Kind",
    "Label",
    "Record",
    "TableEntity",
    "User",
    "audit_logs",
    "avatars",
    "catalog_items",
    "document_id",
    "document_uuid",
    "entity_id",
    "entity_uuid",
    "is_person",
    "is_personal",
    "metadata",
    "monitoring",
    "users",
]
