"""The MongoDB half: validators and indexes as `migrations/mongodb/*.json` declare them.

One file is one collection. What was applied is recorded in the collection `fwdb_migrations`:
``{_id: file name, checksum, applied_at, validator: ours?, not_available: [{name, reason}]}``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fwdb import config
from fwdb.errors import FwdbError, QueryError
from fwdb.migrating import images
from fwdb.migrating.changes import Change, Difference
from fwdb.stores import MongoStore

__all__ = ["RECORDS", "apply", "declarations", "differences"]

RECORDS = "fwdb_migrations"

Document = dict[str, Any]
Report = Callable[[Change], object]

# src/mongo/base/error_codes.yml
_NAMESPACE_EXISTS = 48
_CANNOT_CREATE_INDEX, _COMMAND_NOT_SUPPORTED, _NOT_IMPLEMENTED = 67, 115, 238
_NOT_AVAILABLE = {_CANNOT_CREATE_INDEX, _COMMAND_NOT_SUPPORTED, _NOT_IMPLEMENTED}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What one file declares. `checksum` changes with the rules, not with spaces or `about`."""

    name: str
    collection: str
    validation: Document
    indexes: tuple[Document, ...]
    images: bool  # whether the server keeps documents as they were before each change
    checksum: str


def declarations() -> list[Declaration]:
    """All files, by name."""
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
                images=bool(content.get(images.OPTION, {}).get("enabled")),
                checksum=hashlib.sha256(plain).hexdigest(),
            )
        )
    return found


def apply(mongodb: MongoStore, report: Report) -> None:
    """Create or complete each declared collection; each step goes to `report`.

    A validator that something else made stays: replacing it could refuse what its owner writes.
    Documents that break a validator of ours are counted and reported, never changed.
    """
    _ = mongodb.build_info  # refuses a server that is too old
    for declared in declarations():
        record = _record(mongodb, declared)
        ours = _apply_validator(mongodb, declared, record, report)
        missing = list(_apply_indexes(mongodb, declared, record, report))
        if declared.images:
            missing += images.apply(
                mongodb, name := declared.collection, _options(mongodb, name) or {}, record, report
            )
        if _is_recorded(record, declared) and record.get("not_available") == missing:
            continue
        _report_violations(mongodb, declared, report)
        with mongodb.errors():
            mongodb.collection(RECORDS).replace_one(
                {"_id": declared.name},
                {
                    "checksum": declared.checksum,
                    "applied_at": datetime.now(UTC),
                    "validator": ours,
                    "not_available": missing,
                },
                upsert=True,
            )
        said = f"mongodb has what {declared.name}.json declares."
        report(Change("mongodb", "record", declared.name, said))


def differences(mongodb: MongoStore) -> list[Difference]:
    """How the database differs from what the files declare."""
    found = list(record_differences(mongodb))
    for declared in declarations():
        record = _record(mongodb, declared)
        name = declared.collection
        there = _options(mongodb, name)
        if there is None:
            found.append(_difference(name, f"the collection {name} is missing.", "error"))
            continue
        found += _validator_differences(declared, there)
        found += _index_differences(mongodb, declared, record)
        if declared.images:
            found += images.differences(name, there, record)
        if (count := _violations(mongodb, declared)) > 0:
            found.append(_difference(name, _violation_sentence(declared, count), "warning"))
    return found


def record_differences(mongodb: MongoStore) -> Iterator[Difference]:
    """Which declarations are not recorded as applied; no collection is looked at."""
    for declared in _declared():
        if not _is_recorded(_record(mongodb, declared), declared):
            said = f"{declared.name}.json is not applied; run 'fwdb migrate'."
            yield _difference(declared.collection, said, "error")


@functools.cache
def _declared() -> tuple[Declaration, ...]:
    """The declarations of this release, read once for those who ask often."""
    return tuple(declarations())


# -- validators -------------------------------------------------------------------------------


def _apply_validator(
    mongodb: MongoStore, declared: Declaration, record: Document, report: Report
) -> bool:
    """Set the validator; whether the one in force is ours."""
    name = declared.collection
    there = _options(mongodb, name)
    if there is None and _create(mongodb, declared):
        said = f"created the collection {name} with its validator."
        report(Change("mongodb", "collection", name, said))
        return True
    there = _options(mongodb, name) or {}
    if _validation(there) == declared.validation:
        return bool(record.get("validator", True))
    if there.get("validator") and not record.get("validator"):
        if not _is_recorded(record, declared):
            said = f"left the validator of {name}, which fwdb did not make, as it is."
            report(Change("mongodb", "validator", name, said))
        return False
    with mongodb.errors():
        mongodb.database.command("collMod", name, **declared.validation)
    report(Change("mongodb", "validator", name, f"set the validator of {name}."))
    return True


def _create(mongodb: MongoStore, declared: Declaration) -> bool:
    """Create the collection; False when another process was faster."""
    try:
        with mongodb.errors():
            mongodb.database.command("create", declared.collection, **declared.validation)
    except FwdbError as error:
        if _code(error) != _NAMESPACE_EXISTS:
            raise
        return False
    return True


def _options(mongodb: MongoStore, collection: str) -> Document | None:
    """The options of a collection, or None when there is no such collection."""
    with mongodb.errors():
        found = list(mongodb.database.list_collections(filter={"name": collection}))
    return dict(found[0].get("options", {})) if found else None


def _validation(options: Mapping[str, Any]) -> Document:
    """The part of the options that a declaration has, with the server's defaults filled in."""
    return {
        "validator": options.get("validator", {}),
        "validationLevel": options.get("validationLevel", "strict"),
        "validationAction": options.get("validationAction", "error"),
    }


