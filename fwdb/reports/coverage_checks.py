"""Whether the trail captures everything, as checks of the reports `health` and `audit_trail`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pandas as pd

from fwdb.audit.coverage import Standing, as_frame
from fwdb.audit.coverage_findings import Finding
from fwdb.charts.canvas import plural
from fwdb.reports.asking import Asking, utc_frame
from fwdb.reports.parameters import Window
from fwdb.reports.results import Status

NAMED = 2  # in a sentence; `fwdb audit coverage` has all
COLUMNS = ["status", "database", "kind", "object", "sentence", "remedy"]
NOTHING = utc_frame(dict.fromkeys(COLUMNS, "str"))

_OFF = {
    "postgres": ("Changes in PostgreSQL", "Run `fwdb migrate`."),
    "mongodb": ("Changes of designs", "Run `fwdb audit follow`, and keep it running."),
}


def coverage(
    asking: Asking, subject: str, *, off: Status, window: Window | None = None
) -> tuple[Finding, ...]:
    """One check a store, and one of the gaps in `window`; everything that was found.

    `off` is the status of a capture that was never switched on.
    """
    audit = asking.db.audit
    found: list[Finding] = []
    for database, question in (
        ("postgres", audit.standing),
        ("mongodb", partial(_mongodb, asking, subject)),
    ):
        standing = asking.ask(subject, "postgres", question, None)
        if standing is None:
            continue
        found += standing.findings
        _check(asking, subject, database, standing, off)
        if window is not None and standing.gaps is not None:
            _gaps(asking, standing, window)
    return tuple(found)


def table(found: Iterable[Finding]) -> pd.DataFrame:
    """What is not covered, and what is left out on purpose, gravest first."""
    frame = as_frame(found)
    return frame.loc[frame["status"] != "covered", COLUMNS].reset_index(drop=True)


def _mongodb(asking: Asking, subject: str) -> Standing:
    """How far it is followed, and, where this report asks MongoDB too, whether that can be done."""
    standing = asking.db.audit.following_standing()
    if "mongodb" not in asking.up:
        return standing
    images = asking.ask(subject, "mongodb", asking.db.audit.images, None)
    return standing if images is None else standing.with_also(images)


def _check(asking: Asking, subject: str, database: str, standing: Standing, off: Status) -> None:
    what, remedy = _OFF[database]
    if not standing.is_on:
        said = f"{what} leave a trace only where a program records them itself."
        asking.add(subject, database, off, said, action=remedy)
        return
    bad = [f for f in standing.findings if f.status in ("uncovered", "behind")]
    covered = sum(f.status == "covered" for f in standing.findings)
    text = " ".join(f.sentence for f in bad[:NAMED])
    if (more := len(bad) - NAMED) > 0:
        text += f" And {more} more, see `fwdb audit coverage`."
    asking.add(
        subject,
        database,
        "warning" if bad else "ok",
        text or f"{what} are captured, {plural(covered, 'thing')} looked at.",
        value=len(bad),
        unit="count",
        threshold=1,
        action=bad[0].remedy if bad else "",
    )


def _gaps(asking: Asking, standing: Standing, window: Window) -> None:
    inside = [
        (since, until)
        for since, until in standing.gaps or ()
        if until >= window.since and (since is None or since < window.until)
    ]
    times = ", ".join(f"{until:%Y-%m-%d %H:%M}" for _, until in inside[:NAMED])
    asking.add(
        "gaps",
        "mongodb",
        "warning" if inside else "ok",
        f"There are {plural(len(inside), 'time')} of which not each change of designs was seen, up "
        f"to {times} UTC."
        if inside
        else "There is no time of which changes of designs were missed.",
        value=len(inside),
        unit="count",
        threshold=1,
        action="Nothing brings them back; table `not_covered` has the reasons." if inside else "",
    )
