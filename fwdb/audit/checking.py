"""Rows against the seals that cover them: a few seals of one month at a time."""

from __future__ import annotations

from binascii import unhexlify
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256

from fwdb.audit import canonical, merkle, seals
from fwdb.audit.canonical import NULL
from fwdb.audit.findings import OF_ROWS, Finding
from fwdb.audit.seals import Seal
from fwdb.models import entity_id

__all__ = ["Batch", "Digests", "Removed", "Tally", "iso", "named", "of_row"]

Erased = Mapping[tuple[int, bytes, str], bytes]  # seal, id, part -> digest
# User ids whose removal is in the trail, with the last transaction of that; those that fit last
# first.
Removed = Callable[[], list[tuple[bytes, int]]]

_SALT, _LEAF = seals.SALTS_SIZE, merkle.SIZE
_NO_SALT = bytes(16)
_USER = canonical.FIELDS.index("user_id")
# So many altered rows fail a seal for good; for more, removed users are not all tried.
_TRIED = 20


@dataclass(slots=True)
class Tally:
    """Counts of a whole run."""

    checked: int = 0
    erased: int = 0
    forgotten: int = 0


@dataclass(frozen=True, slots=True)
class Digests:
    """The digests of a row that make its sealed leaf, and what had to be assumed for it."""

    actor: bytes
    values: bytes
    erased: bool = False
    forgotten: bool = False


