"""Checks: a plain function with its line, and the runner that makes results of what they find.

    @check("deadlocks", unit="count", limits=Limits(1), label="Deadlocks")
    def deadlocks(facts: Facts, database: str) -> Found:
        count = facts["counters"]["deadlocks"]
        return Finding(f"{count} deadlocks in the window.", count, "Take locks in one order.")

A report lists its checks in `CHECKS`. One that stands in two reports is one function; its line is
that of its report: `pool.sessions`, `health.sessions`. A question that a server refuses, or does
not answer, is a check with the reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd

from fwdb import config, queries
from fwdb.charts.canvas import DATABASES, window_text
from fwdb.charts.statements import milliseconds
from fwdb.errors import (
    FeatureUnavailable,
    PermissionDenied,
    QueryError,
    QueryTimeout,
    StoreUnavailable,
    Transient,
    UnknownName,
)
from fwdb.measure import Measure
from fwdb.reports import notebook
from fwdb.reports.parameters import Window, iso
from fwdb.reports.results import JUDGED, Check, Judged, Kpi, Result, Role, Status, Table
from fwdb.reports.words import figure, sentence

if TYPE_CHECKING:
    from fwdb.config import Settings
    from fwdb.database import Database

T = TypeVar("T")
D = TypeVar("D")
Over = tuple[float | None, float | None]

# -- lines -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Where a value becomes a warning, and where critical; infinite where there is no such line.

    On the line is over it. Where `low` values are bad the warning line itself is still good: a
    promise of 0.95 is kept by 0.95.
    """

    warning: float = math.inf
    critical: float = math.inf
    low: bool = False

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


@dataclass(frozen=True)
class Limits:
    """A line as it is declared: numbers, or names of settings or parameters that hold them.

    Without a critical number that is `times` the warning. `unit` is that of the numbers where it
    is not the unit of the check.
    """

    warning: float | str | None = None
    critical: float | str | None = None
    low: bool = False
    times: float | None = None
    unit: str = ""

    def line(self, settings: Settings, parameters: object, over: Over = (None, None)) -> Line:
        """The numbers in force; those of `over`, from FWDB_LIMITS, come first."""
        none = -math.inf if self.low else math.inf

        def number(declared: float | str | None, instead: float | None, without: float) -> float:
            value = declared if instead is None else instead
            if isinstance(value, str):
                holder = parameters if hasattr(parameters, value) else settings.thresholds
                value = getattr(holder, value)
            return without if value is None else value

        warning = number(self.warning, over[0], none)
        multiple = self.times * warning if self.times else none
        return Line(warning, number(self.critical, over[1], multiple), self.low)

    def variable(self, id: str) -> str:
        """How the line `id` is moved: by variables of its own, a parameter, or FWDB_LIMITS."""
        names = [name for name in (self.warning, self.critical) if isinstance(name, str)]
        own = [f"FWDB_{n.upper()}" for n in names if n in config.Thresholds.model_fields]
        if len(own) < len(names):
            return f"-p {names[0]}"
        return ", ".join(own) or f"FWDB_LIMITS={id}"


# -- facts -----------------------------------------------------------------------------------------

# What a question may end in without ending the report. Anything else is a fault of fwdb.
_REFUSED: dict[type[Exception], Status] = {
    StoreUnavailable: "not_available",
    FeatureUnavailable: "not_available",
    PermissionDenied: "not_measured",
    QueryTimeout: "not_measured",
    QueryError: "not_measured",
    Transient: "not_measured",
}
REFUSALS = tuple(_REFUSED)
# A report can wait longer than a caller of `health()`: a busy server has its say.
ANSWER_SECONDS = 5.0
_DTYPES = {"string": "str", "timestamp": "datetime64[us, UTC]", "bool": "boolean"}


