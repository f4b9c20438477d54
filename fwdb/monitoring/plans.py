"""Plans of recorded statements: how the server would run one, and how it did run some."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from fwdb.arguments import Count
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
from fwdb.monitoring.context import Context, frame
from fwdb.monitoring.history import window
from fwdb.monitoring.redaction import plan_redacted, redacted, texts_redacted
from fwdb.stores import PostgresStore
from fwdb.stores.postgres import generic_plan
from fwdb.timespan import Time

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


def plan(self: Context, query_id: str | int) -> Plan:
    """How PostgreSQL would run a statement it has recorded, without running it.

    By EXPLAIN (GENERIC_PLAN), in a read-only transaction with a short time limit. `status`
    is ``not_available`` before PostgreSQL 16 and for what has no plan, ``not_measured``
    when the role may not, ``no_data`` when nobody kept the text.
    """
    # In the CSV files of a report an apostrophe keeps spreadsheets from reading a formula.
    query_id = str(query_id).removeprefix("'")
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
    history = None if self.history.absence() else self.history
    text = statements.texts(self.postgres, history, [number]).get(number)
    if text is None:
        reason = "the server does not keep its text any more, and no reading has stored it"
        return Plan(query_id, "", "no_data", reason)
    if len(text) >= _CUT:
        return Plan(query_id, text, "not_available", f"its text is over {_CUT:,} characters long")
    try:
        return Plan(query_id, text, "ok", text=generic_plan(self.postgres, text))
    except PermissionDenied as error:
        return Plan(query_id, text, "not_measured", str(error))
    except (FeatureUnavailable, InvalidData) as error:
        return Plan(query_id, text, "not_available", str(error))
    except FwdbError as error:
        return Plan(query_id, text, "not_measured", f"it could not be planned: {error}")


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
    self: Context,
    since: Time = "24h",
    until: Time | None = None,
    *,
    query_id: str | int | None = None,
    top: Count = 20,
) -> pd.DataFrame:
    """Plans that PostgreSQL itself logged in the window as statements ran, slowest first.

    Columns: ``logged_at`` (UTC, when the statement ended), ``query_id`` as in
    `slow_queries`, missing where the server computed none, ``duration_ms`` of this one run,
    ``application``, ``user_name``, ``statement`` and ``plan``, text without the values in it.
    At most `top` rows, of one `query_id` if it is given; statements of fwdb are left out.

    ``attrs["status"]`` and ``attrs["reason"]``: ``not_available`` when auto_explain is not
    loaded, off, or does not log text plans as JSON (PostgreSQL 15); ``not_measured`` when
    this role may not read them, with what a superuser does about it; ``no_data`` when there
    is none. ``attrs["remark"]`` says when the log was too long to be read whole.

    Source: messages of auto_explain in the server's JSON log, whose newest 8 MB are read.
    """
    start, end = window(since, until)
    span = {"since": start, "until": end or datetime.now(UTC)}
    status, reason = _absence(self.postgres)
    remark, rows = "", []
    if not reason:
        try:
            rows = self.postgres.rows("logged_plans", **span, most_bytes=MOST_BYTES)
        except PermissionDenied as error:
            status, reason = "not_measured", str(error)
        except FwdbError as error:
            status, reason = "not_measured", f"the server's log could not be read: {error}"
    if rows and (size := rows[0]["log_bytes"]) > MOST_BYTES:
        remark = (
            f"of {size / 1e6:,.0f} MB of logs only the newest {MOST_BYTES / 1e6:,.0f} MB were "
            "read: older plans are missing"
        )
    wanted = None if query_id is None else str(query_id).removeprefix("'")
    found = [one for row in rows if (one := entry(row)) and wanted in (None, one["query_id"])]
    found.sort(key=lambda one: one["duration_ms"], reverse=True)
    if not found and not reason:
        status = "no_data"
        reason = "; ".join(filter(None, ("the server logged no plan in this window", remark)))
    told = {"status": status, "reason": reason, "remark": remark, "window": span}
    return frame(COLUMNS, found[:top], **told)


def _absence(store: PostgresStore) -> tuple[Status, str]:
    """Why there are no logged plans to be had; ``ok`` and no reason when there may be."""
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
    return "ok", ""


def entry(row: Mapping[str, Any]) -> dict[str, Any] | None:
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