def _validator_differences(declared: Declaration, there: Document) -> Iterator[Difference]:
    name = declared.collection
    found = _validation(there)
    if found == declared.validation:
        return
    if not found["validator"]:
        yield _difference(f"{name}.validator", f"{name} has no validator.", "warning")
        return
    required = set(declared.validation["validator"]["$jsonSchema"]["required"])
    lacking = required - set(found["validator"].get("$jsonSchema", {}).get("required", ()))
    enforced = found["validationAction"] == "error" and found["validationLevel"] != "off"
    if lacking or not enforced:
        what = f"does not require {', '.join(sorted(lacking))}" if lacking else "refuses nothing"
        yield _difference(f"{name}.validator", f"the validator of {name} {what}.", "warning")
    else:
        said = f"the validator of {name} is another than ours; it requires the same fields."
        yield _difference(f"{name}.validator", said, "information")


def _violations(mongodb: MongoStore, declared: Declaration) -> int:
    """Documents that the declared validator would refuse. Reads the whole collection."""
    with mongodb.errors():
        return mongodb.collection(declared.collection).count_documents(
            {"$nor": [declared.validation["validator"]]}
        )


def _report_violations(mongodb: MongoStore, declared: Declaration, report: Report) -> None:
    if (count := _violations(mongodb, declared)) > 0:
        said = _violation_sentence(declared, count)
        report(Change("mongodb", "documents", declared.collection, said))


def _violation_sentence(declared: Declaration, count: int) -> str:
    documents = "1 document" if count == 1 else f"{count:,} documents"
    verb = "breaks" if count == 1 else "break"
    return f"{documents} of {declared.collection} {verb} the validator; left unchanged."


# -- indexes ----------------------------------------------------------------------------------


def _apply_indexes(
    mongodb: MongoStore, declared: Declaration, record: Document, report: Report
) -> Iterator[Document]:
    """Create the indexes that are missing; yields those that this server cannot have."""
    known = {entry["name"] for entry in record.get("not_available", ())}
    for index in declared.indexes:
        name = f"{declared.collection}.{index['name']}"
        there = _indexes(mongodb, declared.collection)
        if _serves(there, index):
            continue
        if (rival := _rival(there, index)) is not None:
            if not _is_recorded(record, declared):
                said = f"left the index {rival} of {declared.collection}: it differs from ours."
                report(Change("mongodb", "index", name, said))
            continue
        reason = _create_index(mongodb, declared.collection, index)
        if reason is None:
            said = f"created the index {index['name']} on {declared.collection}."
            report(Change("mongodb", "index", name, said))
            continue
        if index["name"] not in known:
            said = f"went on without the index {index['name']}: {reason}."
            report(Change("mongodb", "index", name, said))
        yield {"name": index["name"], "reason": reason}


def _create_index(mongodb: MongoStore, collection: str, index: Document) -> str | None:
    """Create one index; the reason when this server has no indexes of the kind."""
    options: Document = {"sparse": True} if index.get("sparse") else {}
    try:
        with mongodb.errors():
            mongodb.collection(collection).create_index(
                list(index["keys"].items()), name=index["name"], **options
            )
    except QueryError as error:
        if _code(error) not in _NOT_AVAILABLE:
            raise
        return str(getattr(error.__cause__, "details", {}).get("errmsg", error)).rstrip(".")
    return None


def _indexes(mongodb: MongoStore, collection: str) -> list[Document]:
    with mongodb.errors():
        return [dict(index) for index in mongodb.collection(collection).list_indexes()]


def _keys(index: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Keys in order; those of a text index, whose order says nothing, by name.

    A server lists a text index as one key ``_fts`` and keeps the fields in ``weights``.
    """
    if "weights" in index:
        return tuple((field, "text") for field in sorted(index["weights"]))
    keys = [(name, way if isinstance(way, str) else int(way)) for name, way in _pairs(index)]
    return tuple(sorted(keys) if any(way == "text" for _, way in keys) else keys)


def _pairs(index: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    keys: Mapping[str, Any] = index["key"] if "key" in index else index["keys"]
    return keys.items()


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


def _index_differences(
    mongodb: MongoStore, declared: Declaration, record: Document
) -> Iterator[Difference]:
    reasons = {entry["name"]: entry["reason"] for entry in record.get("not_available", ())}
    there = _indexes(mongodb, declared.collection)
    for index in declared.indexes:
        if _serves(there, index):
            continue
        name = f"{declared.collection}.{index['name']}"
        keys = ", ".join(index["keys"])
        if index["name"] in reasons:
            said = f"no index on ({keys}): {reasons[index['name']]}."
            yield _difference(name, said, "information")
        elif (rival := _rival(there, index)) is not None:
            yield _difference(name, f"the index {rival} differs from ours on ({keys}).", "warning")
        else:
            said = f"{declared.collection} has no index on ({keys}): some questions are slow."
            yield _difference(name, said, "warning")


# -- records ----------------------------------------------------------------------------------


def _record(mongodb: MongoStore, declared: Declaration) -> Document:
    with mongodb.errors():
        return mongodb.collection(RECORDS).find_one({"_id": declared.name}) or {}


def _is_recorded(record: Document, declared: Declaration) -> bool:
    return bool(record.get("checksum") == declared.checksum)


def _code(error: FwdbError) -> int | None:
    """The server's code of the error that `error` stands for."""
    code: int | None = getattr(error.__cause__, "code", None)
    return code


def _difference(object: str, sentence: str, severity: str) -> Difference:
    return Difference("mongodb", object, sentence, severity)
