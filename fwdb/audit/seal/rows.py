"""Rows against the seals that cover them: a few seals of one month at a time."""

from __future__ import annotations

from binascii import unhexlify
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

import sqlalchemy as sa

from fwdb.audit.seal import canonical, merkle, seals
from fwdb.audit.seal.canonical import NULL
from fwdb.audit.seal.findings import OF_ROWS, Finding, iso, of_row, of_seal
from fwdb.audit.seal.seals import Seal
from fwdb.stores import PostgresStore

__all__ = ["Batch", "Digests", "Removed", "Tally"]

# User ids whose removal is in the trail, with the last transaction of that; those that fit last
# first.
Removed = Callable[[], list[tuple[bytes, int]]]

_KEY, _SALT, _LEAF = seals.KEY_SIZE, seals.SALTS_SIZE, merkle.SIZE
_NO_SALT = bytes(16)
_USER = canonical.FIELDS.index("user_id")
# So many altered rows fail a seal for good; for more, removed users are not all tried.
_TRIED = 20
_EMPTY = {
    part: b"\t".join([NULL] * len(names))
    for part, names in (("actor", canonical.ACTOR), ("values", canonical.VALUES))
}
_ALTERED = {
    "time": "its time was {}",
    "transaction": "its transaction was {}",
    "salt": "its salt is gone as after an erasure, and none that fits is recorded",
    "user": "it has no user, and no removal that a trigger recorded explains that",
    "content": "it is not what was sealed",
}
_DAMAGED = {
    "keys": "The keys of rows in seal {} were changed.",
    "salts": "Seal {} holds salts for another number of rows.",
    "leaves": "The leaves in seal {} were changed: they do not make its root.",
}


@dataclass(slots=True)
class Tally:
    """Counts of a whole run."""

    checked: int = 0
    erased: int = 0
    forgotten: int = 0


class Digests(NamedTuple):
    """The digests of a row that make its sealed leaf, and what had to be assumed for it."""

    actor: bytes
    values: bytes
    erased: bool = False
    forgotten: bool = False


