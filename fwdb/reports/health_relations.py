"""The checks of the report `health` on tables, indexes and triggers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from fwdb.charts import share
from fwdb.charts.canvas import plural
from fwdb.reports.asking import Asking, sentence
from fwdb.reports.words import figure

# Autovacuum begins at 20 percent; a small table is no matter.
DEAD_PERCENT, DEAD_ROWS = 20.0, 10_000
INDEX_BYTES = 10_000_000  # what a superfluous index must take to be worth a sentence


def tables(asking: Asking, found: pd.DataFrame) -> None:
    """Tables full of rows that nobody needs."""
    mine = found[found["database"] == "postgres"]
    if mine.empty:
        asking.add("dead_rows", "postgres", "not_applicable", "There is no table.")
        return
    large = mine[mine["dead_rows"] >= DEAD_ROWS]
    bad = large[large["dead_percent"] >= DEAD_PERCENT]
    bloated = bad.sort_values("dead_rows", ascending=False)
    worst = bloated.iloc[0] if len(bloated) else None
    asking.add(
        "dead_rows",
        "postgres",
        "ok" if worst is None else "warning",
        f"None of {plural(len(mine), 'table')} has {DEAD_PERCENT:g} % of dead rows, and "
        f"{figure(DEAD_ROWS)} of them."
        if worst is None
        else f"{share(float(worst['dead_percent']))} of the row versions in {worst['table']} are "
        f"dead: {figure(int(worst['dead_rows']))}"
        + (f"; {len(bad) - 1} more tables are like it." if len(bad) > 1 else "."),
        value=float(large["dead_percent"].max() if len(large) else 0.0)
        if worst is None
        else float(worst["dead_percent"]),
        unit="percent",
        threshold=DEAD_PERCENT,
        action=""
        if worst is None
        else f"`VACUUM (ANALYZE) {worst['table']}`; if it comes back, lower "
        "autovacuum_vacuum_scale_factor for this table.",
    )


def indexes(asking: Asking, found: pd.DataFrame) -> None:
    """Indexes that cost writes and answer nothing."""
    for database in asking.up:
        mine = found[found["database"] == database]
        if mine.empty:
            continue
        reason = str((found.attrs.get("unjudged") or {}).get(database, ""))
        invalid = mine[mine["is_valid"] == False]  # noqa: E712  three-valued
        _index(
            asking,
            "invalid_indexes",
            database,
            invalid,
            "is not valid: it costs writes and answers nothing",
            "no index is invalid",
            lambda r: f"`DROP INDEX CONCURRENTLY {_schema(r)}{r['index']}`, and make it again.",
        )
        if database == "mongodb":
            if reason:
                asking.add("unused_indexes", database, "not_available", sentence(reason))
            continue
        twice = mine[mine["duplicate_of"].notna() & (mine["index_bytes"] >= INDEX_BYTES)]
        _index(
            asking,
            "duplicate_indexes",
            database,
            twice,
            "answers nothing that another index does not",
            f"no index of {figure(INDEX_BYTES, 'bytes')} and more is a duplicate",
            lambda r: (
                f"`DROP INDEX CONCURRENTLY {_schema(r)}{r['index']}`: {r['duplicate_of']} "
                "serves the same questions."
            ),
        )
        idle = mine[(mine["unused"] == True) & (mine["index_bytes"] >= INDEX_BYTES)]  # noqa: E712
        if reason and idle.empty:
            asking.add("unused_indexes", database, "no_data", sentence(reason))
            continue
        _index(
            asking,
            "unused_indexes",
            database,
            idle,
            "was not used since its counters began",
            f"no index of {figure(INDEX_BYTES, 'bytes')} and more is unused",
            lambda r: (
                f"`DROP INDEX CONCURRENTLY {_schema(r)}{r['index']}`, if no yearly job needs it."
            ),
        )


def _schema(row: pd.Series[Any]) -> str:
    schema, dot, _ = str(row["table"]).partition(".")
    return schema + dot if row["database"] == "postgres" else ""


def _index(
    asking: Asking,
    subject: str,
    database: str,
    bad: pd.DataFrame,
    fault: str,
    fine: str,
    action: Callable[[pd.Series[Any]], str],
) -> None:
    worst = bad.iloc[0] if len(bad) else None
    more = f"; {len(bad) - 1} more are like it" if len(bad) > 1 else ""
    asking.add(
        subject,
        database,
        "ok" if worst is None else "warning",
        sentence(fine)
        if worst is None
        else f"Index {worst['index']} of {worst['table']} "
        f"({figure(worst['index_bytes'], 'bytes')}) {fault}{more}.",
        value=len(bad),
        unit="count",
        threshold=1,
        action="" if worst is None else action(worst),
    )


def triggers(asking: Asking, found: pd.DataFrame) -> None:
    """Triggers that somebody switched off and forgot."""
    first = found.iloc[0] if len(found) else None
    asking.add(
        "triggers",
        "postgres",
        "ok" if first is None else "warning",
        "No trigger is switched off."
        if first is None
        else f"Trigger {first['trigger_name']} of {first['table_name']} is switched off"
        + (f", and {len(found) - 1} more." if len(found) > 1 else "."),
        value=len(found),
        unit="count",
        threshold=1,
        action=""
        if first is None
        else f"`ALTER TABLE {first['table_name']} ENABLE TRIGGER {first['trigger_name']}`.",
    )
