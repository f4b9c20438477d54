"""What is unusual in the trail, each with the figure that makes it odd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fwdb.audit import checks
from fwdb.audit.context import Context
from fwdb.audit.questions import Moment

__all__ = ["anomalies"]

_QUERIES = ("audit_odd_hours", "audit_first_times", "audit_mass_deletes", "audit_strangers")


def anomalies(self: Context, since: Moment = "7d", until: Moment = "now") -> pd.DataFrame:
    """What stands out in a window, newest first; the weeks before it say what is usual.

    `kind`, `started_at`, `ended_at`, `user_id` (missing: nobody or not known), `db_user`,
    `entity_type`, `action`, `transaction_id` (all missing where it is no matter), `events`
    (the figure that is odd), `usual`, `times_usual` (missing when nothing is usual) and a
    `sentence`. Kinds: ``burst`` (an hour of `bursts`,
    not of removals, at least half by one user), ``odd_hour``, ``new_kind`` and
    ``new_actor`` (the first time), ``mass_delete``, ``unknown_actor``, ``new_login``,
    ``other_login`` and ``missing_actor``. The query files `audit_bursts`, `audit_odd_hours`,
    `audit_first_times`, `audit_mass_deletes` and `audit_strangers` have the thresholds and
    their reasons. Raises `ParameterError` for times that do not make a window.
    """
    start, end = checks.closed_window(since, until)
    found = [self.source.frame(query, since=start, until=end) for query in _QUERIES]
    bursts = self.source.frame(
        "audit_bursts", since=start, until=end, entity_type=None, user_id=None, action=None
    )
    # By one user for the most part, as a script is and a busy day is not; what was removed is
    # judged by itself.
    by_one = 2 * bursts["top_user_events"] >= bursts["events"]
    bursts = bursts[by_one & (bursts["action"] != "DELETE")]
    burst = bursts.rename(columns={"top_user_id": "user_id"}).assign(
        kind="burst",
        started_at=bursts["bucket_at"],
        ended_at=bursts["bucket_at"] + pd.Timedelta(hours=1),
        top=bursts["top_user_events"],
    )
    both = pd.concat([*found, burst.reindex(columns=[*found[0].columns, "top"])])
    # In one order whatever way the server took.
    order = [
        "kind",
        "user_id",
        "db_user",
        "entity_type",
        "action",
        "transaction_id",
        "ended_at",
    ]
    frame = both.sort_values(["started_at", *order], ascending=[False] + [True] * len(order))
    frame = frame.reset_index(drop=True).astype(
        {name: found[0][name].dtype for name in found[0].columns}
    )
    sentences = [_sentence(row) for row in frame.to_dict("records")]
    usual = frame["usual"]
    return frame.drop(columns="top").assign(
        times_usual=(frame["events"] / usual.where(usual > 0)).astype("float64"),
        sentence=pd.Series(sentences, index=frame.index, dtype="str"),
    )


def _sentence(row: Mapping[Any, Any]) -> str:
    who = "nobody known" if pd.isna(row["user_id"]) else f"user {row['user_id']}"
    kind, events = row["kind"], f"{row['events']:,}"
    usual = f"{row['usual']:,.1f}".removesuffix(".0")
    at = f"{row['started_at']:%Y-%m-%d %H:%M}"
    what = f"{row['entity_type']} {row['action']}"
    login = "an unknown login" if pd.isna(row["db_user"]) else f"login {row['db_user']}"
    match kind:
        case "burst":
            return (
                f"{events} rows {what} in the hour from {at} UTC, where {usual} are usual; "
                f"{row['top']:,.0f} of them by {who}."
            )
        case "odd_hour":
            return (
                f"{who} made {events} rows from {at} UTC, an hour in which they make {usual} a day."
            )
        case "new_kind":
            return (
                f"{who} had never done {what} before {at} UTC, and made {events} in the first hour."
            )
        case "new_actor":
            return (
                f"{who} first came at {at} UTC and made {events} rows within a day; {usual} are "
                "usual."
            )
        case "mass_delete":
            number = row["transaction_id"]
            once = "" if pd.isna(number) else f" in transaction {number}"
            return (
                f"{who} removed {events} {row['entity_type']} from {at} UTC{once}; {usual} is the "
                "most that anybody removed within 15 minutes in the four weeks before."
            )
        case "unknown_actor":
            return f"{events} rows from {at} UTC by {login} name {who}, whom no account has."
        case "new_login":
            return f"{login} wrote for the first time at {at} UTC: {events} rows."
        case "other_login":
            return (
                f"{events} rows from {at} UTC in the name of {who} came by {login}, which never "
                "wrote for them before."
            )
        case _:
            return (
                f"{events} changes of {row['entity_type']} from {at} UTC by {login} do not say "
                f"who; {usual} are usual."
            )
