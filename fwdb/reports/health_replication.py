"""The checks of the report `health` on replicas, and on the log that is kept for them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fwdb.charts.canvas import plural
from fwdb.monitoring import replicas
from fwdb.reports.asking import Asking, judged, sentence
from fwdb.reports.results import Status
from fwdb.reports.words import figure


def replication(asking: Asking, found: pd.DataFrame) -> None:
    """Each replica by its three numbers, and those that are not there."""
    limits = asking.db.settings.thresholds
    lost: dict[str, str] = found.attrs.get("lost") or {}
    missing: dict[str, str] = found.attrs.get("missing") or {}
    for database in asking.up:
        mine = found[found["database"] == database]
        there, away = (
            mine[mine["status"] != "not_available"],
            mine[mine["status"] == "not_available"],
        )
        # Of PostgreSQL `lost` counts; a slot for logical readers is no replica.
        told = away if database == "mongodb" else away[away["is_self"].astype(bool)]
        if text := lost.get(database) or _reasons(told):
            asking.add(
                "replicas",
                database,
                "critical",
                sentence(text),
                value=len(there),
                unit="count",
                threshold=limits.expected_replicas if database == "postgres" else None,
                action=_bring_back(away),
            )
        elif database in missing and not any(
            c.id == "health.replicas" and c.database == database for c in asking.checks
        ):
            none: Status = (
                "not_applicable" if missing[database] in replicas.NONE else "not_available"
            )
            asking.add("replicas", database, none, sentence(missing[database]))
        elif len(there):
            asking.add(
                "replicas",
                database,
                "ok",
                f"{plural(len(there), 'replica')} {'is' if len(there) == 1 else 'are'} connected.",
                value=len(there),
                unit="count",
                threshold=limits.expected_replicas if database == "postgres" else None,
            )
        for _, row in there.iterrows():
            _replica(asking, row, limits)


def _reasons(away: pd.DataFrame) -> str:
    return "; ".join(
        str(row["reason"]) if row["is_self"] else f"{row['replica']}: {row['reason']}"
        for _, row in away.iterrows()
    )


def _bring_back(away: pd.DataFrame) -> str:
    slots = away["slot"].dropna().astype(str).tolist()
    if not slots:
        return "Start the replica again, and look at its log."
    return (
        "Start the replica again, or drop its slot for good: "
        f"`SELECT pg_drop_replication_slot('{slots[0]}')`."
    )


def _replica(asking: Asking, row: pd.Series[Any], limits: Any) -> None:
    name = "This server" if bool(row["is_self"]) else f"Replica {row['replica']}"
    if row["status"] != "ok":
        asking.add("replication", row["database"], row["status"], sentence(str(row["reason"])))
        return
    behind, silent, lag = (
        None if pd.isna(row[n]) else float(row[n])
        for n in ("behind_bytes", "reply_age_seconds", "replay_lag_seconds")
    )
    # The last measured lag says nothing once all is replayed.
    lag = 0.0 if lag is None or behind == 0 else lag
    states = [judged(lag, limits.lag_target_seconds, limits.lag_alert_seconds)]
    if behind is not None:
        states.append(judged(behind, limits.lag_warning_bytes, limits.lag_critical_bytes))
    if silent is not None:
        states.append(judged(silent, limits.reply_warning_seconds, limits.reply_critical_seconds))
    status: Status = max(states, key=("ok", "warning", "critical").index)
    parts = [] if behind is None else [f"{figure(behind, 'bytes')} behind"]
    parts += [f"{figure(lag, 'seconds')} late"]
    parts += [] if silent is None else [f"last heard {figure(silent, 'seconds')} ago"]
    asking.add(
        "replication",
        str(row["database"]),
        status,
        sentence(f"{name} is {', '.join(parts)}"),
        value=lag,
        unit="seconds",
        threshold=limits.lag_alert_seconds if status == "critical" else limits.lag_target_seconds,
        action=""
        if status == "ok"
        else "On the replica look whether replay is paused (`SELECT pg_is_wal_replay_paused()`, "
        "`SELECT pg_wal_replay_resume()`), then at its disk, its network and its long queries.",
    )


def slots(asking: Asking, found: pd.DataFrame) -> None:
    """Log that slots keep, which a full disk is made of."""
    limits = asking.db.settings.thresholds
    kept = found[found["retained_bytes"].notna()]
    if kept.empty:
        asking.add("slots", "postgres", "not_applicable", "There is no replication slot.")
        return
    worst = kept.sort_values("retained_bytes").iloc[-1]
    size, used = int(worst["retained_bytes"]), pd.notna(worst["replica"])
    status = judged(size, limits.lag_critical_bytes, 16 * limits.lag_critical_bytes)
    asking.add(
        "slots",
        "postgres",
        status,
        f"Slot {worst['slot']}, which {'a' if used else 'no'} replica uses, keeps "
        f"{figure(size, 'bytes')} of log.",
        value=size,
        unit="bytes",
        threshold=limits.lag_critical_bytes,
        action=""
        if status == "ok"
        else f"Bring its reader back, or `SELECT pg_drop_replication_slot('{worst['slot']}')`; "
        "max_slot_wal_keep_size bounds it.",
    )
