"""Hashes of the seal: parts of a row, leaves, the tree over them, and the chain of heads.

As in RFC 6962 each kind of input begins with a byte of its own, so that none can be taken for
another. All hashes are SHA-256.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

__all__ = [
    "EMPTY",
    "SIZE",
    "chain",
    "key_id",
    "leaf",
    "part",
    "root",
    "same",
    "sign",
]

SIZE = 32
EMPTY = bytes(SIZE)  # the head before the first seal
_LEAF, _NODE, _PART, _HEAD, _KEY, _SIGNATURE = b"\0", b"\1", b"\2", b"\3", b"\4", b"\5"


def part(salt: bytes, text: bytes) -> bytes:
    """The digest of one erasable part of a row; without its salt nothing can be guessed from it."""
    return sha256(_PART + salt + text).digest()


def leaf(header: bytes, actor: bytes, values: bytes) -> bytes:
    """The leaf of a row: what is never erased, and the digests of its two parts."""
    return sha256(_LEAF + header + actor + values).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over `leaves`, at least one.

    An odd node goes up as it is, which is the tree of RFC 6962 for any number of leaves.
    """
    level = list(leaves)
    while len(level) > 1:
        pairs = len(level) & ~1
        above = [sha256(_NODE + level[n] + level[n + 1]).digest() for n in range(0, pairs, 2)]
        level = above + level[pairs:]
    return level[0]


def chain(previous: bytes, facts: bytes, tree: bytes) -> bytes:
    """The head of a seal: all heads before it, what it says of itself, and its root."""
    return sha256(_HEAD + previous + tree + facts).digest()


def key_id(key: bytes) -> str:
    """The name of a key, from which the key cannot be told."""
    return sha256(_KEY + key).hexdigest()[:16]


def sign(key: bytes, content: bytes) -> bytes:
    """HMAC-SHA-256 of `content`."""
    return hmac.digest(key, _SIGNATURE + content, "sha256")


def same(one: bytes, other: bytes) -> bool:
    """Whether two signatures are equal, without telling by the time where they differ."""
    return hmac.compare_digest(one, other)
