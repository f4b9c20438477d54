"""Events of MongoDB as rows of the trail: what changed in a document, and who says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from fwdb import models
from fwdb.audit import values
from fwdb.models import MARK, document_uuid
from fwdb.stores.changes import ChangeEvent, ClusterTime

__all__ = [
    *("BOOKKEEPING", "DELETED", "FOUND_ORDINAL", "Row", "after", "announced", "applied"),
    *("found_prefix", "is_found", "plain", "row", "row_id"),
]

Document = dict[str, Any]
Row = dict[str, Any]  # columns of audit.audit_logs, without what the server adds

# Alone they are no change. `version` alone is one: a document goes back exactly.
BOOKKEEPING = models.BOOKKEEPING - {"version"}
DELETED = "deletedAt"  # the field that says when a document was deleted softly
FOUND_ORDINAL = 0xFFFF  # of rows that no event stands behind: the last of their cluster time


def row(
    event: ChangeEvent, after: Document | None, ordinal: int, *, marked: str | None = None
) -> Row | None:
    """The row for an event of a document; None when it changed nothing that the trail keeps.

    `after` is what `after(event)` says, `ordinal` the number of the event among those of its
    cluster time. `marked` is the nonce that the event directly before set on this document to say
    who deletes it.
    """
    entity_id, note = document_uuid(event.key)
    notes = [note] if note else []
    if event.before is None and event.operation != "insert":
        notes.append("values before are not known: the server kept no pre-image")
    change = _values(event.operation, plain(event.before), plain(after))
    if change is None:
        return None
    action, old, new = change
    who, refused = _who(_writer(event, after, marked))
    return {
        "id": row_id(event.time, ordinal, event.digest),
        "created_at": event.at,
        "action": action,
        "entity_id": entity_id,
        "old_values": old,
        "new_values": new,
        "metadata": "; ".join([*notes, *refused]) or None,
        **who,
    }


def after(event: ChangeEvent) -> Document | None:
    """The document after `event`, or what is known of it without the document before an update.

    It is computed from the document before and the description of the update. A document looked
    up now could be a later one.
    """
    if event.operation != "update":
        return event.after
    if event.before is not None:
        return applied(event.before, event)
    fields = {**dict.fromkeys(event.removed), **event.updated}
    return {name: value for name, value in fields.items() if "." not in name}


def _values(
    operation: str, before: Document | None, after: Document | None
) -> tuple[str, values.Values | None, values.Values | None] | None:
    if operation == "insert":
        return "CREATE", None, values.image(after or {})
    if operation == "delete":
        return "DELETE", None if before is None else values.image(before), None
    if before is None:
        return "UPDATE", None, values.image(after or {})
    differing = values.changes(before, after, bookkeeping=BOOKKEEPING)
    if differing is None:
        return None
    deleted = before.get(DELETED) is None and (after or {}).get(DELETED) is not None
    return "DELETE" if deleted else "UPDATE", *differing


def row_id(time: ClusterTime, ordinal: int, digest: bytes) -> UUID:
    """The id of the row of an event: the same whenever the event is read, in order of time.

    A UUID of version 8: 32 bits of seconds and 28 of the number within the second, then, behind
    the two bits of the variant, 16 of the ordinal and 46 of the digest. The digest keeps a change
    apart from another that gets its cluster time after a server lost the first one.
    """
    front = (time.seconds & 0xFFFF_FFFF) << 28 | time.increment & 0xFFF_FFFF
    back = (ordinal & 0xFFFF) << 46 | int.from_bytes(digest[:8], "big") >> 18
    return UUID(int=(front >> 12) << 80 | 8 << 76 | (front & 0xFFF) << 64 | 2 << 62 | back)


def plain(document: Mapping[str, Any] | None) -> Document | None:
    """`document` without the mark of its writer."""
    if document is None:
        return None
    return {name: value for name, value in document.items() if name != MARK}


# -- what changed -----------------------------------------------------------------------------


def applied(before: Mapping[str, Any], event: ChangeEvent) -> Document:
    """The document after an update, from the one before and the description of the update.

    As https://www.mongodb.com/docs/manual/reference/change-events/update/ has it: arrays are cut
    first, then fields are removed and set. A part of a path is an index where it meets an array.
    """
    after: Any = dict(before)
    for name, size in event.truncated:
        after = _put(after, _path(name, event), size=size)
    for name in event.removed:
        after = _remove(after, _path(name, event))
    for name, value in event.updated.items():
        after = _put(after, _path(name, event), value)
    return dict(after)


def _path(name: str, event: ChangeEvent) -> Sequence[str | int]:
    return event.paths.get(name) or name.split(".")


def _put(
    inside: Any, path: Sequence[str | int], value: Any = None, *, size: int | None = None
) -> Any:
    """`inside` with `value` at `path`, or only the first `size` items of what is there.

    Only what lies on the path is copied.
    """
    if not path:
        return value if size is None else list(inside or ())[:size]
    first, rest = path[0], path[1:]
    if isinstance(inside, list):
        index = int(first)
        items = [*inside, *[None] * (index + 1 - len(inside))]
        items[index] = _put(items[index], rest, value, size=size)
        return items
    fields = dict(inside) if isinstance(inside, Mapping) else {}
    fields[str(first)] = _put(fields.get(str(first)), rest, value, size=size)
    return fields


def _remove(inside: Any, path: Sequence[str | int]) -> Any:
    first, rest = path[0], path[1:]
    if isinstance(inside, list):
        index = int(first)
        if not rest or index >= len(inside):
            return inside
        return [*inside[:index], _remove(inside[index], rest), *inside[index + 1 :]]
    if not isinstance(inside, Mapping) or str(first) not in inside:
        return inside
    if not rest:
        return {name: value for name, value in inside.items() if name != first}
    return {**inside, str(first): _remove(inside[str(first)], rest)}


# -- who --------------------------------------------------------------------------------------


def _nonce(document: Mapping[str, Any] | None) -> Any:
    """The nonce of the mark in `document`, None without one."""
    mark = (document or {}).get(MARK)
    return mark.get("nonce") if isinstance(mark, Mapping) else None


def _writer(event: ChangeEvent, after: Document | None, marked: str | None) -> Document | None:
    """The mark that speaks for this event: one that it wrote, or that of its deletion.

    Each writer gives a mark another nonce, so an old one that a change left alone has the same
    before and after.
    """
    if event.operation == "delete":
        said = marked is not None and str(_nonce(event.before)) == marked
        return dict(event.before[MARK]) if said and event.before else None
    nonce = _nonce(after)
    if nonce is None or nonce == _nonce(event.before):
        return None
    return dict((after or {})[MARK])


def announced(event: ChangeEvent, after: Document | None) -> str | None:
    """The nonce of a mark of this event that says: what comes next deletes the document."""
    mark = _writer(event, after, None)
    return str(mark["nonce"]) if mark is not None and mark.get("deleting") is True else None


def _who(mark: Document | None) -> tuple[dict[str, str | None], list[str]]:
    """The columns that name the actor; a `by` that is no uuid goes into the metadata."""
    if mark is None:
        return {}, []
    by, ip, agent, reason = (
        None if (said := mark.get(name)) is None else values.text(str(said))
        for name in ("by", "ip", "userAgent", "reason")
    )
    who = {"ip_address": ip and ip[:45], "user_agent": agent, "reason": reason}
    try:
        return {**who, "user_id": None if by is None else str(UUID(by))}, []
    except ValueError:
        return who, [f"actor {by!r} is no uuid"]


def found_prefix(time: ClusterTime) -> str:
    """The first 21 digits of the ids of rows that no event stands behind.

    The other 11 are a digest of the entity, so that the same comparison gives the same ids.
    """
    return row_id(time, FOUND_ORDINAL, b"\xff" * 8).hex[:21]


def is_found(id: UUID) -> bool:
    """Whether a comparison, and no event, made the row with this id."""
    return id.hex[16:21] == "bffff"
