"""Undoing changes: of one entity since a time, of one row of the trail, of one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from uuid import UUID

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fwdb.arguments import Count
from fwdb.audit import checks, recording, undoing
from fwdb.audit.context import Context
from fwdb.audit.designs import Designs
from fwdb.audit.questions import Moment
from fwdb.audit.relations import DESIGN, KEY, Relation, relation
from fwdb.audit.undoing import Blocked, Change, Step
from fwdb.audit.writing import Writer
from fwdb.errors import NotFound, ParameterError, RevertRefused, shown
from fwdb.models import Id, entity_uuid

__all__ = ["revert"]


class _DryRun(Exception):
    """Ends the transaction of a dry run."""


def revert(
    self: Context,
    entity_type: str | None = None,
    id: Id | None = None,
    *,
    to: Moment | None = None,
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
    with (
        _dry(dry_run),
        recording.context(self, reason=what),
        self.postgres.transaction() as connection,
    ):
        steps += _undo(self, connection, what, asked, dry_run=dry_run)
        if dry_run:
            raise _DryRun
    return undoing.frame(steps)


def _asked(
    self: Context,
    entity_type: str | None,
    id: Id | None,
    to: Moment | None,
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
    nothing = dict.fromkeys(("entity_type", "entity_id", "moment", "event", "transaction_id"))
    if to is not None:
        assert entity_type is not None
        assert id is not None
        moment = checks.at(to, name="to")
        self.source.require(moment, "to")
        asked = {
            "entity_type": checks.askable(self.postgres, entity_type),
            "entity_id": entity_uuid(id),
            "moment": moment,
        }
        return nothing | asked, f"revert of {entity_type} {id} to {moment.isoformat()}"
    if event is not None:
        return nothing | {"event": _log_id(event)}, f"revert of row {event}"
    return (
        nothing | {"transaction_id": transaction_id},
        f"revert of transaction {transaction_id}",
    )


def _undo(
    self: Context, connection: Connection, what: str, asked: dict[str, Any], *, dry_run: bool
) -> list[Step]:
    tables: dict[str, Relation] = {}
    # Asked twice: the first time for what to lock, so that the second cannot miss a change.
    _lock_rows(self, connection, _undoing(self, asked, tables), tables)
    changes = _undoing(self, asked, tables)
    if not any(change.undone for change in changes):
        if asked["moment"] is not None:
            return []
        name = "event" if asked["event"] is not None else "transaction"
        raise NotFound(f"{name} in the trail", asked["event"] or asked["transaction_id"])
    if asked["transaction_id"] is not None:
        _require_captured(what, changes)
    designs = Designs(self.mongodb, what)
    steps: list[Step] = []
    blocked: list[Blocked] = []
    for (kind, id), mine in _by_entity(changes):
        if kind == DESIGN:
            step, why = undoing.undo(mine, designs.live(id), ())
        else:
            table = _table(self, tables, kind)
            secret = [c.name for c in table.columns if c.secret or c.untold]
            step, why = undoing.undo(mine, _live(connection, table, id), secret)
            step = None if step is None else _storable(step, table)
        steps += [step] if step is not None else []
        blocked += why
    undoing.refuse(what, blocked)
    steps.reverse()
    writer = Writer(self.postgres, connection, tables)
    rows = [step for step in steps if step.entity_type != DESIGN]
    undoing.refuse(what, writer.write(rows))
    for step in steps:
        if step.entity_type == DESIGN and not dry_run:
            undoing.refuse(what, designs.write(step))
        if not _captured(self, step.entity_type, tables):
            _record(self, step)
    return steps


def _captured(self: Context, entity_type: str, tables: dict[str, Relation]) -> bool:
    """Whether the trail records by itself what was written."""
    if entity_type != DESIGN:
        return tables[entity_type].captured
    known = sa.text("SELECT to_regclass('audit.followers') AS name /* fwdb */")
    if self.postgres.rows(known)[0]["name"] is None:
        return False
    return bool(self.postgres.rows(sa.text("SELECT 1 FROM audit.followers LIMIT 1 /* fwdb */")))


def _undoing(self: Context, asked: dict[str, Any], tables: dict[str, Relation]) -> list[Change]:
    def rename(entity_type: str, name: str) -> str:
        if entity_type == DESIGN:
            return Designs.stored(name)
        other = str(checks.other_spelling(name))
        table = _table(self, tables, entity_type)
        return other if name not in table and other in table else name

    return undoing.changes(self.source.frame("audit_undoing", **asked), rename)


def _table(self: Context, tables: dict[str, Relation], entity_type: str) -> Relation:
    if entity_type not in tables:
        tables[entity_type] = relation(self.postgres, entity_type)
    return tables[entity_type]


def _lock_rows(
    self: Context, connection: Connection, changes: list[Change], tables: dict[str, Relation]
) -> None:
    for kind, group in groupby(
        sorted({(c.entity_type, c.entity_id) for c in changes}), key=lambda one: one[0]
    ):
        if kind != DESIGN:
            name = _table(self, tables, kind).quoted
            connection.execute(
                sa.text(
                    f"SELECT 1 FROM {name} WHERE {KEY} = ANY (CAST(:ids AS uuid[]))"
                    f" ORDER BY {KEY} FOR UPDATE"
                ),
                {"ids": [id for _, id in group]},
            )


def _record(self: Context, step: Step) -> None:
    """What no trigger records."""
    if step.does == "insert":
        recording.log_create(self, step.entity_type, step.entity_id, step.then)
    elif step.does == "delete":
        recording.log_delete(self, step.entity_type, step.entity_id, step.now)
    else:
        recording.log_update(self, step.entity_type, step.entity_id, step.now, step.then)


@contextmanager
def _dry(dry_run: bool) -> Iterator[None]:
    try:
        yield
    except _DryRun:
        if not dry_run:
            raise


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
    if all(change.origin == "follower" for change in undone):
        raise RevertRefused(
            f"{what} is refused: it is one in which the follower wrote down changes of designs, "
            "and they were not one transaction in MongoDB; revert each design by its id."
        )
    if any(change.entity_type == DESIGN for change in undone):
        raise RevertRefused(
            f"{what} is refused: designs are among it, which are in MongoDB and were not part of "
            "that transaction; revert each entity by its id."
        )
    if not any(change.origin == "trigger" for change in undone):
        raise RevertRefused(
            f"{what} is refused: no trigger recorded it, so the trail may not have all that it "
            "changed; revert each entity by its id."
        )


def _live(connection: Connection, table: Relation, id: str) -> dict[str, Any] | None:
    """The row as the trail would have it."""
    text = f"SELECT CAST(to_jsonb(live) AS text) FROM {table.quoted} AS live WHERE {KEY} = :id"
    return undoing.image(connection.scalar(sa.text(text), {"id": UUID(id)}))


def _storable(step: Step, table: Relation) -> Step | None:
    """`step` with what the table can take: no computed column and none it does not have."""
    if step.then is None:
        return step
    then = {
        name: value
        for name, value in step.then.items()
        if name in table and not table[name].generated and (step.now is None or name != KEY)
    }
    if step.now is not None and not then:
        return None
    now = None if step.now is None else {name: step.now.get(name) for name in then}
    return Step(entity_type=step.entity_type, entity_id=step.entity_id, now=now, then=then)


def _log_id(value: Id) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        raise ParameterError(
            f"'event' is {shown(value)}; give the id of a row of the trail.", name="event"
        ) from None
