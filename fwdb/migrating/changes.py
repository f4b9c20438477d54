"""What a migration did, and what a database has other than fwdb would have made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a migration did, or left as it was and says so.

    `kind` is what it was done to (``schema``, ``table``, ``column``, ``index``, …), `name` names
    it in full, `sentence` is for people.
    """

    database: str
    kind: str
    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as fwdb would have made it.

    `severity` is ``error`` when questions or writes of fwdb will fail, ``warning`` when they will
    be slow or a rule is not kept, ``information`` when fwdb works all the same.
    """

    database: str
    object: str
    sentence: str
    severity: str
