"""What has to be written so that changes are undone, and what is in the way of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Literal

import pandas as pd

from fwdb.audit import values
from fwdb.errors import RevertRefused
from fwdb.models import BOOKKEEPING, entity_id

__all__ = ["Blocked", "Change", "Step", "changes", "frame", "image", "refuse", "undo"]

Values = dict[str, Any]

_WATCHED = ("trigger", "follower")  # origins that miss nothing
_TOLD = 5  # rows in the way that the sentence of a refusal names; the error has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of the trail; `undone` is to be undone, others came later."""

    id: str
    entity_type: str
    entity_id: str
    made: bool
    removed: bool
    old: Values
    new: Values
    origin: str | None
    undone: bool

    @property
    def fields(self) -> set[str]:
        """The fields that differ."""
        names = {**self.old, **self.new}
        return {
            name
            for name in names
            if name not in BOOKKEEPING and self.old.get(name) != self.new.get(name)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Why one entity cannot be brought back; `log_id` is the row of the trail in the way."""

    entity_type: str
    entity_id: str
    why: str
    field: str | None = None
    log_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One entity: as it is `now` and as it is to be `then`; None where it is not there.

    Of an update both hold only the fields that differ.
    """

    entity_type: str
    entity_id: str
    now: Values | None
    then: Values | None

    @property
    def does(self) -> Literal["insert", "update", "delete"]:
        """What is written."""
        if self.now is None:
            return "insert"
        return "delete" if self.then is None else "update"

    def blocked(self, why: str, *, field: str | None = None) -> Blocked:
        """Why it cannot be written."""
        return Blocked(entity_type=self.entity_type, entity_id=self.entity_id, why=why, field=field)


def changes(rows: pd.DataFrame, rename: Callable[[str, str], str]) -> list[Change]:
    """The rows of the query `audit_undoing`; `rename` gives a field the name of its store."""
    found = []
    for row in rows.to_dict("records"):
        old, new = (image(row[name]) for name in ("old_values", "new_values"))
        kind = str(row["entity_type"])
        found.append(
            Change(
                id=str(row["id"]),
                entity_type=kind,
                entity_id=entity_id(str(row["entity_id"])),
                made=row["action"] == "CREATE",
                # A soft deletion has both values and is a change.
                removed=row["action"] == "DELETE" and new is None,
                old={rename(kind, name): value for name, value in (old or {}).items()},
                new={rename(kind, name): value for name, value in (new or {}).items()},
                origin=None if pd.isna(row["origin"]) else str(row["origin"]),
                undone=bool(row["undone"]),
            )
        )
    return found


def undo(
    changes: list[Change], live: Values | None, secret: Collection[str]
) -> tuple[Step | None, list[Blocked]]:
    """The step that undoes the `changes` of one entity, in their order, and what is in the way.

    `live` is the entity as it is; fields named in `secret` are not in the trail. No step where
    everything is so already.
    """
    mine = [change for change in changes if change.undone]
    first = mine[0]
    subject = {"entity_type": first.entity_type, "entity_id": first.entity_id}
    touched = set().union(*(change.fields for change in mine))
    whole = any(change.made or change.removed for change in mine)
    blocked = [
        Blocked(
            **subject,
            log_id=later.id,
            field=None if whole or later.made or later.removed else ", ".join(sorted(common)),
            why="was changed again",
        )
        for later in changes[changes.index(first) :]
        if not later.undone
        and ((common := later.fields & touched) or whole or later.made or later.removed)
    ]
    if blocked:
        return None, blocked
    if live is None and not mine[-1].removed:
        return None, [Blocked(**subject, why="is gone, and the trail does not say how")]
    # A removal that left the row is a soft one of a program that records it so.
    if live is not None and mine[-1].removed and mine[-1].origin in _WATCHED:
        return None, [Blocked(**subject, why="is there already")]
    before: Values = {}
    for change in reversed(_first_life(mine)):
        before |= change.old
    hidden = {
        name
        for name, value in before.items()
        if value is not None and (name in secret or values.REDACTED in _text(value))
    }
    # What a row that stays holds unseen stays too, unless it was changed by itself.
    needed = set(before)
    if live is not None and not any(change.made for change in mine[1:]):
        needed = set().union(*(change.fields for change in mine if not change.removed))
    if not first.made and hidden & needed:
        why = "is redacted in the trail, which therefore cannot give it back"
        names = ", ".join(sorted(hidden & needed))
        return None, [Blocked(**subject, field=names, why=why)]
    if live is not None and (stray := _strays(mine, live)):
        why = "is not what the trail says it became: something changed it unrecorded"
        return None, [Blocked(**subject, field=", ".join(stray), why=why)]
    if first.made:
        return None if live is None else Step(**subject, now=live, then=None), []
    if live is None:
        return Step(**subject, now=None, then=before), []
    then = {
        name: value
        for name, value in before.items()
        if name in touched - hidden - BOOKKEEPING and live.get(name) != value
    }
    if not then:
        return None, []
    return Step(**subject, now={name: live.get(name) for name in then}, then=then), []


def _first_life(mine: list[Change]) -> list[Change]:
    """The changes up to the first removal: what comes after it is another life."""
    for place, change in enumerate(mine):
        if change.removed:
            return mine[: place + 1]
    return mine


def _strays(mine: list[Change], live: Values) -> list[str]:
    """Fields that hold something else than what the trigger said last."""
    last: Values = {}
    for change in mine:
        if change.origin in _WATCHED:
            last |= {name: change.new.get(name) for name in change.fields}
    return sorted(
        name
        for name, value in last.items()
        if value not in (values.REDACTED, values.REDACTED_CHANGED)
        and name in live
        and live[name] != value
    )


def refuse(what: str, blocked: list[Blocked]) -> None:
    """Raise `RevertRefused` if anything is `blocked`."""
    if not blocked:
        return
    told = [
        f"{each.entity_type} {each.entity_id}"
        + (f" ({each.field})" if each.field else "")
        + f" {each.why}"
        + (f" by row {each.log_id}" if each.log_id else "")
        for each in blocked[:_TOLD]
    ]
    more = f"; and {len(blocked) - _TOLD} more" if len(blocked) > _TOLD else ""
    raise RevertRefused(
        f"{what} is refused, nothing was changed: {'; '.join(told)}{more}.",
        rows=[asdict(each) for each in blocked],
    )


def frame(steps: Iterable[Step]) -> pd.DataFrame:
    """The plan to be shown: one row per entity and field."""
    rows = [
        (step.entity_type, step.entity_id, step.does, name, *shown)
        for step in steps
        for name in sorted({**(step.now or {}), **(step.then or {})})
        for shown in [[_shown(side, name) for side in (step.now, step.then)]]
    ]
    names = ("entity_type", "entity_id", "does", "field", "now", "then")
    return pd.DataFrame(rows, columns=pd.Index(names), dtype="str")


def _shown(side: Mapping[str, Any] | None, name: str) -> Any:
    if side is None or name not in side:
        return None
    return values.redact_json(_text(side[name]), name)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=float)


def image(text: Any) -> Values | None:
    """The object that `text` is, its fractions to the last digit; None for anything else."""
    found = json.loads(text, parse_float=Decimal) if isinstance(text, str) else None
    return found if isinstance(found, dict) else None
