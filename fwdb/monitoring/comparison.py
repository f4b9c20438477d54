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
from typing import Literal

from fwdb.monitoring.windows import Half, Statement

Kind = Literal["slower", "new", "vanished", "faster", "unjudged", "similar"]

KINDS: tuple[Kind, ...] = ("slower", "new", "vanished", "faster", "unjudged", "similar")

LEAST_CALLS = 30  # in both windows; with fewer, the bounds of a mean say nothing
LEAST_RATIO = 1.25
LEAST_SHARE = 0.01  # of the time in all statements; what costs less is not worth a search
LEAST_SHAPES = 4  # of which more than half slow alike: fewer may be so by chance
CAUSE_RATIO = 1.5  # from which a change beside the time is named as its cause
CAUSE_HITS = 0.05  # by which the share of blocks found in memory must fall
_Z = 1.96  # two-sided 95 % of the normal distribution


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
    before: Statement | None
    now: Statement | None
    ratio: Ratio | None = None
    extra_ms: float | None = None
    remark: str = ""

    @property
    def statement(self) -> Statement:
        """The statement as the later of the two windows has it."""
        found = self.now or self.before
        assert found is not None
        return found


def mean_ratio(before: Statement, now: Statement) -> Ratio | None:
    """The ratio of the means, its bounds by the delta method on the logarithm.

    log(m₂/m₁) ± 1.96 · sqrt(s₁²/(n₁·m₁²) + s₂²/(n₂·m₂²)). None when a mean is 0 or there is
    one call only.
    """
    spread = 0.0
    for one in (before, now):
        if one.calls < 2 or one.total_ms <= 0:
            return None
        sample = one.stddev_ms**2 * one.calls / (one.calls - 1)
        spread += sample / (one.calls * one.mean_ms**2)
    value, width = math.log(now.mean_ms / before.mean_ms), _Z * math.sqrt(spread)
    # A clock that always shows the same time gives no width and is not for that certain.
    return Ratio(math.exp(value), math.exp(value - width), math.exp(value + width))


def changes(
    before: Iterable[Statement], now: Iterable[Statement], *, total_ms: float, lengths: float
) -> tuple[list[Change], float | None]:
    """All changes of one store, the most expensive of each kind first, and the server's own.

    `total_ms` is the time in all statements of the later window, `lengths` how many times as
    long that is as the earlier one. The second value is the factor by which the whole server
    got slower, or None: when more than half of the shapes slow by the same factor it is the
    server that did, and only what slowed by more than that is a regression of its own.
    """
    earlier = {statement.query_id: statement for statement in before}
    later = {statement.query_id: statement for statement in now}
    pairs = [(earlier[id], later[id]) for id in later.keys() & earlier.keys()]
    ratios = {
        after.query_id: ratio
        for first, after in pairs
        if min(first.calls, after.calls) >= LEAST_CALLS and (ratio := mean_ratio(first, after))
    }
    whole = whole_server(ratios.values())
    found = [
        _judged(first, after, ratios.get(after.query_id), whole, total_ms, lengths)
        for first, after in pairs
    ]
    found += [Change("new", None, later[id]) for id in later.keys() - earlier.keys()]
    found += [Change("vanished", earlier[id], None) for id in earlier.keys() - later.keys()]
    return sorted(found, key=_order), whole


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
    before: Statement,
    now: Statement,
    ratio: Ratio | None,
    whole: float | None,
    total_ms: float,
    lengths: float,
) -> Change:
    extra = (now.mean_ms - before.mean_ms) * now.calls
    if ratio is None:
        few = f"too few calls to judge (n={min(before.calls, now.calls)})"
        return Change("unjudged", before, now, mean_ratio(before, now), extra, few)
    usual = whole or 1.0
    remark = "; ".join(causes(before, now, lengths))
    if ratio.low / usual > LEAST_RATIO and extra >= LEAST_SHARE * total_ms:
        return Change("slower", before, now, ratio, extra, remark)
    if ratio.high < 1 / LEAST_RATIO and -extra >= LEAST_SHARE * total_ms:
        return Change("faster", before, now, ratio, extra, remark)
    if whole and ratio.low > 1:
        remark = f"like the whole server, which is {whole:.1f} times as slow"
    elif ratio.low > LEAST_RATIO:
        remark = f"slower, and costs under {LEAST_SHARE:.0%} of the time"
    return Change("similar", before, now, ratio, extra, remark)


def causes(before: Statement, now: Statement, lengths: float) -> list[str]:
    """What else changed with the time of a statement, the likeliest cause first."""
    found = []
    rows = _grew(before.rows_per_call, now.rows_per_call)
    if rows:
        found.append(f"rows per call {_from_to(before.rows_per_call, now.rows_per_call)} (data)")
    if _grew(before.blocks_per_call, now.blocks_per_call):
        why = "data" if rows else "plan or data, maybe a lost index"
        blocks = _from_to(before.blocks_per_call, now.blocks_per_call)
        found.append(f"blocks per call {blocks} ({why})")
    if _grew(before.docs_examined_per_call, now.docs_examined_per_call):
        examined = _from_to(before.docs_examined_per_call, now.docs_examined_per_call)
        found.append(f"documents examined per call {examined} (plan or data, maybe a lost index)")
    if _grew(_temp(before), _temp(now)):
        found.append(
            f"temporary files {_from_to(_temp(before), _temp(now))} kB per call "
            "(spill: work_mem is too small)"
        )
    if (
        before.hit_ratio is not None
        and now.hit_ratio is not None
        and before.hit_ratio - now.hit_ratio >= CAUSE_HITS
    ):
        found.append(
            f"blocks found in memory {100 * before.hit_ratio:.0f} → {100 * now.hit_ratio:.0f} % "
            "(cache)"
        )
    if _grew(before.read_ms_per_block, now.read_ms_per_block):
        per_block = _from_to(before.read_ms_per_block, now.read_ms_per_block)
        found.append(f"time per block read {per_block} ms (disk)")
    if _grew(before.calls * lengths, now.calls):
        times = now.calls / (before.calls * lengths)
        found.append(f"{times:.1f} times as many calls (application)")
    return found


def _temp(one: Statement) -> float | None:
    return None if one.temp_bytes is None else one.temp_bytes / one.calls / 1024


def _grew(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return False
    # From 0, any whole unit is a change; less may be a single row in a thousand calls.
    return now >= CAUSE_RATIO * before if before else now >= 1


def _from_to(before: float | None, now: float | None) -> str:
    assert before is not None
    assert now is not None
    return f"{_plain(before)} → {_plain(now)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _order(change: Change) -> tuple[int, float, str]:
    cost = change.statement.total_ms if change.extra_ms is None else abs(change.extra_ms)
    return KINDS.index(change.kind), -cost, change.statement.query_id


def compared(before: Half, now: Half) -> tuple[list[Change], float | None]:
    """`changes` of one store's two halves; both must have a window."""
    assert before.window is not None
    assert now.window is not None
    return changes(
        before.statements,
        now.statements,
        total_ms=now.total_ms,
        lengths=seconds(now) / max(seconds(before), 1e-3),
    )


def seconds(half: Half) -> float:
    """The length of a half's window."""
    assert half.window is not None
    return (half.window[1] - half.window[0]).total_seconds()


def growth(before: Half, now: Half) -> Mapping[str, float]:
    """Per query id, the time it took beyond that of an equally long part of the window before."""
    lengths = seconds(now) / max(seconds(before), 1e-3)
    earlier = {statement.query_id: statement.total_ms for statement in before.statements}
    return {s.query_id: s.total_ms - lengths * earlier.get(s.query_id, 0) for s in now.statements}
