"""Who acts in this thread, and how both stores hear of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, from where and why, as they say it; None is not said."""

    user_id: str | None = None
    ip_address: str | None = None
    user_agent: str | None = None
    reason: str | None = None

    def within(self, outer: Actor | None) -> Actor:
        """This actor with what it does not say taken from `outer`."""
        return Actor(**{**(outer.said if outer else {}), **self.said})

    @property
    def said(self) -> dict[str, str]:
        """The fields that are said."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def json(self) -> str:
        """What is said, as PostgreSQL gets it in the setting ``fwdb.actor``."""
        return json.dumps(self.said, ensure_ascii=False)


# Field of the actor -> field of ``_audit`` in a document.
_STORED = {"user_id": "by", "ip_address": "ip", "user_agent": "userAgent", "reason": "reason"}

_current: ContextVar[Actor | None] = ContextVar("fwdb_actor", default=None)

_Tell = Callable[[Actor | None], None]
# The open transactions of a thread, which hear of an actor that begins or ends in them.
_hearing: ContextVar[tuple[_Tell, ...]] = ContextVar("fwdb_hearing", default=())


def current() -> Actor | None:
    """Who acts in this thread now; a new thread begins with nobody."""
    return _current.get()


@contextmanager
def acting(actor: Actor) -> Iterator[Actor]:
    """While the block runs, `actor` acts in this thread.

    What it does not say is as in the block around it. Transactions that are open hear of it at
    once and, at the end, of who acted before; those begun in the block hear of it with BEGIN.
    """
    before = current()
    inner = actor.within(before)
    hearing = _hearing.get()
    for tell in hearing:
        tell(inner)
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)
        for tell in hearing:
            if tell in _hearing.get():  # a block that was left late may outlive its transaction
                tell(before)


@contextmanager
def listening(tell: _Tell) -> Iterator[None]:
    """While the block, a transaction, runs, `tell` hears of actors that begin or end in it."""
    _hearing.set((*_hearing.get(), tell))
    try:
        yield
    finally:
        _hearing.set(tuple(one for one in _hearing.get() if one is not tell))


def marked(*, deleting: bool = False) -> dict[str, Any]:
    """The field ``_audit`` of a document that is changed now; nothing when nobody acts.

    `deleting` announces a removal, which itself can carry nothing.

    Its ``nonce`` is another one each time: who follows the changes tells by it that the field
    came with the change, and is not left from an earlier one.
    """
    who = current()
    if who is None:
        return {}
    said = {_STORED[name]: value for name, value in who.said.items()}
    more = {"deleting": True} if deleting else {}
    return {"_audit": {**said, "nonce": uuid4().hex, **more}}
