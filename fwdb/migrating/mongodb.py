"""The MongoDB half: validators and indexes as `migrations/mongodb/*.json` declare them.

One file is one collection. What was applied is recorded in the collection `fwdb_migrations`:
``{_id: file name, checksum, applied_at, validator: ours?, not_available: [{name, reason}]}``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fwdb import config
from fwdb.errors import FwdbError, PermissionDenied, QueryError
from fwdb.migrating.changes import Change, Difference
from fwdb.stores import MongoStore

RECORDS = "fwdb_migrations"

Document = dict[str, Any]
Report = Callable[[Change], object]

# src/mongo/base/error_codes.yml
_NAMESPACE_EXISTS = 48
_NO_INDEX = {67, 115, 238}  # CannotCreateIndex, CommandNotSupported, NotImplemented
# CommandNotFound, InvalidOptions, CommandNotSupported, NotImplemented, and an unknown field: a
# view, a time series, or a server that has no images.
_NO_IMAGES = {59, 72, 115, 238, 40415}

# Documents as they were before each change: the audit trail takes old values from them.
IMAGES = "changeStreamPreAndPostImages"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What one file declares. `checksum` changes with the rules, not with spaces or `about`."""

    name: str
    collection: str
    validation: Document
    indexes: tuple[Document, ...]
    images: bool  # whether the server keeps documents as they were before each change
    checksum: str


@functools.cache
def declarations() -> tuple[Declaration, ...]:
    """All files of this release, by name; read once for those who ask often."""
    found = []
    for path in sorted((config.resource("migrations") / "mongodb").glob("*.json")):
        content: Document = json.loads(path.read_text(encoding="utf-8"))
        content.pop("about")
        plain = json.dumps(content, sort_keys=True).encode()
        found.append(
            Declaration(
                name=path.stem,
                collection=content["collection"],
                validation={
                    option: content[option]
                    for option in ("validator", "validationLevel", "validationAction")
                },
                indexes=tuple(content["indexes"]),
                images=_keeps_images(content),
                checksum=hashlib.sha256(plain).hexdigest(),
            )
        )
    return tuple(found)


def apply(mongodb: MongoStore, report: Report) -> None:
    """Create or complete each declared collection; each step goes to `report`.

    A validator that something else made stays: replacing it could refuse what its owner writes.
    Documents that break a validator of ours are counted and reported, never changed.
    """
    _ = mongodb.build_info  # refuses a server that is too old
    for declared in declarations():
        _Collection(mongodb, declared, report).apply()


def differences(mongodb: MongoStore) -> list[Difference]:
    """How the database differs from what the files declare."""
    found = list(record_differences(mongodb))
    for declared in declarations():
        found += _Collection(mongodb, declared).differences()
    return found


def record_differences(mongodb: MongoStore) -> Iterator[Difference]:
    """Which declarations are not recorded as applied; no collection is looked at."""
    for declared in declarations():
        if not _Collection(mongodb, declared).recorded:
            said = f"{declared.name}.json is not applied; run 'fwdb migrate'."
            yield _difference(declared.collection, said, "error")


