"""The seal file: the heads, for an auditor who keeps them where the database cannot be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fwdb.arguments import File
from fwdb.audit.context import Context
from fwdb.audit.retention.archive import place
from fwdb.audit.seal import merkle, seals
from fwdb.audit.seal.findings import Finding
from fwdb.errors import SealError

__all__ = ["Anchor", "read", "seal_file"]

FORMAT, VERSION = "fwdb audit seals", 1
_MOST_HEADS = 1000  # 80 kB, however long the chain; the newest is always among them
_MOST_BYTES = 1 << 20
_HEADS = sa.text(
    "SELECT number, encode(head, 'hex') AS head FROM audit.seals"
    " WHERE (number % :step = 0 AND number <= :newest) OR number = :newest ORDER BY number"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What a seal file says: the number of seals and of rows, and heads by number."""

    seals: int
    rows: int
    written_at: datetime
    heads: dict[int, str]
    key_id: str | None
    content: bytes
    signature: bytes | None

    def findings(self, found: dict[int, str], newest: int, key: bytes | None) -> Iterator[Finding]:
        """What differs from the heads `found` in the database, whose newest seal is `newest`."""
        name = f"he seal file of {self.written_at:%Y-%m-%d %H:%M} UTC"
        ours = key is None or merkle.same(self.signature or b"", merkle.sign(key, self.content))
        if key is not None and not ours:
            yield Finding(
                kind="anchor",
                sentence=f"T{name} is not signed with FWDB_AUDIT_KEY ({merkle.key_id(key)}) but "
                f"with {self.key_id or 'no key'}, or was changed.",
            )
        for number, head in sorted(self.heads.items()):
            if number <= newest and found.get(number) != head:
                yield Finding(
                    kind="anchor",
                    seal=number,
                    sentence=f"Seal {number} is another than in t{name}: the trail up to it was "
                    "sealed anew.",
                )
                break
        if newest < self.seals:
            yield Finding(
                kind="anchor",
                seal=newest + 1,
                sentence=f"There are {newest:,} seals, and t{name} knows {self.seals:,} over "
                f"{self.rows:,} rows: the newest were removed, or the database was set back.",
            )


def seal_file(self: Context, path: File) -> Path:
    """Write the heads of all seals to `path`, for someone who keeps it elsewhere.

    JSON: number of seals and rows, head, time, earlier heads, the name of the key and its
    signature; nothing secret. Raises `SealError` when nothing is sealed, or the file cannot be
    written.
    """
    store, key = self.postgres, seals.signing_key(self.settings)
    seals.require(store)
    newest = seals.last(store)
    if not newest.number:
        raise SealError("nothing is sealed yet; run 'fwdb audit seal' first.")
    step = 1
    while newest.number / step > _MOST_HEADS:
        step *= 2
    heads = store.rows(_HEADS, step=step, newest=newest.number)
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "database": store.address,
        "seals": newest.number,
        "rows": newest.total_rows,
        "sealed_at": newest.sealed_at.isoformat(),
        "head": newest.head.hex(),
        "heads": {str(row["number"]): row["head"] for row in heads},
        "key_id": None if key is None else merkle.key_id(key),
    }
    content = _content(body)
    body["signature"] = None if key is None else merkle.sign(key, content).hex()
    body["checksum"] = sha256(content).hexdigest()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place(path, json.dumps(body, indent=2) + "\n")
        path.chmod(0o644)  # nothing in it is secret, and an auditor copies it
    except OSError as error:
        raise SealError(
            f"the seal file cannot be written to {path} "
            f"({(error.strerror or str(error)).lower()}); choose another place."
        ) from error
    read(path)  # what is on the disk is a seal file
    return path


def read(path: Path) -> Anchor:
    """What the file says. Raises `SealError` for one that is missing, damaged or no seal file."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise SealError(
                f"{path} has more than {_MOST_BYTES:,} bytes, which no seal file has; name the "
                "one that 'fwdb audit seal --export' wrote."
            )
        body = json.loads(text)
    except OSError as error:
        raise SealError(
            f"the seal file {path} cannot be read ({(error.strerror or str(error)).lower()})."
        ) from error
    except (ValueError, RecursionError):
        raise SealError(f"the seal file {path} is damaged: it is no JSON.") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise SealError(f"{path} is no seal file of fwdb; 'fwdb audit seal --export' writes one.")
    if body.get("version") != VERSION:
        raise SealError(
            f"the seal file {path} is of version {body.get('version')}, and this release of fwdb "
            f"reads {VERSION}; take a newer one."
        )
    try:
        checksum, signature = body.pop("checksum"), body.pop("signature")
        content = _content(body)
        if sha256(content).hexdigest() != checksum:
            raise ValueError("checksum")
        heads = {int(number): str(head) for number, head in body["heads"].items()}
        if heads[body["seals"]] != body["head"]:
            raise ValueError("head")
        return Anchor(
            seals=int(body["seals"]),
            rows=int(body["rows"]),
            written_at=datetime.fromisoformat(body["written_at"]),
            heads=heads,
            key_id=None if body["key_id"] is None else bytes.fromhex(body["key_id"]).hex(),
            content=content,
            signature=None if signature is None else bytes.fromhex(signature),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        raise SealError(
            f"the seal file {path} is damaged: its content is not that of its checksum; take "
            "another copy."
        ) from None


def _content(body: dict[str, Any]) -> bytes:
    """What checksum and signature are made of."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
