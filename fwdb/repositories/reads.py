"""Records in the audit trail which entities a repository gave out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from fwdb.errors import FeatureUnavailable
from fwdb.models import audit_logs, document_uuid
from fwdb.stores import PostgresStore, actor

_BOUND = (
    sa.bindparam("ids", type_=ARRAY(sa.Uuid)),
    sa.bindparam("user_id", type_=audit_logs.c.user_id.type),
)
_FUNCTION = "audit.record_reads"
_RECORD = sa.text(
    f"SELECT {_FUNCTION}(CAST(:entity_type AS text), :ids, CAST(:metadata AS text), :user_id,"
    " CAST(:ip_address AS text), CAST(:user_agent AS text), CAST(:reason AS text))"
).bindparams(*_BOUND)
# For a database that nobody migrated, whose table has no column for the reason.
_INSERT = sa.text(
    "INSERT INTO audit.audit_logs (user_id, entity_type, entity_id, action, metadata, ip_address,"
    " user_agent, created_at)"
    " SELECT :user_id, :entity_type, id, 'READ', coalesce(:metadata, :reason), :ip_address,"
    " :user_agent, clock_timestamp() FROM unnest(:ids) AS id"
).bindparams(*_BOUND)


class ReadTrail:
    """The trail, for readings of entities of one kind."""

    def __init__(self, store: PostgresStore | None, entity_type: str, sample: float) -> None:
        if entity_type == "AuditLog":
            raise FeatureUnavailable("reading the audit trail is not recorded in it.")
        if store is None:
            raise FeatureUnavailable(
                "this repository knows no PostgreSQL to record reads in; use that of connect()."
            )
        self._store = store
        self._entity_type = entity_type
        self._sample = sample
        self._metadata = None if sample == 1 else json.dumps({"sample": sample})

    def record(self, ids: Iterable[Any]) -> None:
        """Record by one statement that these were read."""
        read = [
            document_uuid(id)[0]
            for id in ids
            if self._sample == 1 or random.random() < self._sample  # noqa: S311 - no secret
        ]
        if not read:
            return
        who = actor.current() or actor.Actor()
        known = self._store.has_function(_FUNCTION)
        # The statement itself says who acts.
        with self._store.connection(naming=False) as connection:
            connection.execute(
                _RECORD if known else _INSERT,
                {
                    "entity_type": self._entity_type,
                    "ids": read,
                    "metadata": self._metadata,
                    "user_id": who.user_id,
                    "ip_address": who.ip_address,
                    "user_agent": who.user_agent,
                    "reason": who.reason,
                },
            )
