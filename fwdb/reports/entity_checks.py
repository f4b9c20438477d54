"""The checks of the report `entity_history`, and its key figures."""

from __future__ import annotations

import pandas as pd

from fwdb.audit import lives
from fwdb.charts.canvas import plural
from fwdb.reports.asking import Asking
from fwdb.reports.results import Kpi
from fwdb.reports.words import figure

# Of a list in a sentence; the table has all.
NAMED = 3


def _when(moment: pd.Timestamp) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _changed(history: pd.DataFrame) -> pd.DataFrame:
    return history[history["action"].astype(str) != "READ"]


def events(
    asking: Asking, name: str, id: str | None, history: pd.DataFrame, whole: pd.DataFrame
) -> None:
    """What happened to it in the window."""
    if history.empty:
        if id is None:
            said, action = "Nothing was changed in this window.", "Take a longer window."
        elif whole.empty:
            said = f"The trail knows nothing of {id} up to the end of this window."
            action = "Look at the id, and give its `entity_type` too."
        else:
            last = _when(whole["created_at"].iloc[-1])
            said = f"Nothing happened to {name} in this window; its last event was at {last}."
            action = "Take a longer window."
        asking.add("events", "postgres", "no_data", said, value=0, unit="count", action=action)
        return
    changed = _changed(history)
    users = changed["user_id"].nunique()
    fields = {f for text in changed["changed_fields"].dropna() for f in text.split(", ") if f}
    reads = len(history) - len(changed)
    text = f"{name} was changed {plural(len(changed), 'time')}"
    if len(changed):
        text += f" by {plural(users, 'user')}" if users else ", and nothing says by whom"
        text += f", in {plural(len(fields), 'field')}" if fields else ""
    text += f", and read {plural(reads, 'time')}" if reads else ""
    asking.add("events", "postgres", "ok", f"{text}.", value=len(history), unit="count")


def origin(asking: Asking, name: str, whole: pd.DataFrame) -> None:
    """Whether the trail tells how it came to be."""
    first = whole.iloc[0]
    made = str(first["action"]) == "CREATE"
    at = _when(first["created_at"])
    asking.add(
        "origin",
        "postgres",
        "ok" if made else "not_available",
        f"It was made at {at}, and its life is told from there."
        if made
        else f"The trail begins with {first['action']} at {at}: what was before is not known.",
    )


def breaks(asking: Asking, name: str, whole: pd.DataFrame, since: pd.Timestamp) -> None:
    """Whether each change begins where the one before ended."""
    found = [b for b in lives.breaks(whole) if b.at >= since]
    if not found:
        text = "Each change begins with the values that the one before left."
        asking.add("breaks", "postgres", "ok", text, value=0, unit="count", threshold=1)
        return
    first = found[0]
    before = whole["created_at"].iloc[: first.event]
    since_when = f" between {_when(before.iloc[-1])} and" if len(before) else " before"
    more = f" {figure(len(found) - 1)} more do not fit." if len(found) > 1 else ""
    asking.add(
        "breaks",
        "postgres",
        "warning",
        f"{first.field} of {name} changed{since_when} {_when(pd.Timestamp(first.at))} and left no "
        f"row.{more}",
        value=len(found),
        unit="count",
        threshold=1,
        action="See `fwdb audit coverage` for what is not captured, and `fwdb audit verify` for "
        "whether a row was removed.",
    )


def fate(asking: Asking, name: str, whole: pd.DataFrame) -> None:
    """Whether it is still there."""
    changed = _changed(whole)
    if changed.empty:
        return
    last = changed.iloc[-1]
    gone = str(last["action"]) == "DELETE"
    who = last["user_id"]
    by = f"User {str(who)[:8]}…" if pd.notna(who) else "Somebody who did not say so"
    at = _when(last["created_at"])
    text = f"{by} deleted it at {at}." if gone else f"{by} changed it last, at {at}."
    asking.add("fate", "postgres", "ok", text)


def kpis(history: pd.DataFrame, whole: pd.DataFrame) -> list[Kpi]:
    """How much happened, in how many fields, by how many."""
    changed = _changed(history)
    fields = changed["changed_fields"].fillna("").str.split(", ").explode()
    counts = fields[fields != ""].value_counts()
    most = sorted(counts.index, key=lambda f: (-int(counts[f]), f))[:NAMED]
    nobody = int(changed["user_id"].isna().sum())
    first = whole["created_at"].iloc[0]
    numbers = (
        ("changes", "Changes", len(changed), f"known since {_when(first)}"),
        ("reads", "Reads", len(history) - len(changed), "recorded where the application asks"),
        ("fields", "Fields changed", len(counts), f"most often {', '.join(most)}" if most else ""),
        ("actors", "Users", changed["user_id"].nunique(), "who changed it"),
        ("without_actor", "Changes without an actor", nobody, "nobody said who"),
        ("earlier", "Events before the window", len(whole) - len(history), ""),
    )
    return [
        Kpi(id, label, int(value), "", "ok", "postgres", note) for id, label, value, note in numbers
    ]
