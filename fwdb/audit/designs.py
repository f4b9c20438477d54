"""Designs as the trail has them, and writing them back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fwdb.audit import values
from fwdb.audit.undoing import Blocked, Step
from fwdb.errors import DuplicateKey, FeatureUnavailable
from fwdb.models import DESIGNS, document_id
from fwdb.stores import MongoStore, actor

__all__ = ["Designs"]

_TIMES = ("createdAt", "updatedAt", "deletedAt")


class Designs:
    """The documents that a revert, named by `what`, writes."""

    def __init__(self, mongodb: MongoStore | None, what: str) -> None:
        self._mongodb = mongodb
        self._what = what
        self._versions: dict[str, Any] = {}

    @staticmethod
    def stored(name: str) -> str:
        """The name that a field of a design has in the document."""
        return DESIGNS.stored.get(name, name)

    @property
    def _store(self) -> MongoStore:
        if self._mongodb is None:
            raise FeatureUnavailable(
                f"{self._what} needs MongoDB, which this Audit was not given; use db.audit of "
                "fwdb.connect()."
            )
        return self._mongodb

    def live(self, id: str) -> dict[str, Any] | None:
        """The document as the trail would have it, or None."""
        with self._store.errors():
            found = self._store.collection("designs").find_one(
                {"_id": document_id(id)}, session=self._store.session
            )
        if found is None:
            return None
        self._versions[id] = found.get("version")
        return values.image(found)

    def write(self, step: Step) -> list[Blocked]:
        """Write `step` if the document still has the version that was read."""
        here: dict[str, Any] = {"_id": document_id(step.entity_id)}
        held = here | {"version": self._versions.get(step.entity_id)}
        document = {name: _bson(name, value) for name, value in (step.then or {}).items()}
        if step.does == "insert":
            written = self._insert(here, document)
        elif step.does == "update":
            written = self._update(held, document)
        else:
            written = self._delete(held)
        if written:
            return []
        why = "was changed meanwhile; ask again"
        return [Blocked(entity_type=step.entity_type, entity_id=step.entity_id, why=why)]

    def _insert(self, here: dict[str, Any], document: dict[str, Any]) -> bool:
        present = {name: value for name, value in document.items() if value is not None}
        version = {"version": int(document.get("version") or 0) + 1}
        try:
            with self._store.errors():
                self._store.collection("designs").insert_one(
                    present | here | version | self._marks(), session=self._store.session
                )
        except DuplicateKey:
            return False
        return True

    def _update(self, held: dict[str, Any], document: dict[str, Any]) -> bool:
        change: dict[str, Any] = {
            "$set": self._marks() | {n: v for n, v in document.items() if v is not None},
            "$inc": {"version": 1},
        }
        if unset := {name: "" for name, value in document.items() if value is None}:
            change["$unset"] = unset
        with self._store.errors():
            found = self._store.collection("designs").update_one(
                held, change, session=self._store.session
            )
        return found.matched_count == 1

    def _delete(self, held: dict[str, Any]) -> bool:
        """Remove after a mark of who does it; both in one transaction where the server has any."""

        def work() -> bool:
            designs, session = self._store.collection("designs"), self._store.session
            with self._store.errors():
                mark = {"$set": actor.marked(deleting=True)}
                if not designs.update_one(held, mark, session=session).matched_count:
                    return False
                return designs.delete_one(held, session=session).deleted_count == 1

        try:
            with self._store.transaction():
                return work()
        except FeatureUnavailable:
            return work()

    @staticmethod
    def _marks() -> dict[str, Any]:
        # A date of MongoDB has milliseconds.
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        return {"updatedAt": now, **actor.marked()}


def _bson(name: str, value: Any) -> Any:
    if name in _TIMES and isinstance(value, str):
        return datetime.fromisoformat(value)
    return document_id(value) if name == "_id" else value
