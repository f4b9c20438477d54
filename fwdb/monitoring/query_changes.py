"""Which statements got slower from one window to another, how sure that is, and why.

The rule and its figures are those of a simulation: log-normal times with a coefficient of
variation of about 1, one in a hundred 20 times as long, a drift of 10 %. With 30, 100 and 1,000
calls in each window the lower bound of the ratio passes 1.25 by chance in under 3 % of the cases,
and finds a doubling in about 4, 6 and 9 of 10; `tests/monitoring/test_query_changes.py` repeats it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from fwdb.arguments import Count
from fwdb.monitoring.context import Context, frame
from fwdb.monitoring.history import window
from fwdb.monitoring.slow_queries import attrs, past, require_one, times_as_long, window_before
from fwdb.timespan import Time

Kind = Literal["slower", "new", "vanished", "faster", "unjudged", "similar"]

KINDS: tuple[Kind, ...] = ("slower", "new", "vanished", "faster", "unjudged", "similar")

COLUMNS = {
    "database": "string",
    "query_id": "string",
    "statement": "string",
    "change": "string",
    "calls_before": "Int64",
    "calls": "Int64",
    "mean_before_ms": "float64",
    "mean_ms": "float64",
    "ratio": "float64",
    "ratio_low": "float64",
    "ratio_high": "float64",
    "extra_ms": "float64",
    "total_before_ms": "float64",
    "total_ms": "float64",
    "remark": "string",
}

LEAST_CALLS = 30  # in both windows; with fewer, the bounds of a mean say nothing
LEAST_RATIO = 1.25
LEAST_SHARE = 0.01  # of the time in all statements; what costs less is not worth a search
LEAST_SHAPES = 4  # of which more than half slow alike: fewer may be so by chance
CAUSE_RATIO = 1.5  # from which a change beside the time is named as its cause
CAUSE_HITS = 0.05  # by which the share of blocks found in memory must fall
_Z = 1.96  # two-sided 95 % of the normal distribution

# What may have grown with the time, and how that is said; the likeliest cause first.
_CAUSES = (
    ("rows_per_call", "rows per call {} (data)"),
    ("blocks_per_call", "blocks per call {} ({})"),
    (
        "docs_examined_per_call",
        "documents examined per call {} (plan or data, maybe a lost index)",
    ),
    ("temp_kb_per_call", "temporary files {} kB per call (spill: work_mem is too small)"),
    ("hit_ratio", "blocks found in memory {:.0f} → {:.0f} % (cache)"),
    ("read_ms_per_block", "time per block read {} ms (disk)"),
)

Row = Mapping[str, Any]  # of `statements.derived`


def query_changes(
    self: Context,
    since: Time = "24h",
    until: Time | None = None,
    *,
    compare_since: Time | None = None,
    compare_until: Time | None = None,
    top: Count = 20,
) -> pd.DataFrame:
    """What changed in the statements of both stores from another window to this one.

    The other window begins at `compare_since`, else as much earlier as this one is long, and
    is as long unless `compare_until` ends it. One row per statement, at most `top` of each
    `change`, which is one of

    - ``slower``: the lower 95 % bound of the ratio of the means exceeds 1.25, with 30 calls
      in both windows, and it cost 1 % of the window's time or more; `remark` names what
      changed with it,
    - ``new`` and ``vanished``: it ran in one of the windows only,
    - ``faster``: the opposite of slower,
    - ``unjudged``: too few calls, ``similar``: none of these.

    `extra_ms` is the change of the mean × the calls of this window. ``attrs`` are those of
    `slow_queries`, those of the other window as `before`, and `whole_server`: per store the
    factor by which it as a whole got slower, when more than half of the statements did alike;
    then only what slowed by more is ``slower``. Raises like `slow_queries`.
    """
    start, end = window(since, until)
    earlier = past(self, *window_before(start, end, compare_since, compare_until))
    later = past(self, start, end)
    require_one(later)
    require_one(earlier)
    found: list[Change] = []
    whole: dict[str, float] = {}
    missing: dict[str, str] = {}
    for old, new in zip(earlier, later, strict=True):
        if old.window is None or new.window is None:
            missing[new.database] = (
                new.reason if new.window is None else f"the window before: {old.reason}"
            )
            continue
        lengths = times_as_long(old, new)
        mine, factor = changes(
            old.statements, new.statements, total_ms=new.total_ms, lengths=lengths
        )
        if factor is not None:
            whole[new.database] = factor
        for kind in KINDS:
            found += [change for change in mine if change.kind == kind][:top]
    found.sort(key=lambda change: KINDS.index(change.kind))
    told = attrs(later, {"since": start, "until": end}) | {
        "status": "ok" if len(missing) < len(later) else "no_data",
        "reason": "" if len(missing) < len(later) else "; ".join(missing.values()),
        "missing": missing,
        "whole_server": whole,
        "before": attrs(earlier, {}),
    }
    return frame(COLUMNS, (change.row for change in found), **told)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Mean time now ÷ mean time before, with its 95 % bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Change:
    """One statement in both windows, or in one of them only.

    `extra_ms` is what the change of the mean cost over the calls of the window.
    """

    kind: Kind
    before: Row | None
    now: Row | None
    ratio: Ratio | None = None
    extra_ms: float | None = None
    remark: str = ""

    @property
    def statement(self) -> Row:
        """The statement as the later of the two windows has it."""
        found = self.now or self.before
        assert found is not None
        return found

    @property
    def row(self) -> dict[str, Any]:
        """A row of the frame."""
        names = {
            "calls": "calls_before",
            "mean_ms": "mean_before_ms",
            "total_ms": "total_before_ms",
        }
        row = {name: self.statement[name] for name in ("database", "query_id", "statement")}
        row |= {"change": self.kind, "extra_ms": self.extra_ms, "remark": self.remark}
        row |= {name: self.now[name] for name in names if self.now}
        row |= {name: self.before[old] for old, name in names.items() if self.before}
        if self.ratio:
            row |= {"ratio": self.ratio.value}
            row |= {"ratio_low": self.ratio.low, "ratio_high": self.ratio.high}
        return row


def mean_ratio(before: Row, now: Row) -> Ratio | None:
    """The ratio of the means, its bounds by the delta method on the logarithm.

    log(m₂/m₁) ± 1.96 · sqrt(s₁²/(n₁·m₁²) + s₂²/(n₂·m₂²)). None when a mean is 0 or there is
    one call only.
    """
    spread = 0.0
    for one in (before, now):
        calls, mean = one["calls"], one["mean_ms"]
        if calls < 2 or one["total_ms"] <= 0:
            return None
        sample = one["stddev_ms"] ** 2 * calls / (calls - 1)
        spread += sample / (calls * mean**2)
    value, width = math.log(now["mean_ms"] / before["mean_ms"]), _Z * math.sqrt(spread)
    # A clock that always shows the same time gives no width and is not for that certain.
    return Ratio(math.exp(value), math.exp(value - width), math.exp(value + width))


def changes(
    before: Iterable[Row], now: Iterable[Row], *, total_ms: float, lengths: float
) -> tuple[list[Change], float | None]:
    """All changes of one store, the most expensive of each kind first, and the server's own.

    `total_ms` is the time in all statements of the later window, `lengths` how many times as
    long that is as the earlier one. The second value is the factor by which the whole server
    got slower, or None: when more than half of the shapes slow by the same factor it is the
    server that did, and only what slowed by more than that is a regression of its own.
    """
    earlier = {row["query_id"]: row for row in before}
    later = {row["query_id"]: row for row in now}
    both = later.keys() & earlier.keys()
    ratios = {
        id: ratio
        for id in both
        if min(earlier[id]["calls"], later[id]["calls"]) >= LEAST_CALLS
        and (ratio := mean_ratio(earlier[id], later[id]))
    }
    whole = whole_server(ratios.values())
    found = [
        _judged(earlier[id], later[id], ratios.get(id), whole, total_ms, lengths) for id in both
    ]
    found += [Change("new", None, later[id]) for id in later.keys() - both]
    found += [Change("vanished", earlier[id], None) for id in earlier.keys() - both]
    return sorted(found, key=_order), whole


def _order(change: Change) -> tuple[int, float, str]:
    one = change.statement
    cost = one["total_ms"] if change.extra_ms is None else abs(change.extra_ms)
    return KINDS.index(change.kind), -cost, one["query_id"]


def whole_server(ratios: Iterable[Ratio]) -> float | None:
    """The common factor, when more than half of the shapes got slower by about the same one."""
    known = list(ratios)
    if len(known) < LEAST_SHAPES:
        return None
    factor = statistics.median(ratio.value for ratio in known)
    alike = sum(
        ratio.low > 1 and ratio.low <= factor * LEAST_RATIO and ratio.high >= factor / LEAST_RATIO
        for ratio in known
    )
    return factor if factor > LEAST_RATIO and alike > len(known) / 2 else None


def _judged(
    before: Row,
    now: Row,
    ratio: Ratio | None,
    whole: float | None,
    total_ms: float,
    lengths: float,
) -> Change:
    extra = (now["mean_ms"] - before["mean_ms"]) * now["calls"]
    if ratio is None:
        few = f"too few calls to judge (n={min(before['calls'], now['calls'])})"
        return Change("unjudged", before, now, mean_ratio(before, now), extra, few)
    remark = "; ".join(causes(before, now, lengths))
    if ratio.low / (whole or 1.0) > LEAST_RATIO and extra >= LEAST_SHARE * total_ms:
        return Change("slower", before, now, ratio, extra, remark)
    if ratio.high < 1 / LEAST_RATIO and -extra >= LEAST_SHARE * total_ms:
        return Change("faster", before, now, ratio, extra, remark)
    if whole and ratio.low > 1:
        remark = f"like the whole server, which is {whole:.1f} times as slow"
    elif ratio.low > LEAST_RATIO:
        remark = f"slower, and costs under {LEAST_SHARE:.0%} of the time"
    return Change("similar", before, now, ratio, extra, remark)


def causes(before: Row, now: Row, lengths: float) -> list[str]:
    """What else changed with the time of a statement, the likeliest cause first."""
    found = []
    more_rows = _grew(before.get("rows_per_call"), now.get("rows_per_call"))
    for name, sentence in _CAUSES:
        old, new = before.get(name), now.get(name)
        if name == "hit_ratio":
            if old is not None and new is not None and old - new >= CAUSE_HITS:
                found.append(sentence.format(100 * old, 100 * new))
        elif _grew(old, new):
            why = "data" if more_rows else "plan or data, maybe a lost index"
            found.append(sentence.format(f"{_plain(old)} → {_plain(new)}", why))
    if _grew(before["calls"] * lengths, now["calls"]):
        times = now["calls"] / (before["calls"] * lengths)
        found.append(f"{times:.1f} times as many calls (application)")
    return found


def _grew(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return False
    # From 0, any whole unit is a change; less may be a single row in a thousand calls.
    return now >= CAUSE_RATIO * before if before else now >= 1


def _plain(value: Any) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
