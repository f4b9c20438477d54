"""Plans that auto_explain has logged while statements ran, with the time that they took."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from fwdb.errors import FwdbError, PermissionDenied
from fwdb.measure import Status
from fwdb.monitoring.redaction import plan_redacted, redacted, texts_redacted
from fwdb.stores import PostgresStore, frames

# 12,000 short plans: measured, 1.9 s from the log to the frame; the server has 5 s for its part.
MOST_BYTES = 8 << 20

COLUMNS = {
    "logged_at": "timestamp",
    "query_id": "string",
    "duration_ms": "float64",
    "application": "string",
    "user_name": "string",
    "statement": "string",
    "plan": "string",
}
_MESSAGE = re.compile(
    r"duration: (?P<ms>[\d.]+) ms  plan:\nQuery Text: (?P<statement>.*?)"
    r"(?:\nQuery Parameters: [^\n]*)?\n(?P<plan>\S[^\n]*  \(cost=[\d.]+\.\..*)",
    re.DOTALL,
)


def logged_plans(
    store: PostgresStore,
    since: datetime,
    until: datetime | None,
    *,
    query_id: str | None = None,
    top: int = 20,
) -> pd.DataFrame:
    """See `Monitor.logged_plans`."""
    end = until or datetime.now(UTC)
    window = {"since": since, "until": end}
    if absent := _absence(store):
        return _frame([], *absent, window=window)
    try:
        rows = store.rows("logged_plans", since=since, until=end, most_bytes=MOST_BYTES)
    except PermissionDenied as error:
        return _frame([], "not_measured", str(error), window=window)
    except FwdbError as error:
        reason = f"the server's log could not be read: {error}"
        return _frame([], "not_measured", reason, window=window)
    size = rows[0]["log_bytes"]
    remark = ""
    if size > MOST_BYTES:
        remark = (
            f"of {size / 1e6:,.0f} MB of logs only the newest {MOST_BYTES / 1e6:,.0f} MB were "
            "read: older plans are missing"
        )
    found = [entry for row in rows if (entry := _entry(row))]
    found = [entry for entry in found if query_id in (None, entry["query_id"])]
    found.sort(key=lambda entry: entry["duration_ms"], reverse=True)
    reason = "the server logged no plan in this window" + (f"; {remark}" if remark else "")
    status: Status = "ok" if found else "no_data"
    return _frame(found[:top], status, "" if found else reason, window=window, remark=remark)


def _absence(store: PostgresStore) -> tuple[Status, str] | None:
    """Why there are no logged plans to be had."""
    state = store.rows("logged_plans_state")[0]
    if state["min_ms"] is None:
        return "not_available", (
            "the server does not load auto_explain; add it to shared_preload_libraries and "
            "restart the server"
        )
    if state["min_ms"] < 0:
        return "not_available", (
            "auto_explain logs nothing; ALTER SYSTEM SET auto_explain.log_min_duration = '500ms'; "
            "SELECT pg_reload_conf();"
        )
    if store.server_version < 150000:
        return "not_available", "plans are read from JSON logs, which need PostgreSQL 15 or newer"
    if not state["collected"] or "jsonlog" not in state["destination"]:
        return "not_available", (
            "the server writes no JSON log; set logging_collector = on and log_destination = "
            "'jsonlog', and restart the server"
        )
    if state["format"] != "text":
        return "not_available", (
            f"auto_explain.log_format is '{state['format']}'; "
            "ALTER SYSTEM SET auto_explain.log_format = 'text'; SELECT pg_reload_conf();"
        )
    if not state["exists"]:
        from fwdb.embedded.postgres import LOGGED_PLANS  # with it come the built-in servers

        return "not_measured", (
            "the database lacks the function fwdb_logged_plans; a superuser makes it with psql "
            f"-f '{LOGGED_PLANS}'"
        )
    if not state["allowed"]:
        return "not_measured", (
            "this role may not read logged plans; a superuser lets it by GRANT pg_monitor TO "
            f"{state['role']};"
        )
    return None


def _entry(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """One row of the frame; None for a plan that is not in text form, as before a change of it.

    Values are taken out before the text is split, so that none can pass for the start of a plan.
    """
    parts = _MESSAGE.fullmatch(texts_redacted(row["message"] or ""))
    if parts is None:
        return None
    return {
        "logged_at": row["logged_at"],
        "query_id": None if row["query_id"] is None else str(row["query_id"]),
        "duration_ms": float(parts["ms"]),
        "application": row["application"] or "",
        "user_name": row["user_name"],
        "statement": redacted(parts["statement"]),
        "plan": plan_redacted(parts["plan"].rstrip()),
    }


def _frame(
    entries: list[dict[str, Any]],
    status: Status,
    reason: str,
    *,
    window: Mapping[str, datetime],
    remark: str = "",
) -> pd.DataFrame:
    rows = [list(entry.values()) for entry in entries]
    frame = frames.from_rows(list(COLUMNS), rows, COLUMNS)
    frame.attrs.update(status=status, reason=reason, remark=remark, window=dict(window))
    return frame