class Batch:
    """Seals of one month, in order, with what they hold; `feed` takes rows in any order.

    `strange` counts the rows that came and have no place. `salts` are those of all rows.
    """

    def __init__(
        self, store: PostgresStore, covered: Sequence[Seal], removed: Removed, tally: Tally
    ) -> None:
        numbers = [seal.number for seal in covered]
        self.strange = 0
        self._covered, self._removed, self._tally = covered, removed, tally
        self._erased = {
            (row["seal"], row["id"], row["part"]): row["digest"]
            for row in store.rows(_ERASED, numbers=numbers)
        }
        self._findings: list[Finding] = []
        self._damaged: dict[int, str] = {}  # seal -> part
        self._bad: dict[tuple[int, str], Finding] = {}
        self._odd: list[tuple[int, bytes]] = []
        self._starts: list[int] = []
        held_by_all, rows = [], 0
        for seal, row in zip(covered, store.rows(_HELD, numbers=numbers), strict=True):
            held = row["keys"], row["salts"], row["leaves"]
            if damage := _damage(seal, *held):
                self._damaged[seal.number] = damage
                sentence = _DAMAGED[damage].format(seal.number)
                self._findings.append(of_seal(seal, "seal", sentence))
            self._starts.append(rows)
            # For as many rows as there are keys; nothing of a damaged seal is believed.
            count = len(held[0]) // _KEY
            held_by_all.append(
                [
                    part[: count * size].ljust(count * size, b"\0")
                    for part, size in zip(held, (_KEY, _SALT, _LEAF), strict=True)
                ]
            )
            rows += count
        self._keys, self.salts, self._leaves = (
            b"".join(parts) for parts in zip(*held_by_all, strict=True)
        )
        self._index = {self._keys[n * _KEY : n * _KEY + 16]: n for n in range(rows)}
        self._seen = bytearray(rows)

    @property
    def fed(self) -> int:
        """How many rows came."""
        return self._seen.count(1) + self.strange

    def feed(self, line: bytes) -> bool:
        """Check one row; whether it is one of these seals, as far as its id tells."""
        fields, header, actor, values = canonical.split(line)
        n = self.place(fields)
        if n is None or self._seen[n]:
            self.strange += 1
            self._inserted(fields)
            return False
        self._seen[n] = 1
        salt = self.salts[_SALT * n : _SALT * n + _SALT]
        of_actor, of_values = merkle.part(salt[:16], actor), merkle.part(salt[16:], values)
        made = merkle.leaf(header, of_actor, of_values)
        if made == self._leaves[_LEAF * n : _LEAF * n + _LEAF]:
            self._tally.checked += 1
        else:
            # Looked at when all have come: that may ask the database, which is busy with the rows.
            self._odd.append((n, line))
        return True

    def finish(self) -> list[Finding]:
        """The findings, those about rows that did not come as well."""
        for place, line in self._odd:
            self._look_closer(place, line)
        n = self._seen.find(0)
        while n >= 0:
            self._missing(n)
            n = self._seen.find(0, n + 1)
        ordered = sorted(self._bad, key=lambda key: (key[0], OF_ROWS.index(key[1])))
        return self._findings + [self._bad[key] for key in ordered]

    def place(self, fields: Sequence[bytes]) -> int | None:
        """The place of a line's row, None if the seals do not know it."""
        try:
            return self._index.get(unhexlify(fields[0].translate(None, b"-")))
        except ValueError:  # no uuid: a file holds whatever was put into it
            return None

    def digests(self, n: int, line: bytes) -> Digests | None:
        """The digests with which the row has its sealed leaf, None if there are none.

        Of a part that was erased the recorded one; of a user who was removed that with the user.
        """
        fields, header, actor, values = canonical.split(line)
        seal, id = self._seal(n).number, self._keys[n * _KEY : n * _KEY + 16]
        salt = self.salts[_SALT * n : _SALT * n + _SALT]
        sealed = self._leaves[_LEAF * n : _LEAF * n + _LEAF]
        found, erased = [], []
        for name, part, text in (("actor", salt[:16], actor), ("values", salt[16:], values)):
            gone = part == _NO_SALT and text == _EMPTY[name]
            kept = self._erased.get((seal, id, name)) if gone else None
            erased.append(bool(kept))
            found.append(kept or merkle.part(part, text))
        of_actor, of_values = found
        if merkle.leaf(header, of_actor, of_values) == sealed:
            return Digests(of_actor, of_values, erased=any(erased))
        if erased[0] or not actor.startswith(NULL + b"\t"):
            return None
        removed, transaction = self._removed(), seals.key_of(fields)[0]
        for place, (user, last) in enumerate(removed):
            # What was sealed before its user went had an older transaction, whatever the clock.
            if transaction >= last:
                continue
            with_user = merkle.part(salt[:16], user + actor[len(NULL) :])
            if merkle.leaf(header, with_user, of_values) == sealed:
                removed.insert(0, removed.pop(place))  # the next row is probably of the same
                return Digests(with_user, of_values, erased=any(erased), forgotten=True)
        return None

    def _look_closer(self, n: int, line: bytes) -> None:
        seal = self._seal(n)
        if seal.number in self._damaged:
            return
        before = self._bad.get((seal.number, "altered"))
        given_up = before is not None and before.count >= _TRIED
        found = None if given_up else self.digests(n, line)
        if found is not None:
            self._tally.checked += 1
            self._tally.erased += found.erased
            self._tally.forgotten += found.forgotten
            return
        fields = canonical.split(line)[0]
        _, at, transaction = seals.unpack(self._keys, n)
        salts = self.salts[_SALT * n : _SALT * n + _SALT]
        was = {
            "time": at != canonical.clamped(fields[1]) and iso(at),
            "transaction": transaction != seals.key_of(fields)[0] and (transaction or "not known"),
            "salt": _NO_SALT in (salts[:16], salts[16:]),
            "user": fields[_USER] == NULL,
        }
        told = [_ALTERED[name].format(value) for name, value in was.items() if value]
        self._note(of_row("altered", seal, fields, "; ".join(told) or _ALTERED["content"]))

    def _inserted(self, fields: Sequence[bytes]) -> None:
        key = seals.key_of(fields)
        seal = next((one for one in self._covered if key <= one.last), self._covered[-1])
        if self._damaged.get(seal.number) != "keys":
            why = "it was not there when all of its transaction was sealed"
            self._note(of_row("inserted", seal, fields, why))

    def _missing(self, n: int) -> None:
        seal = self._seal(n)
        if self._damaged.get(seal.number) == "keys":
            return
        id, at, transaction = seals.unpack(self._keys, n)
        whose = f"of transaction {transaction}" if transaction else "of no known transaction"
        found = of_seal(seal, "missing", f"Row {id} of {iso(at)}, {whose}, is missing.")
        self._note(replace(found, row_id=id, created_at=at))

    def _note(self, found: Finding) -> None:
        """Keep the first of each seal and kind, and how many there are."""
        assert found.seal is not None
        key = (found.seal, found.kind)
        before = self._bad.get(key)
        if before is not None:
            first = min(before, found, key=lambda one: (one.created_at or _NEVER, one.row_id or ""))
            found = replace(first, count=before.count + 1)
        self._bad[key] = found

    def _seal(self, n: int) -> Seal:
        return self._covered[bisect_right(self._starts, n) - 1]


_NEVER = datetime.max.replace(tzinfo=UTC)
_HELD = sa.text(
    "SELECT keys, salts, leaves FROM audit.seals"
    " WHERE number = ANY(CAST(:numbers AS bigint[])) ORDER BY number"
)
_ERASED = sa.text(
    "SELECT seal, uuid_send(log_id) AS id, part, digest FROM audit.erasures"
    " WHERE seal = ANY(CAST(:numbers AS bigint[]))"
)


def _damage(seal: Seal, keys: bytes, salts: bytes, leaves: bytes) -> str | None:
    """Which content of a seal is not what it was."""
    if sha256(keys).digest() != seal.keys_digest or len(keys) != seal.rows * _KEY:
        return "keys"
    if len(salts) != seal.rows * _SALT:
        return "salts"
    nodes = [leaves[n : n + _LEAF] for n in range(0, len(leaves), _LEAF)]
    if len(nodes) != seal.rows or not nodes or merkle.root(nodes) != seal.root:
        return "leaves"
    return None
