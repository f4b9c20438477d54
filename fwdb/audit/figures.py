"""Figures of the audit trail: how much of what was recorded, when and by whom."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import pandas as pd

from fwdb.arguments import Count
from fwdb.audit import arguments
from fwdb.audit.context import Context
from fwdb.audit.relation import exists
from fwdb.models import Id, entity_uuid
from fwdb.timespan import Time

__all__ = ["activity", "actors", "bursts", "most_changed", "totals", "unclaimed", "without_actor"]

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
