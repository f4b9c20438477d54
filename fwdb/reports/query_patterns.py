"""Ways of asking that the report `slow_queries` finds: too often, and for too little."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fwdb.charts import share
from fwdb.charts.canvas import DATABASES
from fwdb.reports.asking import Asking
from fwdb.reports.query_checks import named
from fwdb.reports.words import figure

# What makes a statement that is called very often an N+1 pattern and not a busy one. It matters:
MOST_CALLED = 1000  # calls in the window; fewer are no load
CALLS_PERCENT, TIME_PERCENT = 30.0, 1.0  # of its store
# and either each transaction calls it again and again, counted against all transactions, or it is
# called as often as a list returned rows. Two independent counts seldom agree as closely as that.
TIMES = 5.0
LIST_ROWS, LIST_TOLERANCE = 10.0, 0.02
# Documents examined for each one returned: an index would have spared most of them.
EXAMINED = 100

_READS = ("SELECT", "WITH", "FIND")
_FETCH = {
    "postgres": "one statement with a JOIN, or `WHERE … = ANY($1)`; an ORM calls it eager loading",
    "mongodb": "one `find` with `$in`, or `$lookup`",
}


def repeated(asking: Asking, statements: pd.DataFrame) -> None:
    """A warning for a cheap statement that is asked once for each row of another (N+1)."""
    for database, name in DATABASES.items():
        mine = statements[statements["database"].astype(str) == database]
        if mine.empty:
            continue
        found = _often(mine, (statements.attrs.get("coverage") or {}).get(database) or {})
        if found is None:
            text = f"No {name} statement is called once for each row of another."
            asking.add("repeated", database, "ok", text, value=0, unit="count")
            continue
        row, why = found
        asking.add(
            "repeated",
            database,
            "warning",
            f"{named(str(row['statement']))} was called {figure(int(row['calls']))} times, {why}: "
            f"{share(100 * int(row['calls']) / int(mine['calls'].sum()))} of the calls and "
            f"{share(float(row['share_percent']))} of the time of {name}.",
            value=int(row["calls"]),
            unit="count",
            threshold=MOST_CALLED,
            action=f"Fetch all of them at once: {_FETCH[database]}.",
        )


def _often(mine: pd.DataFrame, coverage: dict[str, Any]) -> tuple[pd.Series[Any], str] | None:
    reads = mine[mine["statement"].astype(str).str.lstrip(" (").str.upper().str.startswith(_READS)]
    if reads.empty:
        return None
    row = reads.sort_values(["calls", "query_id"]).iloc[-1]
    calls = int(row["calls"])
    if (
        calls < MOST_CALLED
        or 100 * calls < CALLS_PERCENT * int(mine["calls"].sum())
        or float(row["share_percent"]) < TIME_PERCENT
    ):
        return None
    lists = reads[
        (reads["query_id"] != row["query_id"])
        & (reads["rows_per_call"].fillna(0) >= LIST_ROWS)
        & ((reads["rows"].fillna(0) - calls).abs() <= LIST_TOLERANCE * calls)
    ]
    if len(lists):
        outer = lists.sort_values("query_id").iloc[0]
        return row, f"once for each row that {named(str(outer['statement']))} returned (N+1)"
    transactions = coverage.get("transactions")
    if transactions and calls >= TIMES * transactions:
        times = figure(int(calls / transactions))
        return row, f"{times} times and more in each transaction on average (N+1)"
    return None


def examined(row: pd.Series[Any]) -> str:
    """What a MongoDB command looked at for what it returned, where the profiler tells."""
    looked, returned = row.get("docs_examined_per_call"), row.get("rows_per_call")
    if looked is None or pd.isna(looked) or pd.isna(returned):
        return ""
    if float(looked) < EXAMINED * max(1.0, float(returned)):
        return ""
    return f", which examines {figure(float(looked))} documents to return {figure(float(returned))}"
