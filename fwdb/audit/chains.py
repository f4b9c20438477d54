"""The chain of seals: each follows from the one before it, and the key signed it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

from fwdb.audit import merkle, seals
from fwdb.audit.findings import Finding
from fwdb.audit.seals import Key, Seal
from fwdb.stores import PostgresStore

__all__ = ["Chain", "follow"]


@dataclass(slots=True)
class Chain:
    """What one pass over all seals gave, without anything of their rows.

    `months` are the sealed months in order with their numbers of rows, `heads` those that were
    asked for, `unsigned` the number of seals before the first that the key signed.
    """

    newest: Seal | None = None
    months: dict[date, int] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seals: int = 0
    unsigned: int = 0


def follow(store: PostgresStore, key: bytes | None, wanted: frozenset[int]) -> Chain:
    """Look at every seal in order."""
    chain = Chain()
    head, rows, last_in_month = merkle.EMPTY, 0, dict[date, Key]()
    in_month: Counter[date] = Counter()
    for seal in seals.read(store):
        number = chain.newest.number + 1 if chain.newest else 1
        trouble = _order(seal, number) or _content(seal, head, rows, chain.newest, last_in_month)
        if trouble:
            chain.findings.append(
                Finding(kind="chain", sentence=trouble, seal=seal.number, month=seal.month)
            )
        if key is not None:
            _signed(chain, seal, key)
        if seal.number in wanted:
            chain.heads[seal.number] = seal.head.hex()
        head, rows, last_in_month[seal.month] = seal.head, seal.total_rows, seal.last
        in_month[seal.month] += seal.rows
        chain.newest = seal
        chain.seals += 1
    chain.months = dict(sorted(in_month.items()))
    if key is not None and chain.newest is not None and not chain.newest.signed_with(key):
        chain.findings.append(_not_ours(chain.newest, key))
    return chain


def _order(seal: Seal, number: int) -> str | None:
    if seal.number == number:
        return None
    if seal.number < number:
        return f"Seal {seal.number} is there twice."
    gone = f"Seal {number} is" if seal.number == number + 1 else (
        f"Seals {number} to {seal.number - 1} are"
    )  # fmt: skip
    return f"{gone} missing."


def _content(
    seal: Seal, head: bytes, rows: int, before: Seal | None, last_in_month: dict[date, Key]
) -> str | None:
    if seal.chained(head) != seal.head:
        return (
            f"Seal {seal.number} was changed, or put in another's place: its head does not follow "
            "from the one before it."
        )
    last = last_in_month.get(seal.month)
    ordered = (last is None or last < seal.last) and (
        before is None or before.horizon <= seal.horizon
    )
    if seal.total_rows != rows + seal.rows or not ordered:
        return f"Seal {seal.number} does not go on where the one before it ended."
    return None


def _signed(chain: Chain, seal: Seal, key: bytes) -> None:
    if seal.signed_with(key):
        return
    if seal.signature is not None and seal.key_id == merkle.key_id(key):
        chain.findings.append(
            Finding(
                kind="signature",
                sentence=f"The signature of seal {seal.number} is not one of the key that it "
                f"names, {seal.key_id}.",
                seal=seal.number,
                month=seal.month,
            )
        )
        return
    chain.unsigned += 1


def _not_ours(newest: Seal, key: bytes) -> Finding:
    said = (
        f"The newest seal, {newest.number}, has no signature, and may be anyone's. If "
        "FWDB_AUDIT_KEY is new, verify without it, then sign: fwdb audit seal --sign."
        if newest.signature is None
        else f"The newest seal, {newest.number}, was signed with the key {newest.key_id}, not with "
        f"FWDB_AUDIT_KEY ({merkle.key_id(key)}): set the right key; if it is the right one, the "
        "seals are not ours."
    )
    return Finding(
        kind="signature",
        sentence=said,
        seal=newest.number,
        month=newest.month,
    )
