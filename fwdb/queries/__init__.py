"""One question, one file: ``postgres/<name>.sql`` and ``mongodb/<name>.json``.

An SQL file runs unchanged in psql and here: its header says what a row is, how to run it by
hand and which columns come back. Parameters are ``:name``; a parameter is never followed by
``::type`` (write ``CAST(:name AS type)``) and no comment holds a colon-word, because both would
change what is bound. A MongoDB file is JSON with ``about``, ``collection``, ``columns`` and
``pipeline``, and ``"$$name"`` for a parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fwdb.errors import ParameterError, UnknownName

_FOLDER = Path(__file__).parent
_SUFFIX = {"postgres": ".sql", "mongodb": ".json"}
_NEEDS = re.compile(r"-- Needs PostgreSQL (?P<major>\d+)\.")
_COLUMN = re.compile(r"--   (?P<name>[a-z_][a-z0-9_]*)\s+(?P<type>\S+)(?P<counter>\s+counter,)?")
# The same rule as sqlalchemy.text(): a colon that no colon or word character precedes.
_PARAMETER = re.compile(r"(?<![:\w\\]):(?P<name>[a-zA-Z_]\w*)(?!:)")
_MONGO_PARAMETER = re.compile(r'"\$\$(?P<name>[a-z_]\w*)"')


@dataclass(frozen=True, slots=True)
class Query:
    """A query file: its `text`, the `columns` it promises (name to type) and its `parameters`.

    `counters` are the columns that only grow until they begin anew: two readings of them are
    subtracted. `minimum` is the oldest major version of PostgreSQL that has what it asks for, 0
    for all.
    """

    name: str
    store: str
    about: str
    text: str
    columns: dict[str, str]
    parameters: frozenset[str]
    minimum: int = 0
    counters: tuple[str, ...] = ()
    collection: str = ""
    pipeline: tuple[dict[str, Any], ...] = ()

    def check(self, parameters: Iterable[str]) -> None:
        """Refuse names of parameters that there are not, or that are missing."""
        given = set(parameters)
        for name in sorted(given - self.parameters):
            raise UnknownName("parameter", name, self.parameters, where=f"query '{self.name}'")
        if missing := sorted(self.parameters - given):
            raise ParameterError(f"query '{self.name}' needs {', '.join(missing)}.")

    def reading(self, instead: Mapping[str, str]) -> Query:
        """The query with other relations in place of those that `instead` names.

        What stands in place of one may have parameters of its own.
        """
        text, parameters = self.text.rstrip().rstrip(";"), set(self.parameters)
        for relation, other in instead.items():
            text = re.sub(rf"\b{re.escape(relation)}\b", other.replace("\\", r"\\"), text)
            parameters |= {m["name"] for m in _PARAMETER.finditer(other)}
        return replace(self, text=text, parameters=frozenset(parameters))


def names(store: str) -> list[str]:
    """The queries there are for `store` (``postgres`` or ``mongodb``), sorted."""
    return sorted(path.stem for path in (_FOLDER / store).glob(f"*{_SUFFIX[store]}"))


@cache
def load(name: str, store: str) -> Query:
    """The query `name` of `store`; `UnknownName`, with the nearest name, if there is none."""
    path = _FOLDER / store / f"{name}{_SUFFIX[store]}"
    if name not in names(store):
        raise UnknownName("query", name, names(store), where=store)
    text = path.read_text(encoding="utf-8")
    return _mongodb(name, text) if store == "mongodb" else _postgres(name, text)


def _postgres(name: str, text: str) -> Query:
    lines = text.splitlines()
    header = [line for line in lines if line.startswith("--")]
    body = "\n".join(line for line in lines if not line.startswith("--"))
    start = next((n for n, line in enumerate(header) if line.strip() == "-- Columns"), len(header))
    needs = next((m for line in header if (m := _NEEDS.fullmatch(line))), None)
    found = [m for line in header[start + 1 :] if (m := _COLUMN.match(line))]
    return Query(
        name=name,
        store="postgres",
        about=header[0].removeprefix("--").strip() if header else "",
        text=text,
        columns={m["name"]: m["type"] for m in found},
        parameters=frozenset(m["name"] for m in _PARAMETER.finditer(body)),
        minimum=int(needs["major"]) if needs else 0,
        counters=tuple(m["name"] for m in found if m["counter"]),
    )


def _mongodb(name: str, text: str) -> Query:
    content = json.loads(text)
    return Query(
        name=name,
        store="mongodb",
        about=content["about"],
        text=text,
        columns=content["columns"],
        parameters=frozenset(m["name"] for m in _MONGO_PARAMETER.finditer(text)),
        collection=content["collection"],
        pipeline=tuple(content["pipeline"]),
    )
