"""Ids of both stores in one uuid column, and back, without losing which kind it was.

Rows of PostgreSQL have a uuid, documents of MongoDB a 96-bit ObjectId, and `audit_logs.entity_id`
is a uuid. RFC 9562 leaves version 8 to applications: 122 of its 128 bits are free. An ObjectId
takes 96 of them, six bytes in front and six behind, and the 26 left hold a fixed tag:

    ObjectId  65a1b2c3d4e5 f60718293a4b
    uuid      65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b

So the ids sort as the ObjectIds do, a person reads the ObjectId off, and SQL finds them with
``CAST(entity_id AS text) LIKE '________-____-8fdb-8f0d-%'``. Uuids of version 4 and 7, which is
what databases make, differ in the version and can never be taken for one of these.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from bson import ObjectId, json_util

from fwdb.errors import ParameterError, shown

__all__ = ["Id", "document_id", "document_uuid", "entity_id", "entity_uuid", "is_id"]

Id = Annotated[str | UUID | ObjectId, "a UUID or the 24 hexadecimal digits of an ObjectId"]

_TAG = "8fdb8f0d"  # version 8 and variant 10 with 26 constant bits in between
_OBJECT_ID = re.compile(r"[0-9a-f]{24}\Z", re.IGNORECASE)
# UUID() also takes braces, signs and underscores, which no database would give out.
_UUID = re.compile(r"[0-9a-f]{8}(-?)(?:[0-9a-f]{4}\1){3}[0-9a-f]{12}\Z", re.IGNORECASE)


def entity_uuid(id: Id) -> UUID:
    """The uuid under which the audit log keeps `id`: a uuid itself, an ObjectId tagged as one.

    `entity_id()` is the way back. Raises `ParameterError` for text that is neither, and for a
    uuid that carries the tag of an ObjectId, because it could not be told from one.

    >>> entity_uuid("65a1b2c3d4e5f60718293a4b")
    UUID('65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b')
    """
    text = str(id)
    if _OBJECT_ID.match(text):
        return UUID(text[:12] + _TAG + text[12:])
    if not _UUID.match(text):
        raise ParameterError(
            f"{shown(id)} is no id; give a UUID or the 24 hexadecimal digits of an ObjectId.",
            name="entity_id",
        )
    value = UUID(text)
    if _is_object_id(value):
        raise ParameterError(
            f"'{text}' is how an ObjectId is kept in the audit log, not an id itself; "
            f"give '{entity_id(value)}'.",
            name="entity_id",
        )
    return value


def is_id(value: Any) -> bool:
    """Whether `entity_uuid` takes it."""
    try:
        entity_uuid(value)
    except ParameterError:
        return False
    return True


_IDS = uuid5(NAMESPACE_URL, "fwdb:document")


def document_uuid(key: Any) -> tuple[UUID, str | None]:
    """The uuid under which the trail keeps the document `key`, and a note when it cannot be read
    off it.

    An ObjectId and the text of a uuid are kept so that they come back. Any other id, and text
    that only looks like one of these, gets a uuid made from it; the note then has the id.
    """
    kept = isinstance(key, ObjectId)
    if isinstance(key, str):
        try:
            kept = str(UUID(key)) == key
        except ValueError:
            kept = False
    if kept and is_id(key):  # it is not when it looks like a kept ObjectId
        return entity_uuid(key), None
    text = json_util.dumps(key, json_options=json_util.CANONICAL_JSON_OPTIONS)
    return uuid5(_IDS, text), f"document id {text}"


def document_id(id: Any) -> Any:
    """`id` as documents hold it: 24 hexadecimal digits are an ObjectId, other text stays text."""
    return ObjectId(id) if isinstance(id, str) and ObjectId.is_valid(id) else id


def entity_id(value: UUID | str) -> str:
    """The id that `entity_uuid()` was given: 24 hexadecimal digits or a uuid, in lower case.

    >>> entity_id("65a1b2c3-d4e5-8fdb-8f0d-f60718293a4b")
    '65a1b2c3d4e5f60718293a4b'
    """
    uuid = value if isinstance(value, UUID) else UUID(value)
    return uuid.hex[:12] + uuid.hex[20:] if _is_object_id(uuid) else str(uuid)


def _is_object_id(value: UUID) -> bool:
    return value.hex[12:20] == _TAG
