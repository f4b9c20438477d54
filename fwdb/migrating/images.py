"""Documents as they were before each change: the audit trail takes old values from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fwdb.errors import FwdbError, PermissionDenied
from fwdb.migrating.changes import Change, Difference
from fwdb.stores import MongoStore

__all__ = ["OPTION", "apply", "differences"]

OPTION = "changeStreamPreAndPostImages"

# src/mongo/base/error_codes.yml: CommandNotFound, InvalidOptions, CommandNotSupported,
# NotImplemented, and an unknown field: a view, a time series, or a server that has no images.
_NOT_AVAILABLE = {59, 72, 115, 238, 40415}


def apply(
    mongodb: MongoStore,
    collection: str,
    options: Mapping[str, Any],
    record: Mapping[str, Any],
    report: Any,
) -> list[dict[str, Any]]:
    """Have the server keep them; the reason where it cannot, or may not for this account."""
    if _keeps(options):
        return []
    try:
        with mongodb.errors():
            mongodb.database.command({"collMod": collection, OPTION: {"enabled": True}})
    except FwdbError as error:
        code = getattr(error.__cause__, "code", None)
        if not isinstance(error, PermissionDenied) and code not in _NOT_AVAILABLE:
            raise
        reason = str(getattr(error.__cause__, "details", {}).get("errmsg", error)).rstrip(".")
        if _refused(record) is None:
            said = f"{collection} keeps no documents before changes for the audit trail: {reason}."
            report(Change("mongodb", "images", collection, said))
        return [{"name": OPTION, "reason": reason}]
    said = f"{collection} keeps documents as they were before changes, for the audit trail."
    report(Change("mongodb", "images", collection, said))
    return []


def differences(
    collection: str, options: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[Difference]:
    """Whether the server does not keep them, and why where that is known."""
    if _keeps(options):
        return
    reason = _refused(record)
    said = f"{collection} keeps no documents before changes, so the audit trail has no old values"
    said += f": {reason}." if reason else "; run 'fwdb migrate'."
    yield Difference("mongodb", f"{collection}.images", said, "warning")


def _keeps(options: Mapping[str, Any]) -> bool:
    return bool(options.get(OPTION, {}).get("enabled"))


def _refused(record: Mapping[str, Any]) -> str | None:
    entries = record.get("not_available", ())
    return next((entry["reason"] for entry in entries if entry["name"] == OPTION), None)
