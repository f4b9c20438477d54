"""Checks: a plain function with its line, and the runner that makes results of what they find.

    @check("deadlocks", "count", Limits(1), label="Deadlocks")
    def deadlocks(facts: Facts, database: str) -> Found:
        count = facts["counters"]["deadlocks"]
        return Finding(f"{count} deadlocks in the window.", count, "Take locks in one order.")

A report lists its checks in `CHECKS`. One that stands in two reports is one function; its line is
that of its report: `pool.sessions`, `health.sessions`. A question that a server refuses, or does
not answer, is a check with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fwdb import config
from fwdb.charts.words import DATABASES, figure, milliseconds, sentence
from fwdb.measure import Measure
from fwdb.reports.facts import REFUSALS, Facts
from fwdb.reports.results import JUDGED, Check, Judged, Kpi, Role, Status

if TYPE_CHECKING:
    from fwdb.config import Settings


@dataclass(frozen=True)
class Line:
    """Where a value becomes a warning, and where critical; infinite where there is no such line.

    On the line is over it. Where `low` values are bad the warning line itself is still good: a
    promise of 0.95 is kept by 0.95.
    """

    warning: float = math.inf
    critical: float = math.inf
    low: bool = False
    unit: str = ""
    id: str = ""  # report.subject
    databases: tuple[str, ...] = ()
    variable: str = ""  # what moves it: a variable of its own, FWDB_LIMITS, or a parameter

    def judge(self, value: float) -> Judged:
        """`ok`, `warning` or `critical`."""
        if self.low:
            bad, poor = value <= self.critical, value < self.warning
        else:
            bad, poor = value >= self.critical, value >= self.warning
        return "critical" if bad else "warning" if poor else "ok"

    def threshold(self, status: str) -> float | None:
        """The line behind a status; None where there is none."""
        line = self.critical if status == "critical" else self.warning
        return line if math.isfinite(line) else None

    def text(self, status: str) -> str:
        """The line behind a status as a reader sees it."""
        line = getattr(self, status)
        if self.unit == "ms":
            return milliseconds(line)
        return figure(line, "bytes") if self.unit == "bytes" else f"{line:g}"


@dataclass(frozen=True)
class Limits:
    """A line as it is declared: numbers, or names of settings or parameters that hold them.

    Without a critical number that is `times` the warning. `unit` is that of the numbers where it
    is not the unit of the check.
    """

    warning: float | str | None = None
    critical: float | str | None = None
    unit: str = ""
    low: bool = False
    times: float | None = None

    def line(
        self, id: str, databases: tuple[str, ...], settings: Settings, parameters: object
    ) -> Line:
        """The line `id` as it is in force; numbers in FWDB_LIMITS come first."""
        over = (settings.limits or {}).get(id, (None, None))
        none = -math.inf if self.low else math.inf

        def number(declared: float | str | None, instead: float | None, without: float) -> float:
            value = declared if instead is None else instead
            if isinstance(value, str):
                holder = parameters if hasattr(parameters, value) else settings.thresholds
                value = getattr(holder, value)
            return without if value is None else value

        warning = number(self.warning, over[0], none)
        multiple = self.times * warning if self.times else none
        critical = number(self.critical, over[1], multiple)
        names = [name for name in (self.warning, self.critical) if isinstance(name, str)]
        own = [f"FWDB_{n.upper()}" for n in names if n in config.Thresholds.model_fields]
        variable = ", ".join(own) or f"FWDB_LIMITS={id}"
        variable = variable if len(own) == len(names) else f"-p {names[0]}"
        return Line(warning, critical, self.low, self.unit, id, databases, variable)


@dataclass(frozen=True)
class Finding:
    """What a check found: the sentence, its value, and what to do unless all is well.

    `status` and `threshold` are those of the check's line unless given; what is `ok` has no
    `action` but where it is `always` to be said. `database` is the one that it is about where that
    is not the one that was asked. Of `kpis` the runner fills ``{}`` in id and label with the
    database, and a status that is left out with that of the finding.
    """

    sentence: str
    value: float | None = None
    action: str = ""
    status: Status | None = None
    threshold: float | Literal["line"] | None = "line"
    unit: str | None = None
    database: str = ""
    kpis: tuple[Kpi, ...] = ()
    always: bool = False


Found = Finding | Iterable[Finding] | None
Function = Callable[[Facts, str], Found]


@dataclass(frozen=True)
class Rule:
    """A check as it is declared; see `check`."""

    subject: str
    function: Function
    databases: tuple[str, ...]
    unit: str
    lines: Mapping[str, Limits]
    label: str
    live: bool
    down: bool
    role: Role


def check(
    subject: str,
    unit: str = "",
    limits: Limits | None = None,
    *,
    per: Literal["database", "postgres", "mongodb"] = "postgres",
    label: str = "",
    live: bool = False,
    down: bool = False,
    role: Role = "",
    **more: Limits,
) -> Callable[[Function], Rule]:
    """Declares the check `subject`, asked for each database or of one.

    `limits` judge its value. `more` are further numbers that its function asks for, each with a
    name of its own: `facts.limit("sizing.holds")`. `label` is its line in the matrix of the
    servers where that is not the subject. A `live` check is of this moment, and not asked about a
    window that has ended; one with `down` is asked of a database that is down too. Without the
    ``main`` check of a report the others say little; of ``news`` the finding is told even where
    all is well.
    """
    declared = {subject: limits} if limits else {}
    declared |= {f"{subject}.{name}": one for name, one in more.items()}
    declared = {key: replace(one, unit=one.unit or unit) for key, one in declared.items()}
    databases = tuple(DATABASES) if per == "database" else (per,)
    label = label or subject.replace("_", " ").capitalize()
    return lambda function: Rule(
        subject, function, databases, unit, declared, label, live, down, role
    )


def run(facts: Facts, rules: Iterable[Rule]) -> None:
    """Adds what the checks find, of each database that was not asked in vain before."""
    for rule in rules:
        for database in rule.databases:
            if facts.refused(rule.subject, database) or (rule.live and not facts.live):
                continue
            if database in facts.down and not rule.down:
                continue
            try:
                found = rule.function(facts, database)
                for finding in (found,) if isinstance(found, Finding) else found or ():
                    _add(facts, rule, finding, finding.database or database)
            except REFUSALS as error:
                facts.refuse(rule.subject, database, error)


def _add(facts: Facts, rule: Rule, finding: Finding, database: str) -> None:
    line, value, status = facts.lines.get(rule.subject, Line()), finding.value, finding.status
    if status is None:
        status = "ok" if value is None else line.judge(value)
    threshold = finding.threshold
    if threshold == "line":
        threshold = None
        if value is not None and status in JUDGED:  # a line may be the critical one alone
            threshold = line.threshold(status)
            threshold = line.threshold("critical") if threshold is None else threshold
    facts.checks.append(
        Check(
            f"{facts.report}.{rule.subject}",
            database,
            status,
            finding.sentence,
            value,
            finding.unit if finding.unit is not None else rule.unit if value is not None else "",
            threshold,
            finding.action if finding.always or status != "ok" else "",
        )
    )
    facts.kpis += (kpi.filled(database, status) for kpi in finding.kpis)


def measured(found: Measure, said: str = "{}", action: str = "", more: str = "") -> Finding:
    """A measure as a finding, `said` with its figure in place of ``{}``; without one its reason."""
    if found.value is None:
        text = sentence(found.reason or "it could not be measured")
        return Finding(text, status=found.status, unit=found.unit)
    remark = f" ({found.reason})" if found.reason else ""
    text = f"{said.format(figure(found.value, found.unit))}{more}{remark}."
    return Finding(text, found.value, action, unit=found.unit)


def key_figure(found: Measure, id: str, label: str) -> Kpi:
    """A measure as a key figure; its note is what the measure says of itself."""
    note = sentence(found.reason) if found.reason else ""
    return Kpi(id, label, found.value, found.unit, found.status, found.database, note)