@dataclass
class Facts:
    """What one report knows. `frames` are its answers by name: `facts["history"]`.

    `lines` are those of its checks by subject, `units` what they count. `checks` and `kpis`
    collect what is found, and why something could not be.
    """

    report: str
    db: Database
    window: Window
    parameters: Any
    settings: Settings
    lines: Mapping[str, Line]
    units: Mapping[str, str]
    frames: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    kpis: list[Kpi] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        return self.frames[name]

    @property
    def live(self) -> bool:
        """Whether the window ends now, so that what is known of this moment only belongs to it."""
        return bool(self.parameters.until == "now")

    @property
    def end(self) -> datetime | None:
        """An open window ends with a reading taken now, any other with the last stored in it."""
        return None if self.live else self.window.until

    @property
    def edges(self) -> dict[str, Any]:
        """`since` and `until` of the window, as charts take them."""
        return {n: pd.Timestamp(getattr(self.window, n)) for n in ("since", "until")}

    @property
    def bounds(self) -> str:
        """The window as it could be typed."""
        return f"{iso(self.window.since)} to {iso(self.window.until)}"

    @property
    def span(self) -> str:
        """The window in words."""
        return window_text(*self.edges.values())

    @property
    def up(self) -> list[str]:
        """Databases that answer, of those that were looked at."""
        return [c.database for c in self.checks if c.id.endswith(".reachable") and c.status == "ok"]

    def reach(self, *databases: str) -> None:
        """Looks which of the databases answer at all; one check for each.

        With a deadline, so that a frozen server does not hold up the report, and beside the pool
        of the work, which may be full.
        """
        for store in self.db.monitor.health(timeout_seconds=ANSWER_SECONDS).stores:
            if store.database not in databases:
                continue
            id, name = f"{self.report}.reachable", DATABASES[store.database]
            if store.status != "down":
                self.checks.append(Check(id, store.database, "ok", f"{name} answers."))
                continue
            self.down.add(store.database)
            text = sentence(f"{name} is missing from this report: {store.reason}")
            action = f"Bring {name} back and run the report again."
            self.checks.append(Check(id, store.database, "not_available", text, action=action))

    def ask(
        self, subject: str, question: Callable[[], T], without: D, database: str = "postgres"
    ) -> T | D:
        """The answer, or `without` and a check that says why there is none."""
        if database in self.down:
            return without
        try:
            return question()
        except REFUSALS as error:
            self.checks.append(_refusal(self.report, subject, database, error))
            return without

    def take(
        self,
        subject: str,
        question: Callable[[], Any],
        without: Any,
        database: str = "postgres",
        *,
        live: bool = False,
    ) -> Any:
        """As `ask`, kept under the name of the subject; what is `live` is not asked of the past."""
        asked = self.live or not live
        answer = self.ask(subject, question, without, database) if asked else without
        self.frames[subject] = answer
        return answer

    def refused(self, subject: str, database: str) -> bool:
        """Whether a question on this subject was not answered."""
        wanted = (f"{self.report}.{subject}", database)
        return any((c.id, c.database) == wanted for c in self.checks if c.refused)

    def table(
        self,
        name: str,
        title: str,
        about: str,
        shown: Iterable[str] = (),
        *,
        frame: pd.DataFrame | None = None,
    ) -> Table:
        """A table of the frame of this name, or of another one."""
        rows = self.frames[name] if frame is None else frame
        return Table(name, title, rows.reset_index(drop=True), about, tuple(shown))

    def result(
        self,
        *,
        tables: tuple[Table, ...],
        charts: Mapping[str, Any],
        sources: tuple[tuple[str, str], ...],
        kpis: Iterable[Kpi] | None = None,
    ) -> Result:
        """The result of what was found."""
        return Result(
            report=self.report,
            window=self.window,
            parameters=dataclasses.asdict(self.parameters),
            checks=tuple(self.checks),
            kpis=tuple(self.kpis if kpis is None else kpis),
            tables=tables,
            charts=charts,
            how_to_read=notebook.how_to_read(self.report, self.text),
            sources=sources,
            title=notebook.title(self.report),
            roles={f"{self.report}.{rule.subject}": rule.role for rule in rules(self.report)},
        )

    def text(self, name: str) -> str:
        """The figure of a line as a reader sees it, such as that of ``utilisation.warning``."""
        key, _, which = name.rpartition(".")
        number, unit = getattr(self.lines[key], which), self.units[key]
        if unit == "ms":
            return milliseconds(number)
        return figure(number, unit) if unit == "bytes" else f"{number:g}"


def gather(
    report: str, db: Database, window: Window, parameters: object, settings: Settings
) -> Facts:
    """Facts to begin with, with the lines in force. Raises as `declared` does."""
    mine = {
        one.id.removeprefix(f"{report}."): one
        for one in declared(settings, **{report: parameters})
        if one.id.startswith(f"{report}.")
    }
    lines, units = ({key: getattr(d, n) for key, d in mine.items()} for n in ("line", "unit"))
    return Facts(report, db, window, parameters, settings, lines, units)


def _refusal(report: str, subject: str, database: str, error: Exception) -> Check:
    status = next(s for kind, s in _REFUSED.items() if isinstance(error, kind))
    return Check(f"{report}.{subject}", database, status, sentence(str(error)), refused=True)


def empty(columns: str | Mapping[str, str], **more: str) -> pd.DataFrame:
    """A frame without rows: the columns of a query file by its name, or these with their types."""
    if isinstance(columns, str):
        columns = queries.load(columns).columns
    kinds = {**columns, **more}
    return pd.DataFrame({n: pd.Series(dtype=_DTYPES.get(k, k)) for n, k in kinds.items()})


