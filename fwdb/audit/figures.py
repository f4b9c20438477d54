"""Figures of the audit trail: how much of what, when and by whom; and which are unusual."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

import pandas as pd

from fwdb.arguments import Count
from fwdb.audit import arguments
from fwdb.audit.context import Context
from fwdb.audit.relation import exists
from fwdb.models import Id, entity_uuid
from fwdb.timespan import Time

__all__ = [
    *("activity", "actors", "anomalies", "bursts", "most_changed", "totals", "unclaimed"),
    "without_actor",
]

_ANOMALIES = ("audit_odd_hours", "audit_first_times", "audit_mass_deletes", "audit_strangers")
# An hour for each point of a chart up to a week, which is 168 points; days beyond.
_HOURLY_UP_TO = timedelta(days=7)
Bucket = Annotated[str, ("minute", "hour", "day", "week", "month")]


def activity(
    self: Context,
    since: Time = "7d",
    until: Time = "now",
    bucket: Bucket | None = None,
    *,
    entity_type: str | None = None,
    user_id: Id | None = None,
    action: str | None = None,
) -> pd.DataFrame:
    """How much was recorded: `bucket_at`, `entity_type`, `action`, `events`.

    `bucket` is ``minute``, ``hour``, ``day``, ``week`` (from Monday) or ``month``, in UTC; by
    default hours for a window of up to a week, else days. What did not happen has no row.
    """
    start, end = arguments.closed_window(since, until)
    if bucket is None:
        bucket = "hour" if end - start <= _HOURLY_UP_TO else "day"
    return _figures(
        self, "audit_activity", start, end, entity_type,
        user_id=user_id, action=action, bucket=bucket,
    )  # fmt: skip


def actors(
    self: Context,
    since: Time = "7d",
    until: Time = "now",
    *,
    top: Count = 10,
    entity_type: str | None = None,
    user_id: Id | None = None,
    action: str | None = None,
) -> pd.DataFrame:
    """The `top` users by recorded events, most active first.

    `user_id` (missing: rows that do not say who), `events`, `creates`, `updates`, `reads`,
    `deletes`, `first_at`, `last_at`, `share_percent` (0 to 100, of all events that fit).
    """
    return _figures(
        self, "audit_actors", since, until, entity_type,
        user_id=user_id, action=action, row_limit=top,
    )  # fmt: skip


def totals(
    self: Context,
    since: Time = "7d",
    until: Time = "now",
    *,
    entity_type: str | None = None,
    user_id: Id | None = None,
    action: str | None = None,
) -> pd.DataFrame:
    """Events per action: `action`, `events`, `without_actor`, `first_at`, `last_at`.

    Always four rows, CREATE, UPDATE, DELETE and READ, also when there are none of one.
    """
    return _figures(self, "audit_totals", since, until, entity_type, user_id=user_id, action=action)


def bursts(
    self: Context,
    since: Time = "7d",
    until: Time = "now",
    *,
    entity_type: str | None = None,
    user_id: Id | None = None,
    action: str | None = None,
) -> pd.DataFrame:
    """Hours with far more events of one kind than is usual at that hour, oddest first.

    `bucket_at`, `entity_type`, `action`, `events`, `usual`, `times_usual` (missing when
    nothing is usual), `top_user_id`, `top_user_events`. Usual is the median of the same hour
    on the days up to 28 before and after, working days and weekends apart, as far as `until`.
    An hour is listed with at least 10 events, 3 times the usual and 6 robust standard
    deviations above it; the query file `audit_bursts` has the formula.
    """
    return _figures(self, "audit_bursts", since, until, entity_type, user_id=user_id, action=action)


def most_changed(
    self: Context,
    since: Time = "7d",
    until: Time = "now",
    *,
    entity_type: str | None = None,
    entity_id: Id | None = None,
    top: Count = 10,
) -> pd.DataFrame:
    """The `top` entities by creations, updates and deletions in the window.

    `entity_type`, `entity_id`, `changes`, `actors` (users who made them), `last_at`; most
    changes first. With `entity_id` it tells of what type that entity is.
    """
    uuid = None if entity_id is None else str(entity_uuid(entity_id))
    return _figures(
        self, "audit_most_changed", since, until, entity_type, entity_id=uuid, row_limit=top
    )


def unclaimed(
    self: Context,
    since: Time = "7d",
    until: Time = "now",
    *,
    entity_type: str | None = None,
    action: str | None = None,
    top: Count = 20,
) -> pd.DataFrame:
    """Changes of which nobody said who made them, by what the server knew of the session.

    `db_user`, `application_name`, `origin`, `entity_type`, `action`, `changes`, `last_at`;
    the `top` groups with most changes. In rows from before fwdb the first three are missing.
    """
    return _figures(
        self, "audit_unclaimed", since, until, entity_type, action=action, row_limit=top
    )


def without_actor(self: Context, since: Time) -> int | None:
    """Changes from `since` on of which nobody said who made them; None without a trail."""
    if not exists(self.postgres, "audit.audit_logs"):
        return None
    rows = totals(self, since)
    return int(rows.loc[rows["action"] != "READ", "without_actor"].sum())


def _figures(
    self: Context, query: str, since: Time, until: Time, entity_type: str | None, **filters: Any
) -> pd.DataFrame:
    start, end = arguments.closed_window(since, until)
    arguments.askable(self.postgres, entity_type)
    for name, check in (("user_id", arguments.user), ("action", arguments.action)):
        if name in filters:
            filters[name] = check(filters[name])
    return self.source.frame(query, since=start, until=end, entity_type=entity_type, **filters)


# -- what is unusual ----------------------------------------------------------------------------


def anomalies(self: Context, since: Time = "7d", until: Time = "now") -> pd.DataFrame:
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
    start, end = arguments.closed_window(since, until)
    found = [self.source.frame(query, since=start, until=end) for query in _ANOMALIES]
    hours = bursts(self, start, end)
    # By one user for the most part, as a script is and a busy day is not; what was removed is
    # judged by itself.
    by_one = 2 * hours["top_user_events"] >= hours["events"]
    hours = hours[by_one & (hours["action"] != "DELETE")]
    burst = hours.rename(columns={"top_user_id": "user_id"}).assign(
        kind="burst",
        started_at=hours["bucket_at"],
        ended_at=hours["bucket_at"] + pd.Timedelta(hours=1),
        top=hours["top_user_events"],
    )
    both = pd.concat([*found, burst.reindex(columns=[*found[0].columns, "top"])])
    # In one order whatever way the server took.
    order = [
        *("started_at", "kind", "user_id", "db_user", "entity_type", "action"),
        *("transaction_id", "ended_at"),
    ]
    frame = both.sort_values(order, ascending=[False] + [True] * (len(order) - 1))
    frame = frame.reset_index(drop=True).astype(
        {name: found[0][name].dtype for name in found[0].columns}
    )
    sentences = [_sentence(row) for row in frame.to_dict("records")]
    usual = frame["usual"]
    return frame.drop(columns="top").assign(
        times_usual=(frame["events"] / usual.where(usual > 0)).astype("float64"),
        sentence=pd.Series(sentences, index=frame.index, dtype="str"),
    )


_SENTENCES = {
    "burst": "{events} rows {entity_type} {action} in the hour from {at} UTC, where {usual} are "
    "usual; {top:,.0f} of them by {who}.",
    "odd_hour": "{who} made {events} rows from {at} UTC, an hour in which they make {usual} a day.",
    "new_kind": "{who} had never done {entity_type} {action} before {at} UTC, and made {events} in "
    "the first hour.",
    "new_actor": "{who} first came at {at} UTC and made {events} rows within a day; {usual} are "
    "usual.",
    "mass_delete": "{who} removed {events} {entity_type} from {at} UTC{once}; {usual} is the most "
    "that anybody removed within 15 minutes in the four weeks before.",
    "unknown_actor": "{events} rows from {at} UTC by {login} name {who}, whom no account has.",
    "new_login": "{login} wrote for the first time at {at} UTC: {events} rows.",
    "other_login": "{events} rows from {at} UTC in the name of {who} came by {login}, which never "
    "wrote for them before.",
    "missing_actor": "{events} changes of {entity_type} from {at} UTC by {login} do not say who; "
    "{usual} are usual.",
}


def _sentence(row: Mapping[Any, Any]) -> str:
    user, login, number = row["user_id"], row["db_user"], row["transaction_id"]
    shown = {
        "who": "nobody known" if pd.isna(user) else f"user {user}",
        "login": "an unknown login" if pd.isna(login) else f"login {login}",
        "once": "" if pd.isna(number) else f" in transaction {number}",
        "at": f"{row['started_at']:%Y-%m-%d %H:%M}",
        "events": f"{row['events']:,}",
        "usual": f"{row['usual']:,.1f}".removesuffix(".0"),
    }
    return _SENTENCES[row["kind"]].format(**{**row, **shown})