class _Collection:
    """One collection as it is, beside its declaration and the record of what was applied."""

    def __init__(
        self, mongodb: MongoStore, declared: Declaration, report: Report = lambda change: None
    ) -> None:
        self.mongodb, self.declared, self.name = mongodb, declared, declared.collection
        self._report = report
        with mongodb.errors():
            self.record = mongodb.collection(RECORDS).find_one({"_id": declared.name}) or {}
        self.recorded = self.record.get("checksum") == declared.checksum
        self.refused = {e["name"]: e["reason"] for e in self.record.get("not_available", ())}

    def _say(self, kind: str, sentence: str, name: str | None = None) -> None:
        self._report(Change("mongodb", kind, name or self.name, sentence))

    def apply(self) -> None:
        ours = self._apply_validator()
        missing = [*self._apply_indexes(), *self._apply_images()]
        if self.recorded and self.record.get("not_available") == missing:
            return
        if count := self._violations():
            self._say("documents", count)
        kept = {
            "checksum": self.declared.checksum,
            "applied_at": datetime.now(UTC),
            "validator": ours,
            "not_available": missing,
        }
        with self.mongodb.errors():
            records = self.mongodb.collection(RECORDS)
            records.replace_one({"_id": self.declared.name}, kept, upsert=True)
        name = self.declared.name
        self._say("record", f"mongodb has what {name}.json declares.", name)

    def differences(self) -> Iterator[Difference]:
        there = self._options()
        if there is None:
            yield _difference(self.name, f"the collection {self.name} is missing.", "error")
            return
        yield from self._validator_differences(there)
        yield from self._index_differences()
        if self.declared.images and not _keeps_images(there):
            reason = self.refused.get(IMAGES)
            said = f"{self.name} keeps no documents before changes, so the audit trail has no old "
            said += f"values: {reason}." if reason else "values; run 'fwdb migrate'."
            yield _difference(f"{self.name}.images", said, "warning")
        if count := self._violations():
            yield _difference(self.name, count, "warning")

    def _options(self) -> Document | None:
        """The options of the collection, or None when there is no such collection."""
        with self.mongodb.errors():
            found = list(self.mongodb.database.list_collections(filter={"name": self.name}))
        return dict(found[0].get("options", {})) if found else None

    def _violations(self) -> str:
        """How many documents the declared validator would refuse; reads the whole collection."""
        with self.mongodb.errors():
            count = self.mongodb.collection(self.name).count_documents(
                {"$nor": [self.declared.validation["validator"]]}
            )
        broken = "1 document of {0} breaks" if count == 1 else f"{count:,} documents of {{0}} break"
        return f"{broken.format(self.name)} the validator; left unchanged." if count else ""

    # -- validators ---------------------------------------------------------------------------

    def _apply_validator(self) -> bool:
        """Set the validator; whether the one in force is ours."""
        there = self._options()
        if there is None:
            try:
                with self.mongodb.errors():
                    self.mongodb.database.command("create", self.name, **self.declared.validation)
                self._say("collection", f"created the collection {self.name} with its validator.")
                return True
            except FwdbError as error:
                if _code(error) != _NAMESPACE_EXISTS:  # another process was faster
                    raise
            there = self._options() or {}
        if _validation(there) == self.declared.validation:
            return bool(self.record.get("validator", True))
        if there.get("validator") and not self.record.get("validator"):
            if not self.recorded:
                said = f"left the validator of {self.name}, which fwdb did not make, as it is."
                self._say("validator", said)
            return False
        with self.mongodb.errors():
            self.mongodb.database.command("collMod", self.name, **self.declared.validation)
        self._say("validator", f"set the validator of {self.name}.")
        return True

    def _validator_differences(self, there: Document) -> Iterator[Difference]:
        found, said, severity = _validation(there), f"the validator of {self.name} ", "warning"
        if found == self.declared.validation:
            return
        required = set(self.declared.validation["validator"]["$jsonSchema"]["required"])
        lacking = required - set(found["validator"].get("$jsonSchema", {}).get("required", ()))
        if not found["validator"]:
            said = f"{self.name} has no validator."
        elif lacking:
            said += f"does not require {', '.join(sorted(lacking))}."
        elif found["validationAction"] != "error" or found["validationLevel"] == "off":
            said += "refuses nothing."
        else:
            said += "is another than ours; it requires the same fields."
            severity = "information"
        yield _difference(f"{self.name}.validator", said, severity)

    # -- indexes ------------------------------------------------------------------------------

    def _lacking(self) -> Iterator[tuple[Document, str, str | None]]:
        """The indexes that are not there, their full name, and what stands in their place."""
        for index in self.declared.indexes:
            with self.mongodb.errors():
                there = [dict(i) for i in self.mongodb.collection(self.name).list_indexes()]
            if not _serves(there, index):
                yield index, f"{self.name}.{index['name']}", _rival(there, index)

    def _apply_indexes(self) -> Iterator[Document]:
        """Create the indexes that are missing; yields those that this server cannot have."""
        for index, name, rival in self._lacking():
            if rival is not None:
                if not self.recorded:
                    said = f"left the index {rival} of {self.name}: it differs from ours."
                    self._say("index", said, name)
                continue
            options: Document = {"sparse": True} if index.get("sparse") else {}
            keys = list(index["keys"].items())
            try:
                with self.mongodb.errors():
                    collection = self.mongodb.collection(self.name)
                    collection.create_index(keys, name=index["name"], **options)
            except QueryError as error:
                if _code(error) not in _NO_INDEX:
                    raise
                reason = _reason(error)
                if index["name"] not in self.refused:
                    said = f"went on without the index {index['name']}: {reason}."
                    self._say("index", said, name)
                yield {"name": index["name"], "reason": reason}
            else:
                self._say("index", f"created the index {index['name']} on {self.name}.", name)

    def _index_differences(self) -> Iterator[Difference]:
        for index, name, rival in self._lacking():
            keys, severity = ", ".join(index["keys"]), "warning"
            if index["name"] in self.refused:
                said, severity = (
                    f"no index on ({keys}): {self.refused[index['name']]}",
                    "information",
                )
            elif rival is not None:
                said = f"the index {rival} differs from ours on ({keys})"
            else:
                said = f"{self.name} has no index on ({keys}): some questions are slow"
            yield _difference(name, f"{said}.", severity)

    # -- images -------------------------------------------------------------------------------

    def _apply_images(self) -> Iterator[Document]:
        """Have the server keep them; yields where it cannot, or may not for this account."""
        if not self.declared.images or _keeps_images(self._options() or {}):
            return
        try:
            with self.mongodb.errors():
                self.mongodb.database.command({"collMod": self.name, IMAGES: {"enabled": True}})
        except FwdbError as error:
            if not isinstance(error, PermissionDenied) and _code(error) not in _NO_IMAGES:
                raise
            said = f"keeps no documents before changes for the audit trail: {_reason(error)}."
            if IMAGES not in self.refused:
                self._say("images", f"{self.name} {said}")
            yield {"name": IMAGES, "reason": _reason(error)}
        else:
            said = "keeps documents as they were before changes, for the audit trail."
            self._say("images", f"{self.name} {said}")