# -- checks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a check found: the sentence, its value, and what to do unless all is well.

    `status` and `threshold` are those of the check's line unless given; with a `status` of its
    own a finding keeps its `action` whatever it is. `database` is the one that it is about where
    that is not the one that was asked.
    """

    sentence: str
    value: float | None = None
    action: str = ""
    status: Status | None = None
    threshold: float | Literal["line"] | None = "line"
    unit: str | None = None
    database: str = ""
    kpis: tuple[Kpi, ...] = ()


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

    def asks(self, facts: Facts, database: str) -> bool:
        """Whether it can say anything of a database in these facts."""
        if facts.refused(self.subject, database) or (self.live and not facts.live):
            return False
        return self.down or database not in facts.down


def check(
    subject: str,
    *,
    per: Literal["database", "postgres", "mongodb"] = "postgres",
    unit: str = "",
    limits: Limits | None = None,
    label: str = "",
    live: bool = False,
    down: bool = False,
    role: Role = "",
    **more: Limits,
) -> Callable[[Function], Rule]:
    """Declares the check `subject`, asked for each database or of one.

    `limits` judge its value. `more` are further numbers that its function asks for, each with a
    name of its own: `facts.lines["sizing.holds"].warning`. `label` is its line in the matrix of
    the servers where that is not the subject. A `live` check is of this moment, and not asked
    about a window that has ended; one with `down` is asked of a database that is down too.
    Without the ``main`` check of a report the others say little; of ``news`` the finding is told
    even where all is well.
    """
    declared = {subject: limits} if limits else {}
    declared |= {f"{subject}.{name}": one for name, one in more.items()}
    databases = tuple(DATABASES) if per == "database" else (per,)

    def declare(function: Function) -> Rule:
        name = label or subject.replace("_", " ").capitalize()
        return Rule(subject, function, databases, unit, declared, name, live, down, role)

    return declare


def run(facts: Facts, rules: Iterable[Rule]) -> None:
    """Adds what the checks find, of each database that was not asked in vain before."""
    for rule in rules:
        for database in filter(partial(rule.asks, facts), rule.databases):
            try:
                for finding in _each(rule.function(facts, database)):
                    facts.checks.append(_judged(rule, finding, facts, database))
                    facts.kpis += finding.kpis
            except REFUSALS as error:
                facts.checks.append(_refusal(facts.report, rule.subject, database, error))


def _each(found: Found) -> Iterable[Finding]:
    return () if found is None else (found,) if isinstance(found, Finding) else found


def _judged(rule: Rule, finding: Finding, facts: Facts, database: str) -> Check:
    line = facts.lines.get(rule.subject, Line())
    value, status, action = finding.value, finding.status, finding.action
    if status is None:
        status = "ok" if value is None else line.judge(value)
        action = "" if status == "ok" else action
    threshold = finding.threshold
    if threshold == "line":
        threshold = line.threshold(status) if value is not None and status in JUDGED else None
    unit = finding.unit if finding.unit is not None else rule.unit if value is not None else ""
    return Check(
        f"{facts.report}.{rule.subject}",
        finding.database or database,
        status,
        finding.sentence,
        value,
        unit,
        threshold,
        action,
    )


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


# -- all lines of all reports ----------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """A line of a check: its id, where it stands, and the variable or parameter that moves it."""

    id: str
    database: str
    unit: str
    line: Line
    variable: str


def declared(settings: Settings | None = None, **parameters: object) -> list[Declared]:
    """Every line of every check, as it is in force, in the order of the reports.

    `parameters` are those of reports by name, where they are not the default. Raises
    `UnknownName` when FWDB_LIMITS names a line that there is not.
    """
    settings = settings or config.settings()
    over, found = settings.limits or {}, list[Declared]()
    for report in notebook.names():
        given = parameters.get(report) or module(report).Parameters()
        for rule in rules(report):
            for key, limits in rule.lines.items():
                id, unit = f"{report}.{key}", limits.unit or rule.unit
                line = limits.line(settings, given, over.get(id, (None, None)))
                databases, variable = ", ".join(rule.databases), limits.variable(id)
                found.append(Declared(id, databases, unit, line, variable))
    settable = [one.id for one in found if one.variable.startswith("FWDB_")]
    for id in over:
        if id not in settable:
            raise UnknownName("limit", id, settable, where="FWDB_LIMITS")
    return found


def rules(report: str) -> tuple[Rule, ...]:
    """The checks of a report."""
    found: tuple[Rule, ...] = module(report).CHECKS
    return found


def module(report: str) -> Any:
    """The module of a report: its `Parameters`, its `CHECKS`, and `build`, from facts to result."""
    return importlib.import_module(f"fwdb.reports.{report}")
