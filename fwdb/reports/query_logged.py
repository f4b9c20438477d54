"""What the report `slow_queries` shows of plans that PostgreSQL logged as statements ran."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from fwdb.charts import shorten
from fwdb.reports.asking import Asking, sentence, utc_frame
from fwdb.reports.query_checks import PLANS, indented
from fwdb.reports.results import Table

if TYPE_CHECKING:
    from fwdb.database import Database

NOTHING = utc_frame({"logged_at": "datetime64[us, UTC]"})


def table(asking: Asking, db: Database, since: datetime, until: datetime | None) -> Table:
    """One row per line of the plans of the longest runs in the window, longest first."""
    question = partial(db.monitor.logged_plans, since, until, top=PLANS)
    found = asking.ask("logged_plans", "postgres", question, NOTHING)
    rows = [
        (run.query_id, run.logged_at, run.duration_ms, shorten(str(run.statement)), line)
        for run in found.itertuples()
        for line in indented(str(run.plan))
    ]
    names = ["query_id", "logged_at", "duration_ms", "statement", "plan"]
    frame = pd.DataFrame(rows, columns=names).astype(
        {
            **dict.fromkeys(("query_id", "statement", "plan"), "str"),
            "logged_at": "datetime64[us, UTC]",
            "duration_ms": "float64",
        }
    )
    told = str(found.attrs.get("reason") or found.attrs.get("remark") or "")
    about = "The plans that auto_explain logged for the longest runs, with the time each run took."
    return Table(
        "logged_plans",
        "Plans of the longest runs",
        frame,
        f"{about} {sentence(told)}" if told else about,
        ("query_id", "logged_at", "duration_ms", "plan"),
    )