def _keeps_images(options: Mapping[str, Any]) -> bool:
    return bool(options.get(IMAGES, {}).get("enabled"))


def _validation(options: Mapping[str, Any]) -> Document:
    """The part of the options that a declaration has, with the server's defaults filled in."""
    return {
        "validator": options.get("validator", {}),
        "validationLevel": options.get("validationLevel", "strict"),
        "validationAction": options.get("validationAction", "error"),
    }


def _keys(index: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Keys in order; those of a text index, whose order says nothing, by name.

    A server lists a text index as one key ``_fts`` and keeps the fields in ``weights``.
    """
    if "weights" in index:
        return tuple((field, "text") for field in sorted(index["weights"]))
    pairs: Mapping[str, Any] = index["key"] if "key" in index else index["keys"]
    keys = [(name, way if isinstance(way, str) else int(way)) for name, way in pairs.items()]
    return tuple(sorted(keys) if any(way == "text" for _, way in keys) else keys)


def _serves(there: list[Document], wanted: Document) -> bool:
    """Whether an index of this definition is there, whatever its name."""
    return any(
        _keys(index) == _keys(wanted)
        and bool(index.get("sparse")) == bool(wanted.get("sparse"))
        and not index.get("unique")
        and not {"partialFilterExpression", "expireAfterSeconds", "collation"} & set(index)
        and not index.get("hidden")
        for index in there
    )


def _rival(there: list[Document], wanted: Document) -> str | None:
    """The name of an index beside which the wanted one cannot be created."""
    text = any(way == "text" for _, way in _keys(wanted))
    for index in there:
        same = index["name"] == wanted["name"] or _keys(index) == _keys(wanted)
        if same or (text and "weights" in index):  # a collection has at most one text index
            return str(index["name"])
    return None


def _code(error: FwdbError) -> int | None:
    """The server's code of the error that `error` stands for."""
    code: int | None = getattr(error.__cause__, "code", None)
    return code


def _reason(error: FwdbError) -> str:
    """What the server said."""
    return str(getattr(error.__cause__, "details", {}).get("errmsg", error)).rstrip(".")


def _difference(object: str, sentence: str, severity: str) -> Difference:
    return Difference("mongodb", object, sentence, severity)
