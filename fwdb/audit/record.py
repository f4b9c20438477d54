"""Writes the trail, in the transaction of the change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from fwdb.audit import arguments, values
from fwdb.audit.context import Context
from fwdb.errors import FwdbError, ParameterError
from fwdb.models import AuditLog, Id, audit_logs, entity_uuid
from fwdb.stores import actor

__all__ = ["context", "counts", "log_create", "log_delete", "log_read", "log_update"]

# To the function, the way in for those who may not change the table.
_RECORD = (
    sa.text(
        f"SELECT {', '.join(column.name for column in audit_logs.columns)} FROM audit.record("
        "CAST(:entity_type AS text), :entity_id, CAST(:action AS text), :old_values, :new_values,"
        " CAST(:metadata AS text), :user_id, CAST(:ip_address AS text),"
        " CAST(:user_agent AS text), CAST(:reason AS text))"
    )
    .bindparams(
        *(
            sa.bindparam(name, type_=audit_logs.c[name].type)
            for name in ("entity_id", "user_id", "old_values", "new_values")
        )
    )
    .columns(*audit_logs.columns)
)


def _plain(row: dict[str, Any]) -> sa.Executable:
    """For a database that nobody migrated, whose table has no column for the reason."""
    known = {name: value for name, value in row.items() if value is not None and name != "reason"}
    if (note := row["metadata"] or row["reason"]) is not None:
        known["metadata"] = note
    # The moment of this change, where now() is the start of its transaction: so the changes of
    # one transaction keep their order.
    known["created_at"] = sa.func.clock_timestamp()
    return sa.insert(audit_logs).values(known).returning(*audit_logs.columns)


@contextmanager
def context(
    self: Context,
    *,
    user_id: Id | None = None,
    ip_address: arguments.Address | None = None,
    user_agent: str | None = None,
    reason: str | None = None,
) -> Iterator[None]:
    """While the block runs, what this thread changes in either store is done by that user.

    Each transaction of PostgreSQL that is begun in the block names them, in the same round
    trip as BEGIN; one that is open hears of them at once, and of who acted before at the
    end. A statement outside of a transaction gets a short one of its own; a plain selection
    does not. Changes of designs carry them in the field ``_audit``. The `log_…` methods and
    reads that are recorded take what they are not given from here.

    What a context within another does not say is as in the outer one. Other threads, also
    those started in the block, begin with nobody. No connection keeps anything after the
    transaction. Raises `ParameterError` for an id or address that is none, or for nothing.
    """
    said = _said(user_id, ip_address, user_agent, reason)
    if said == actor.Actor():
        raise ParameterError(
            "context() says nothing; give user_id, ip_address, user_agent or reason."
        )
    with actor.acting(said):
        yield


def log_create(
    self: Context,
    entity_type: str,
    id: Id,
    new: object,
    *,
    user_id: Id | None = None,
    ip_address: arguments.Address | None = None,
    user_agent: str | None = None,
    metadata: str | Mapping[str, Any] | None = None,
) -> AuditLog:
    """Record that `entity_type` `id` was made with the values `new`.

    `new` is an entity or a mapping; its secrets are not stored. `user_id` is who did it; what
    is not given comes from `context`. If a trigger has recorded this in the transaction
    already, there is no second row: that one gets what it lacks of actor, address, agent and
    metadata, and is returned.

    Raises `UnknownName` for an entity type fwdb does not have and `ParameterError` for an id
    that is neither a UUID nor an ObjectId. Any user id is taken, except where a table of the
    service has a foreign key: `ForeignKeyViolation`.
    """
    images, said = (None, values.image(new)), _said(user_id, ip_address, user_agent)
    return _log(self, "CREATE", entity_type, id, images, said, metadata)


def log_update(
    self: Context,
    entity_type: str,
    id: Id,
    old: object,
    new: object,
    *,
    user_id: Id | None = None,
    ip_address: arguments.Address | None = None,
    user_agent: str | None = None,
    metadata: str | Mapping[str, Any] | None = None,
) -> AuditLog | None:
    """Record that `entity_type` `id` changed from `old` to `new`: the fields that differ.

    Nothing is written, and None returned, when nothing but `updated_at` and `version`
    differs. The two values of each changed field are all that a history, a difference and
    going back in time need, at a fraction of two whole images. Raises as `log_create`.
    """
    arguments.recordable(entity_type)
    images = values.changes(old, new)
    if images is None:
        return None
    said = _said(user_id, ip_address, user_agent)
    return _log(self, "UPDATE", entity_type, id, images, said, metadata)


def log_delete(
    self: Context,
    entity_type: str,
    id: Id,
    old: object,
    *,
    user_id: Id | None = None,
    ip_address: arguments.Address | None = None,
    user_agent: str | None = None,
    metadata: str | Mapping[str, Any] | None = None,
) -> AuditLog:
    """Record that `entity_type` `id`, whose values were `old`, was deleted, softly or not.

    Call it after the change, as the others: what a trigger records later would be a second
    row. Raises as `log_create`.
    """
    images, said = (values.image(old), None), _said(user_id, ip_address, user_agent)
    return _log(self, "DELETE", entity_type, id, images, said, metadata)


def log_read(
    self: Context,
    entity_type: str,
    id: Id,
    *,
    user_id: Id | None = None,
    ip_address: arguments.Address | None = None,
    user_agent: str | None = None,
    metadata: str | Mapping[str, Any] | None = None,
) -> AuditLog:
    """Record that `entity_type` `id` was read; no values are stored. Raises as `log_create`."""
    said = _said(user_id, ip_address, user_agent)
    return _log(self, "READ", entity_type, id, (None, None), said, metadata)


def _log(
    self: Context,
    action: str,
    entity_type: str,
    id: Id,
    images: tuple[values.Values | None, values.Values | None],
    said: actor.Actor,
    metadata: str | Mapping[str, Any] | None,
) -> AuditLog:
    who = said.within(actor.current())
    if isinstance(metadata, Mapping):
        metadata = json.dumps(values.image(metadata), ensure_ascii=False)
    row: dict[str, Any] = {
        "entity_type": arguments.recordable(entity_type),
        "entity_id": str(id) if entity_uuid(id) else None,
        "action": action,
        "old_values": images[0],
        "new_values": images[1],
        "metadata": values.text(metadata),
        **asdict(who),
    }
    try:
        known = self.postgres.has_function("audit.record")
        # The statement itself says who acts.
        with self.postgres.connection(naming=False) as connection:
            result = connection.execute(*((_RECORD, row) if known else (_plain(row),)))
            entry = AuditLog(**result.mappings().one())
    except FwdbError:
        with self.tally.lock:
            self.tally.failed += 1
        raise
    with self.tally.lock:
        self.tally.written[action] += 1
    return entry


def _said(
    user_id: Id | None,
    ip_address: arguments.Address | None,
    user_agent: str | None,
    reason: str | None = None,
) -> actor.Actor:
    return actor.Actor(
        user_id=arguments.user(user_id),
        ip_address=arguments.ip_address(ip_address),
        user_agent=values.text(user_agent),
        reason=values.text(reason),
    )


def counts(self: Context) -> tuple[dict[str, int], int]:
    """Entries written through this object, by action, and how many could not be.

    Those of a transaction that was rolled back later are among the written ones.
    """
    with self.tally.lock:
        return dict(self.tally.written), self.tally.failed
