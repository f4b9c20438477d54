"""Undoing changes: of one entity since a time, of one row of the trail, of one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy.engine import Connection

from fwdb.arguments import Count
from fwdb.audit import arguments, record
from fwdb.audit.context import Context
from fwdb.audit.revert import plan
from fwdb.audit.revert.apply import Documents, Rows, Writer, target
from fwdb.audit.revert.plan import Blocked, Change, Step
from fwdb.errors import NotFound, ParameterError, RevertRefused, shown
from fwdb.models import COLLECTIONS, ENTITIES, DocumentEntity, Id, entity_uuid
from fwdb.timespan import Time

__all__ = ["revert"]


class _DryRun(Exception):
    """Ends the transaction of a dry run."""


def revert(
    self: Context,
    entity_type: str | None = None,
    id: Id | None = None,
    *,
    to: Time | None = None,
    event: Id | None = None,
    transaction_id: Count | None = None,
    dry_run: bool = True,
) -> pd.DataFrame:
    """Undo changes, or with `dry_run` say what would be written.

    `entity_type` and `id` with `to` bring one entity back to that time; `event` undoes one
    row of the trail (its `id`), `transaction_id` all that a transaction changed. Rows come
    back with their ids, deletion included; `updated_at` does not go back.

    The plan: one row per entity and field, `entity_type`, `entity_id`, `does` (``insert``,
    ``update`` or ``delete``), `field`, `now` and `then` (JSON text; missing where it is not
    there). An empty plan: everything is so already.

    It is one transaction, which a dry run rolls back, so a dry run needs the right to write
    and meets every obstacle. The trail records it as any change, with the reason ``revert of
    …``. Raises `RevertRefused`, with the rows in the way, and changes nothing when a later
    change would be lost, a constraint would break, what is needed is redacted in the trail,
    or the entity is gone or there already. Raises `NotFound` for an event or transaction that
    the trail does not have, `ParameterError` for anything but one of the three, and for a
    time from when on changes are in archives.
    """
    asked, what = _asked(self, entity_type, id, to, event, transaction_id)
    steps: list[Step] = []
    # The context stands outside, so that BEGIN already says the reason.
    acting = record.context(self, reason=what)
    with acting, suppress(_DryRun), self.postgres.transaction() as connection:
        steps += _undo(self, connection, what, asked, dry_run=dry_run)
        if dry_run:
            raise _DryRun
    return plan.frame(steps)


def _asked(
    self: Context,
    entity_type: str | None,
    id: Id | None,
    to: Time | None,
    event: Id | None,
    transaction_id: Count | None,
) -> tuple[dict[str, Any], str]:
    """Parameters of the query, and what is reverted in words."""
    if sum(each is not None for each in (to, event, transaction_id)) != 1 or (
        (entity_type is None or id is None) if to is not None else (entity_type or id)
    ):
        raise ParameterError(
            "revert takes one of: entity_type, id and to; event; transaction_id.", name="to"
        )
    asked: dict[str, Any] = dict.fromkeys(
        ("entity_type", "entity_id", "moment", "event", "transaction_id")
    )
    if event is not None:
        return asked | {"event": _log_id(event)}, f"revert of row {event}"
    if to is None or entity_type is None or id is None:
        asked["transaction_id"] = transaction_id
        return asked, f"revert of transaction {transaction_id}"
    moment = arguments.at(to, name="to")
    self.source.require(moment, "to")
    asked["entity_type"] = arguments.askable(self.postgres, entity_type)
    asked |= {"entity_id": entity_uuid(id), "moment": moment}
    return asked, f"revert of {entity_type} {id} to {moment.isoformat()}"


def _undo(
    self: Context, connection: Connection, what: str, asked: dict[str, Any], *, dry_run: bool
) -> list[Step]:
    targets: dict[str, Rows | Documents] = {}

    def of(entity_type: str) -> Rows | Documents:
        if entity_type not in targets:
            targets[entity_type] = target(self, connection, entity_type, what)
        return targets[entity_type]

    def undoing() -> list[Change]:
        rows = self.source.frame("audit_undoing", **asked)
        return plan.changes(rows, lambda entity_type, name: of(entity_type).stored(name))

    # Asked twice: the first time for what to lock, so that the second cannot miss a change.
    subjects = sorted({(change.entity_type, change.entity_id) for change in undoing()})
    for entity_type, group in groupby(subjects, key=lambda subject: subject[0]):
        of(entity_type).lock([id for _, id in group])
    changes = undoing()
    if not any(change.undone for change in changes):
        if asked["moment"] is not None:
            return []
        name = "event" if asked["event"] is not None else "transaction"
        raise NotFound(f"{name} in the trail", asked["event"] or asked["transaction_id"])
    if asked["transaction_id"] is not None:
        _require_captured(what, changes)
    steps: list[Step] = []
    blocked: list[Blocked] = []
    for (entity_type, id), mine in _by_entity(changes):
        store = of(entity_type)
        step, why = plan.undo(mine, store.live(id), store.hidden)
        step = None if step is None else store.storable(step)
        steps += [step] if step is not None else []
        blocked += why
    plan.refuse(what, blocked)
    steps.reverse()
    tables = {name: one for name, one in targets.items() if isinstance(one, Rows)}
    rows = [step for step in steps if step.entity_type in tables]
    plan.refuse(what, Writer(self.postgres, connection, tables).write(rows))
    for step in steps:
        store = of(step.entity_type)
        if isinstance(store, Documents) and not dry_run:
            plan.refuse(what, store.write(step))
        if not store.captured:
            _record(self, step)
    return steps


def _record(self: Context, step: Step) -> None:
    """What no trigger records."""
    if step.does == "insert":
        record.log_create(self, step.entity_type, step.entity_id, step.then)
    elif step.does == "delete":
        record.log_delete(self, step.entity_type, step.entity_id, step.now)
    else:
        record.log_update(self, step.entity_type, step.entity_id, step.now, step.then)


def _by_entity(changes: list[Change]) -> Iterator[tuple[tuple[str, str], list[Change]]]:
    """Changes of each entity together, entities in the order of their last undone change."""
    entities: dict[tuple[str, str], list[Change]] = {}
    last: dict[tuple[str, str], int] = {}
    for place, change in enumerate(changes):
        subject = (change.entity_type, change.entity_id)
        entities.setdefault(subject, []).append(change)
        if change.undone:
            last[subject] = place
    for subject in sorted(entities, key=last.__getitem__):
        yield subject, entities[subject]


def _require_captured(what: str, changes: list[Change]) -> None:
    undone = [change for change in changes if change.undone]
    documents, why = " and ".join(COLLECTIONS), None
    if all(change.origin == "follower" for change in undone):
        why = (
            f"it is one in which the follower wrote down changes of {documents}, and they were not "
            "one transaction in MongoDB; revert each entity by its id"
        )
    elif any(isinstance(ENTITIES.get(c.entity_type), DocumentEntity) for c in undone):
        why = (
            f"{documents} are among it, which are in MongoDB and were not part of that "
            "transaction; revert each entity by its id"
        )
    elif not any(change.origin == "trigger" for change in undone):
        why = (
            "no trigger recorded it, so the trail may not have all that it changed; revert each "
            "entity by its id"
        )
    if why is not None:
        raise RevertRefused(f"{what} is refused: {why}.")


def _log_id(value: Id) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        raise ParameterError(
            f"'event' is {shown(value)}; give the id of a row of the trail.", name="event"
        ) from None