@dataclass(slots=True)
class Batch:
    """Seals of one month, in order, with what they hold; `feed` takes rows in any order."""

    covered: Sequence[Seal]
    content: Sequence[tuple[bytes, bytes, bytes]]
    erased: Erased
    removed: Removed
    tally: Tally
    findings: list[Finding] = field(default_factory=list)
    strange: int = 0  # rows that came and have no place
    _keys: bytes = b""
    _salts: bytes = b""
    _leaves: bytes = b""
    _index: dict[bytes, int] = field(default_factory=dict)
    _seen: bytearray = field(default_factory=bytearray)
    _odd: list[tuple[int, bytes]] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _damaged: dict[int, str] = field(default_factory=dict)  # seal -> keys or leaves
    _bad: dict[tuple[int, str], Finding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, held_by_all = 0, []
        for seal, held in zip(self.covered, self.content, strict=True):
            self._starts.append(rows)
            if damage := _damage(seal, held):
                self._damaged[seal.number] = damage[0]
                self.findings.append(
                    Finding(kind="seal", sentence=damage[1], seal=seal.number, month=seal.month)
                )
                held = _fitted(held)
            rows += len(held[0]) // seals.KEY_SIZE
            held_by_all.append(held)
        self._keys, self._salts, self._leaves = (
            b"".join(parts) for parts in zip(*held_by_all, strict=True)
        )
        size = seals.KEY_SIZE
        self._index = {self._keys[n * size : n * size + 16]: n for n in range(rows)}
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
        salt = self._salts[_SALT * n : _SALT * n + _SALT]
        of_actor, of_values = merkle.part(salt[:16], actor), merkle.part(salt[16:], values)
        made = merkle.leaf(header, of_actor, of_values)
        if made == self._leaves[_LEAF * n : _LEAF * n + _LEAF]:
            self.tally.checked += 1
            return True
        # Looked at when all have come: that may ask the database, which is busy with the rows.
        self._odd.append((n, line))
        return True

    def finish(self) -> list[Finding]:
        """The findings, those about rows that did not come as well."""
        for place, line in self._odd:
            self._look_closer(place, *canonical.split(line))
        n = self._seen.find(0)
        while n >= 0:
            self._missing(n)
            n = self._seen.find(0, n + 1)
        ordered = sorted(self._bad, key=lambda key: (key[0], OF_ROWS.index(key[1])))
        return self.findings + [self._bad[key] for key in ordered]

    def place(self, fields: Sequence[bytes]) -> int | None:
        """The place of a line's row, None if the seals do not know it."""
        try:
            return self._index.get(unhexlify(fields[0].translate(None, b"-")))
        except ValueError:  # no uuid: a file holds whatever was put into it
            return None

    # -- what else a row may legitimately be --------------------------------------------------

    def digests(
        self, n: int, fields: Sequence[bytes], header: bytes, actor: bytes, values: bytes
    ) -> Digests | None:
        """The digests with which the row has its sealed leaf, None if there are none."""
        seal, id = self._seal(n).number, self._keys[n * seals.KEY_SIZE :][:16]
        salt = self._salts[_SALT * n : _SALT * n + _SALT]
        sealed = self._leaves[_LEAF * n : _LEAF * n + _LEAF]
        kept = {
            name: self.erased.get((seal, id, name))
            for name, part, empty in (
                ("actor", salt[:16], _empty(actor, canonical.ACTOR)),
                ("values", salt[16:], _empty(values, canonical.VALUES)),
            )
            if part == _NO_SALT and empty
        }
        of_actor = kept.get("actor") or merkle.part(salt[:16], actor)
        of_values = kept.get("values") or merkle.part(salt[16:], values)
        was_erased = any(kept.values())
        if merkle.leaf(header, of_actor, of_values) == sealed:
            return Digests(of_actor, of_values, erased=was_erased)
        if kept.get("actor") or not actor.startswith(NULL + b"\t"):
            return None
        removed = self.removed()
        transaction = seals.key_of(fields)[0]
        for place, (user, last) in enumerate(removed):
            # What was sealed before its user went had an older transaction, whatever the clock.
            if transaction >= last:
                continue
            with_user = merkle.part(salt[:16], user + actor[len(NULL) :])
            if merkle.leaf(header, with_user, of_values) == sealed:
                removed.insert(0, removed.pop(place))  # the next row is probably of the same
                return Digests(with_user, of_values, erased=was_erased, forgotten=True)
        return None

    def _look_closer(
        self, n: int, fields: Sequence[bytes], header: bytes, actor: bytes, values: bytes
    ) -> None:
        seal = self._seal(n)
        if seal.number in self._damaged:
            return
        before = self._bad.get((seal.number, "altered"))
        given_up = before is not None and before.count >= _TRIED
        found = None if given_up else self.digests(n, fields, header, actor, values)
        if found is not None:
            self.tally.checked += 1
            self.tally.erased += found.erased
            self.tally.forgotten += found.forgotten
            return
        self._note(of_row("altered", seal, fields, self._altered(n, fields)))

    def _altered(self, n: int, fields: Sequence[bytes]) -> str:
        _, at, transaction = seals.unpack(self._keys, n)
        salts = self._salts[_SALT * n : _SALT * n + _SALT]
        was = []
        if at != _moment(fields):
            was.append(f"its time was {iso(at)}")
        if transaction != seals.key_of(fields)[0]:
            was.append(f"its transaction was {transaction or 'not known'}")
        if _NO_SALT in (salts[:16], salts[16:]):
            was.append("its salt is gone as after an erasure, and none that fits is recorded")
        if fields[_USER] == NULL:
            was.append("it has no user, and no removal that a trigger recorded explains that")
        return f"{named(fields)} was altered: {'; '.join(was) or 'it is not what was sealed'}."

    def _inserted(self, fields: Sequence[bytes]) -> None:
        key = seals.key_of(fields)
        seal = next((one for one in self.covered if key <= one.last), self.covered[-1])
        if self._damaged.get(seal.number) == "keys":
            return
        why = "it was not there when all of its transaction was sealed"
        self._note(of_row("inserted", seal, fields, f"{named(fields)} was inserted: {why}."))

    def _missing(self, n: int) -> None:
        seal = self._seal(n)
        if self._damaged.get(seal.number) == "keys":
            return
        id, at, transaction = seals.unpack(self._keys, n)
        whose = f"of transaction {transaction}" if transaction else "of no known transaction"
        self._note(
            Finding(
                kind="missing",
                sentence=f"Row {id} of {iso(at)}, {whose}, is missing.",
                seal=seal.number,
                month=seal.month,
                row_id=id,
                created_at=at,
            )
        )

    def _note(self, found: Finding) -> None:
        """Keep the first of each seal and kind, and how many there are."""
        assert found.seal is not None
        key = (found.seal, found.kind)
        before = self._bad.get(key)
        if before is None:
            self._bad[key] = found
            return
        first = min(before, found, key=lambda one: (one.created_at or _NEVER, one.row_id or ""))
        self._bad[key] = replace(first, count=before.count + 1)

    def _seal(self, n: int) -> Seal:
        return self.covered[bisect_right(self._starts, n) - 1]


_EVER, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def of_row(kind: str, seal: Seal | None, fields: Sequence[bytes], sentence: str) -> Finding:
    """A finding about the row of a line."""
    return Finding(
        kind=kind,
        sentence=sentence,
        seal=None if seal is None else seal.number,
        month=None if seal is None else seal.month,
        row_id=fields[0].decode(),
        created_at=_moment(fields),
        entity_type=canonical.value(fields[2]),
        entity_id=_entity(canonical.value(fields[3])),
    )


def _entity(value: str | None) -> str | None:
    try:
        return None if value is None else entity_id(value)
    except ValueError:  # of a file
        return value


def named(fields: Sequence[bytes]) -> str:
    """The row of a line, for a sentence."""
    what = f"{canonical.value(fields[4])} of {canonical.value(fields[2])}"
    return f"Row {fields[0].decode()} of {iso(_moment(fields))} ({what})"


def _moment(fields: Sequence[bytes]) -> datetime:
    return canonical.clamped(fields[1])


def iso(at: datetime | None) -> str:
    """A time, for a sentence."""
    if at is None or at == _NEVER:
        return "a time after the year 9999"
    return "a time before the year 1" if at == _EVER else f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"


def _damage(seal: Seal, held: tuple[bytes, bytes, bytes]) -> tuple[str, str] | None:
    """Which content of a seal is not what it was, and the sentence for it."""
    keys, salts, leaves = held
    if sha256(keys).digest() != seal.keys_digest or len(keys) != seal.rows * seals.KEY_SIZE:
        return "keys", f"The keys of rows in seal {seal.number} were changed."
    if len(salts) != seal.rows * _SALT:
        return "leaves", f"Seal {seal.number} holds salts for another number of rows."
    nodes = [leaves[n : n + _LEAF] for n in range(0, len(leaves), _LEAF)]
    if len(nodes) != seal.rows or not nodes or merkle.root(nodes) != seal.root:
        changed = f"The leaves in seal {seal.number} were changed: they do not make its root."
        return "leaves", changed
    return None


def _fitted(held: tuple[bytes, bytes, bytes]) -> tuple[bytes, bytes, bytes]:
    """Content for as many rows as there are keys; nothing of it is believed."""
    rows = len(held[0]) // seals.KEY_SIZE
    keys, salts, leaves = (
        part[: rows * size].ljust(rows * size, b"\0")
        for part, size in zip(held, (seals.KEY_SIZE, _SALT, _LEAF), strict=True)
    )
    return keys, salts, leaves


def _empty(part: bytes, names: tuple[str, ...]) -> bool:
    return part == b"\t".join([NULL] * len(names))
