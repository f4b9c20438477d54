"""What the report `slow_queries` says of the two servers: their caches and their replicas."""

from __future__ import annotations

import math
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from fwdb.charts import share
from fwdb.charts.canvas import DATABASES
from fwdb.reports.asking import Asking, judged, kpi, sentence
from fwdb.reports.query_checks import named
from fwdb.reports.results import Kpi, Status
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.monitoring import Measure

MEMORY = {"postgres": " (shared_buffers)", "mongodb": " (storage.wiredTiger.engineConfig)"}


def _measured(asking: Asking, subject: str, measure: Measure) -> None:
    """A measure that has no value, as a check with its reason."""
    text = sentence(measure.reason or "it could not be measured")
    asking.add(
        subject,
        measure.database,
        measure.status,
        text,
        unit=measure.unit,
    )


def cache(
    asking: Asking,
    kpis: list[Kpi],
    statements: pd.DataFrame,
    since: datetime,
    until: datetime | None,
) -> None:
    """Pages found in memory, and the statement of `statements` that read most of the others."""
    db = asking.db
    limits = db.settings.thresholds
    for database, name in DATABASES.items():
        measure = asking.ask(
            "cache",
            database,
            partial(db.monitor.cache_hit_ratio, database, since, until),
            None,
        )
        if measure is None:
            continue
        kpis.append(kpi(f"{database}_cache", f"Cache hit ratio, {name}", measure))
        if measure.status != "ok" or measure.value is None:
            _measured(asking, "cache", measure)
            continue
        good, alert = limits.cache_good_ratio, limits.cache_alert_ratio
        low = measure.value
        status: Status = "critical" if low < alert else "warning" if low < good else "ok"
        asking.add(
            "cache",
            database,
            status,
            # Cut, not rounded: 99.96 % is not all of them.
            f"{math.floor(1000 * low) / 10:g} % of the pages {name} wanted were in its cache"
            f"{'' if status == 'ok' else _reader(statements, database)}.",
            value=low,
            unit="ratio",
            threshold=alert if status == "critical" else good,
            action=""
            if status == "ok"
            else "Look whether an index spares what statements read (table `load` with "
            f"`-p order=io`) before giving {name} memory{MEMORY[database]}.",
        )


def lag(asking: Asking, kpis: list[Kpi]) -> None:
    """How far the slowest replica of each store is behind, now."""
    db = asking.db
    limits = db.settings.thresholds
    for database, name in DATABASES.items():
        measure = asking.ask(
            "replication",
            database,
            partial(db.monitor.replication_lag, database),
            None,
        )
        if measure is None:
            continue
        kpis.append(kpi(f"{database}_lag", f"Replication lag, {name}", measure))
        if measure.status != "ok" or measure.value is None:
            _measured(asking, "replication", measure)
            continue
        state = judged(measure.value, limits.lag_target_seconds, limits.lag_alert_seconds)
        asking.add(
            "replication",
            database,
            state,
            f"The slowest replica of {name} is {figure(measure.value, 'seconds')} behind.",
            value=measure.value,
            unit="seconds",
            threshold=limits.lag_alert_seconds
            if state == "critical"
            else limits.lag_target_seconds,
            action=""
            if state == "ok"
            else "Look at the replica's disk and network, and at long queries.",
        )


def _reader(statements: pd.DataFrame, database: str) -> str:
    """The statement that read most from outside of the cache; empty where no counter tells."""
    mine = statements[statements["database"].astype(str) == database]
    if "read_blocks" not in mine or not (total := int(mine["read_blocks"].fillna(0).sum())):
        return ""
    worst = mine.sort_values(["read_blocks", "query_id"], na_position="first").iloc[-1]
    part = share(100 * int(worst["read_blocks"]) / total)
    return f"; {named(str(worst['statement']))} read {part} of the others"
