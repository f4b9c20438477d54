"""The checks of the report `audit_trail`: how much, what stands out, who deletes, is it intact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fwdb import charts
from fwdb.charts import share
from fwdb.reports.asking import Asking, utc_frame
from fwdb.reports.parameters import Window
from fwdb.reports.results import Kpi, Status
from fwdb.reports.words import figure

# An actor behind most of many deletes is worth a question, even when the pace is usual.
DELETES_BY_ONE, DELETES_LEAST = 50.0, 20
# Of a burst, the share that one user did; and the events a burst has at least (audit_bursts.sql).
BY_ONE, BURST_LEAST = 0.5, 10
# Of what is unusual, what looks like a forged name or a loss; the rest is for the table.
GRAVE = ("unknown_actor", "other_login", "mass_delete")
NOTHING_UNUSUAL = utc_frame(dict.fromkeys(("kind", "user_id", "sentence"), "str"))


def events(asking: Asking, kpis: list[Kpi], totals: pd.DataFrame) -> None:
    events, nobody = int(totals["events"].sum()), int(totals["without_actor"].sum())
    if not events:
        kpis.append(Kpi("events", "Events", 0, "", "no_data", "postgres", "none in the window"))
        asking.add(
            "events",
            "postgres",
            "no_data",
            "Nothing was recorded in this window.",
            value=0,
            unit="count",
            action="Take a longer window, or look whether the application records at all.",
        )
        return
    asking.add(
        "events",
        "postgres",
        "ok",
        f"{figure(events)} events were recorded.",
        value=events,
        unit="count",
    )
    kpis.append(Kpi("events", "Events", events, "", "ok", "postgres", "recorded in the window"))
    for action, count in zip(totals["action"].astype(str), totals["events"], strict=True):
        note = f"{share(100 * int(count) / events)} of all"
        kpis.append(Kpi(action.lower(), action, int(count), "", "ok", "postgres", note))
    note = (
        f"{share(100 * nobody / events)} of all; work of the system, or a caller that did not say"
    )
    kpis.append(Kpi("without_actor", "Without an actor", nobody, "", "ok", "postgres", note))


def striking(bursts: pd.DataFrame) -> pd.DataFrame:
    """The bursts worth a question: deletes first, those by one user before others, by size.

    Every burst of deletes is; of the others those that one user made at least half of: many
    users at once are a busy hour, one user is a script, a mistake or a theft.
    """
    deletes = bursts["action"].astype(str) == "DELETE"
    by_one = (bursts["top_user_events"] >= BY_ONE * bursts["events"]) & bursts[
        "top_user_id"
    ].notna()
    return (
        bursts.assign(deletes=deletes, by_one=by_one.astype(bool))[(deletes | by_one).astype(bool)]
        .sort_values(
            ["deletes", "by_one", "events", "bucket_at"], ascending=[False, False, False, True]
        )
        .drop(columns="deletes")
    )


def named(bursts: pd.DataFrame) -> charts.Burst | None:
    """The burst to name in the chart."""
    found = striking(bursts)
    if found.empty:
        return None
    first = found.iloc[0]
    return charts.Burst(
        pd.Timestamp(first["bucket_at"]),
        str(first["entity_type"]),
        str(first["action"]),
        int(first["events"]),
    )


def hours(asking: Asking, kpis: list[Kpi], bursts: pd.DataFrame) -> None:
    """One check for each action of which there is a striking burst; one for all without any."""
    if any(c.id == "audit_trail.bursts" for c in asking.checks):
        return
    found = striking(bursts)
    count = len(found)
    note = "far more events of a kind than are usual at that hour"
    if len(bursts) > count:
        note += f"; {figure(len(bursts) - count)} busy hours of many users not counted"
    state: Status = "ok" if not count else "warning"
    kpis.append(Kpi("bursts", "Hours that stand out", count, "", state, "postgres", note))
    if not count:
        asking.add(
            "bursts", "postgres", "ok", "No hour stands out.", value=0, unit="count", threshold=1
        )
    for action, rows in found.groupby(found["action"].astype(str), sort=True):
        first = rows.iloc[0]
        events, kind = int(first["events"]), str(first["entity_type"])
        what = f"{figure(events)} {kind} {str(action).lower()}s"
        user = first["top_user_id"]
        who = f", {figure(int(first['top_user_events']))} of them by user {str(user)[:8]}…"
        more = len(rows) - 1
        asking.add(
            f"burst_of_{str(action).lower()}s",
            "postgres",
            "critical" if action == "DELETE" and first["by_one"] else "warning",
            f"{what} in the hour from {first['bucket_at']:%Y-%m-%d %H:%M} UTC"
            + (who if first["by_one"] else "")
            + f" (usual: {figure(float(first['usual']))})"
            + (
                f", and {figure(more)} more hour{'s' if more > 1 else ''} like it." if more else "."
            ),
            value=events,
            unit="count",
            threshold=BURST_LEAST,
            action="Ask the user named in table `bursts` whether this was meant"
            + ("; deleted rows can be restored." if action == "DELETE" else "."),
        )


def deletes(asking: Asking, totals: pd.DataFrame, actors: pd.DataFrame) -> None:
    """Whether one user is behind most of the deletes."""
    total = int(totals.loc[totals["action"].astype(str) == "DELETE", "events"].sum())
    known = actors.dropna(subset=["user_id"])
    if total < DELETES_LEAST or known.empty:
        return
    most = known.sort_values(["deletes", "user_id"], ascending=[False, True]).iloc[0]
    percent = 100 * int(most["deletes"]) / total
    over = percent >= DELETES_BY_ONE
    asking.add(
        "deletes_by_one",
        "postgres",
        "warning" if over else "ok",
        f"User {str(most['user_id'])[:8]}… did {share(percent)} of {figure(total)} deletes."
        if over
        else f"No single user did more than {share(percent)} of {figure(total)} deletes.",
        value=percent,
        unit="percent",
        threshold=DELETES_BY_ONE,
        action="Ask the first user of table `actors`, by deletes, whether that is expected."
        if over
        else "",
    )


def unusual(asking: Asking, window: Window, chosen: Mapping[str, Any]) -> pd.DataFrame:
    """What stands out, gravest first, and a check of what somebody must be asked about.

    Of the filters only rows that fit them are kept; one about no single entity fits no entity.
    """
    found = asking.ask(
        "unusual",
        "postgres",
        lambda: asking.db.audit.anomalies(since=window.since, until=window.until),
        NOTHING_UNUSUAL,
    )
    for column, value in chosen.items():
        found = found[found[column] == value]
    grave = found["kind"].isin(GRAVE)
    found = pd.concat([found[grave], found[~grave]]).reset_index(drop=True)
    count, rest = int(grave.sum()), int((~grave).sum())
    if any(c.id == "audit_trail.unusual" for c in asking.checks):
        return found
    more = f" And {figure(count - 1)} more like it." if count > 1 else ""
    first = found["sentence"].iloc[0] if count else ""
    asking.add(
        "unusual",
        "postgres",
        "warning" if count else "ok",
        f"{first[:1].upper()}{first[1:]}{more}"
        if count
        else "Nobody wrote in another's name, without an account or by mass deletion; "
        f"{figure(rest)} things are unusual otherwise.",
        value=count,
        unit="count",
        threshold=1,
        action="Ask who is named in table `unusual` whether this was meant." if count else "",
    )
    return found


def archived(asking: Asking, window: Window) -> None:
    """That a part of the window is in archives, which this report does not read."""
    since: Any = asking.ask("archived", "postgres", asking.db.audit.complete_since, None)
    if since is not None and window.since < since:
        asking.add(
            "archived",
            "postgres",
            "not_available",
            f"Rows of before {since:%Y-%m-%d} are in archived months, and not in this report.",
            action="Ask `db.audit.with_archives()` for these, or `fwdb audit trail --archives`.",
        )


@dataclass(frozen=True)
class Integrity:
    """What the seals say: `facts` for the table, `head` of the newest, None without one."""

    facts: pd.DataFrame
    head: str | None = None


def integrity(asking: Asking, kpis: list[Kpi], window: Window) -> Integrity:
    """Whether the rows are as they were sealed; what there is not to know is said as that.

    Rows are read from the month on in which the window begins: what a report costs does not grow
    with the trail.
    """
    found: Any = asking.ask(
        "integrity", "postgres", lambda: asking.db.audit.verify(since=window.since), None
    )
    if found is None:
        return Integrity(facts([]))
    if not found.seals:
        _not_sealed(asking)
        return Integrity(facts([]))
    signed = f"signed with key {found.key_id}" if found.key_id else "not signed"
    read = found.sealed_rows - found.unread_rows
    asking.add(
        "integrity",
        "postgres",
        "ok" if found.intact else "critical",
        f"All {figure(read)} sealed rows of {found.since:%Y-%m} and later are as they were "
        f"sealed, {signed}."
        if found.intact and read
        else found.summary,
        value=len(found.findings),
        unit="count",
        threshold=1,
        action=""
        if found.intact
        else "Keep the database as it is, and run `fwdb audit verify` with a seal file that was "
        "kept elsewhere.",
    )
    state: Status = "ok" if found.intact else "critical"
    note = f"{signed}; {figure(found.unsealed_rows)} are too new to be sealed"
    if found.unread_rows:
        note += f"; {figure(found.unread_rows)} are of months before, and were not read"
    kpis.append(Kpi("sealed", "Sealed rows", found.sealed_rows, "", state, "postgres", note))
    rows = [
        ("sealed rows", figure(found.sealed_rows)),
        (f"as sealed, of {found.since:%Y-%m} and later", figure(found.checked_rows)),
        ("of these, from archives", figure(found.archived_rows)),
        ("of months before, not read", figure(found.unread_rows)),
        ("erased since, and recorded", figure(found.erased_rows)),
        ("too new to be sealed", figure(found.unsealed_rows)),
        ("sealed (UTC)", figure(found.sealed_at)),
        ("signature", signed),
        ("head", found.head),
        *(("not proven", text) for text in found.not_proven),
        *((f.kind, f.sentence) for f in found.findings),
    ]
    return Integrity(facts(rows), found.head)


def _not_sealed(asking: Asking) -> None:
    asking.add(
        "integrity",
        "postgres",
        "not_measured",
        "Nothing is sealed, so that nothing would show whether rows were changed or removed.",
        action="Run `fwdb audit seal`, and have it run daily.",
    )


def facts(rows: list[tuple[str, str]]) -> pd.DataFrame:
    """A table of facts with their values."""
    return pd.DataFrame(rows, columns=["fact", "value"], dtype="str")
