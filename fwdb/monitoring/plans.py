"""How the server would run a statement that it has recorded without its values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fwdb.errors import (
    FeatureUnavailable,
    FwdbError,
    InvalidData,
    ParameterError,
    PermissionDenied,
    shown,
)
from fwdb.measure import Status
from fwdb.monitoring import statements
from fwdb.monitoring.history import History
from fwdb.stores import PostgresStore
from fwdb.stores.postgres import generic_plan

_CUT = 10_000  # statement_texts.sql keeps so many characters
_SCAN = re.compile(r"(?:Parallel )?Seq Scan on (?P<table>[\w.\"]+)")
_EQUALS = re.compile(r"\(+(?P<column>\w+)\)?(?:::\w+)? = (?:\(?\$\d+\)?)")


@dataclass(frozen=True, slots=True)
class Scan:
    """A table that the plan reads from end to end, and the column that its filter compares."""

    table: str
    filter: str
    column: str

    @property
    def index(self) -> str:
        """The statement that would spare the reading; empty when the filter is not that plain."""
        return f"CREATE INDEX CONCURRENTLY ON {self.table} ({self.column});" if self.column else ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a recorded statement, or the reason why there is none.

    `status` is that of a `Measure`. `text` is the server's, for any values of ``$1``, ``$2``, …;
    a value that is rare or frequent may be planned another way.
    """

    query_id: str
    statement: str
    status: Status
    reason: str = ""
    text: str = ""

    @property
    def scans(self) -> tuple[Scan, ...]:
        """Tables that are read from end to end, for the sake of a filter."""
        found = []
        lines = self.text.splitlines()
        for line, after in itertools.pairwise([*lines, ""]):
            scan, kept = _SCAN.search(line), after.strip()
            if scan and kept.startswith("Filter: "):
                kept = kept.removeprefix("Filter: ")
                equals = _EQUALS.match(kept)
                found.append(Scan(scan["table"], kept, equals["column"] if equals else ""))
        return tuple(found)

    def __str__(self) -> str:
        return self.text or f"{self.status.replace('_', ' ')}: {self.reason}"

    def __rich_repr__(self) -> Iterator[Any]:
        yield str(self)


def plan(store: PostgresStore, history: History, query_id: str) -> Plan:
    """The generic plan of a statement by its id; see `Monitor.plan`."""
    if re.fullmatch(r"[0-9a-f]{16}", query_id):
        reason = "plans of MongoDB commands are not kept; run explain() on one with its values"
        return Plan(query_id, "", "not_available", reason)
    if not re.fullmatch(r"-?\d{1,19}", query_id):
        raise ParameterError(
            f"'query_id' is {shown(query_id)}; give one of column query_id of "
            "db.monitor.slow_queries().",
            name="query_id",
        )
    number = int(query_id)
    kept = history if not history.absence() else None
    text = statements.texts(store, kept, [number]).get(number)
    if text is None:
        reason = "the server does not keep its text any more, and no reading has stored it"
        return Plan(query_id, "", "no_data", reason)
    if len(text) >= _CUT:
        return Plan(query_id, text, "not_available", f"its text is over {_CUT:,} characters long")
    try:
        return Plan(query_id, text, "ok", text=generic_plan(store, text))
    except PermissionDenied as error:
        return Plan(query_id, text, "not_measured", str(error))
    except (FeatureUnavailable, InvalidData) as error:
        return Plan(query_id, text, "not_available", str(error))
    except FwdbError as error:
        return Plan(query_id, text, "not_measured", f"it could not be planned: {error}")
