"""Writes the trail, in the transaction of the change."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from fwdb.audit import checks, values
from fwdb.audit.base import AuditBase
from fwdb.errors import FwdbError
from fwdb.models import ACTIONS, AuditLog, audit_logs, entity_uuid

__all__ = ["Recording"]

Id = str | UUID


class Recording(AuditBase):
    """What callers record; see `Audit`."""

    def __init__(self, *stores: Any, **options: Any) -> None:
        super().__init__(*stores, **options)
        self._lock = threading.Lock()
        self._written = dict.fromkeys(ACTIONS, 0)
        self._failed = 0

    def log_create(
        self,
        entity_type: str,
        id: Id,
        new: object,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog:
        """Record that `entity_type` `id` was made with the values `new`.

        `new` is an entity or a mapping; its secrets are not stored. `user_id` is who did it.
        Raises `UnknownName` for an entity type fwdb does not have, `ParameterError` for an id
        that is neither a UUID nor an ObjectId, `ForeignKeyViolation` for an unknown user.
        """
        return self._log(
            "CREATE", entity_type, id, None, values.image(new),
            user_id, ip_address, user_agent, metadata,
        )  # fmt: skip

    def log_update(
        self,
        entity_type: str,
        id: Id,
        old: object,
        new: object,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog | None:
        """Record that `entity_type` `id` changed from `old` to `new`: the fields that differ.

        Nothing is written, and None returned, when nothing but `updated_at` and `version`
        differs. The two values of each changed field are all that a history, a difference and
        going back in time need, at a fraction of two whole images. Raises as `log_create`.
        """
        checks.recordable(entity_type)
        differing = values.changes(old, new)
        if differing is None:
            return None
        return self._log(
            "UPDATE", entity_type, id, *differing, user_id, ip_address, user_agent, metadata
        )

    def log_delete(
        self,
        entity_type: str,
        id: Id,
        old: object,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog:
        """Record that `entity_type` `id`, whose values were `old`, was deleted, softly or not.

        Call it before the deletion of a user's row who deletes themself: afterwards there is
        no such user to name. Raises as `log_create`.
        """
        return self._log(
            "DELETE", entity_type, id, values.image(old), None,
            user_id, ip_address, user_agent, metadata,
        )  # fmt: skip

    def log_read(
        self,
        entity_type: str,
        id: Id,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog:
        """Record that `entity_type` `id` was read; no values are stored. Raises as `log_create`."""
        return self._log(
            "READ", entity_type, id, None, None, user_id, ip_address, user_agent, metadata
        )

    def _log(
        self,
        action: str,
        entity_type: str,
        id: Id,
        old: values.Values | None,
        new: values.Values | None,
        user_id: Id | None,
        ip_address: str | None,
        user_agent: str | None,
        metadata: str | Mapping[str, Any] | None,
    ) -> AuditLog:
        if isinstance(metadata, Mapping):
            metadata = json.dumps(values.image(metadata), ensure_ascii=False)
        row: dict[str, Any] = {
            "user_id": checks.user(user_id),
            "entity_type": checks.recordable(entity_type),
            "entity_id": str(id) if entity_uuid(id) else None,
            "action": action,
            "old_values": old,
            "new_values": new,
            "metadata": values.text(metadata),
            "ip_address": checks.ip_address(ip_address),
            "user_agent": values.text(user_agent),
            # The moment of this change, where now() is the start of its transaction: so the
            # changes of one transaction keep their order.
            "created_at": sa.func.clock_timestamp(),
        }
        statement = (
            sa.insert(audit_logs)
            .values({name: value for name, value in row.items() if value is not None})
            .returning(*audit_logs.columns)
        )
        try:
            with self._postgres.connection() as connection:
                entry = AuditLog(**connection.execute(statement).mappings().one())
        except FwdbError:
            with self._lock:
                self._failed += 1
            raise
        with self._lock:
            self._written[action] += 1
        return entry

    def counts(self) -> tuple[dict[str, int], int]:
        """Entries written through this object, by action, and how many could not be.

        Those of a transaction that was rolled back later are among the written ones.
        """
        with self._lock:
            return dict(self._written), self._failed
