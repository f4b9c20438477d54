"""One question, one file: ``postgres/<name>.sql``.

A file runs unchanged in psql and here: its header says what a row is, how to run it by hand and
which columns come back. Parameters are ``:name``; a parameter is never followed by ``::type``
(write ``CAST(:name AS type)``) and no comment holds a colon-word, because both would change what
is bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fwdb.errors import ParameterError, UnknownName

_FOLDER = Path(__file__).parent / "postgres"
_NEEDS = re.compile(r"-- Needs PostgreSQL (?P<major>\d+)\.")
_COLUMN = re.compile(r"--   (?P<name>[a-z_][a-z0-9_]*)\s+(?P<type>\S+)")
# The same rule as sqlalchemy.text(): a colon that no colon or word character precedes.
_PARAMETER = re.compile(r"(?<![:\w\\]):(?P<name>[a-zA-Z_]\w*)(?!:)")


@dataclass(frozen=True, slots=True)
class Query:
    """A query file: its `text`, the `columns` it promises (name to type) and its `parameters`.

    `minimum` is the oldest major version of PostgreSQL that has what it asks for, 0 for all.
    """

    name: str
    about: str
    text: str
    columns: dict[str, str]
    parameters: frozenset[str]
    minimum: int = 0

    @property
    def statement(self) -> str:
        """The text without its last semicolon, to go on with or to be a part of another."""
        return self.text.rstrip().rstrip(";")

    def check(self, parameters: Iterable[str]) -> None:
        """Refuse names of parameters that there are not, or that are missing."""
        given = set(parameters)
        for name in sorted(given - self.parameters):
            raise UnknownName("parameter", name, self.parameters, where=f"query '{self.name}'")
        if missing := sorted(self.parameters - given):
            raise ParameterError(f"query '{self.name}' needs {', '.join(missing)}.")


def names() -> list[str]:
    """The queries there are, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.sql"))


@cache
def load(name: str) -> Query:
    """The query `name`; `UnknownName`, with the nearest name, if there is none."""
    if name not in names():
        raise UnknownName("query", name, names(), where="postgres")
    text = (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    lines = text.splitlines()
    header = [line for line in lines if line.startswith("--")]
    body = "\n".join(line for line in lines if not line.startswith("--"))
    start = next((n for n, line in enumerate(header) if line.strip() == "-- Columns"), len(header))
    needs = next((m for line in header if (m := _NEEDS.fullmatch(line))), None)
    return Query(
        name=name,
        about=header[0].removeprefix("--").strip() if header else "",
        text=text,
        columns={m["name"]: m["type"] for line in header[start:] if (m := _COLUMN.match(line))},
        parameters=frozenset(m["name"] for m in _PARAMETER.finditer(body)),
        minimum=int(needs["major"]) if needs else 0,
    )
