"""The parameters of a report: a frozen dataclass in its module, checked before any work.

    @dataclass(frozen=True)
    class Parameters:
        since: str = since("24h")
        top: int = parameter(20, "statements in each table", low=1, high=200)

The notebook's cell repeats it, for papermill and for readers; a test holds the two together.
Values come typed (Python), as raw text (`-p top=5`), or as papermill put them into the notebook;
all three are brought to the declared type by the same rules, and refused by the same sentences.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args, get_type_hints
from uuid import UUID

from fwdb import timespan
from fwdb.errors import ParameterError, UnknownName, shown
from fwdb.models import entity_id, entity_uuid

Value = str | int | float | bool | None
Form = Literal["", "time", "uuid", "entity"]

COMPARED = "compare_since"
_ENTITY = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
# Of each type or form: the values it takes, in words, and one that would be right.
_TAKES = {
    "str": ("a text", "text"),
    "int": ("a whole number", "20"),
    "float": ("a number", "100"),
    "bool": ("true or false", "true"),
    "time": ("an ISO time (2026-11-01T00:00Z) or a span (24h, 7d, 90m)", "24h"),
    "uuid": ("a UUID", _ENTITY),
    "entity": ("a UUID or the 24 digits of an ObjectId", _ENTITY),
}
# Text is held to plain decimal notation: int() and float() also take 1_000 and ' 7 '.
_PLAIN = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is declared; `form` is what a text must be: a time, a UUID or an entity."""

    name: str
    type: str
    default: Value
    about: str = ""
    optional: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    form: Form = ""

    @property
    def help(self) -> str:
        """What it means and what it takes."""
        if self.low is not None:
            return f"{self.about}, {self.low:.12g} to {self.high:.12g}"
        return f"{self.about}, one of {', '.join(self.choices)}" if self.choices else self.about

    def refusal(self, value: object) -> ParameterError:
        """The error for a value that it does not take."""
        wanted, example = _TAKES[self.form or self.type]
        if self.choices:
            wanted, example = f"one of {', '.join(self.choices)}", self.choices[0]
        elif self.low is not None:
            wanted += f" from {self.low:.12g} to {self.high:.12g}"
        if self.name == COMPARED:
            example = "48h"
        elif self.default is not None and self.form != "time":
            text = str(self.default)
            example = text.lower() if self.type == "bool" else text
        said = f"'{self.name}' is {shown(value)}; give {wanted}, for example {self.name}={example}."
        return ParameterError(said, name=self.name)

    def value(self, given: object) -> Value:
        """`given` in the type of the parameter. Raises `ParameterError`, `UnknownName`."""
        if given is None or (self.optional and given in ("none", "None", "null")):
            if self.optional:
                return None
            raise self.refusal("None")
        try:
            if self.form == "time":
                return self._time(given)
            if self.type == "bool":
                word = str(given).lower() if isinstance(given, bool | str) else ""
                return {"true": True, "false": False}[word]
            return self._text(given) if self.type == "str" else self._number(given)
        except (ValueError, KeyError, OverflowError):
            raise self.refusal(given) from None

    def _time(self, given: object) -> str:
        """A time as text; what it means is settled, and refused if need be, by `window`."""
        if not isinstance(given, str | date | timedelta):
            raise ValueError
        moment = timespan.moment(given, name=self.name)
        return given.strip() if isinstance(given, str) else iso(moment)

    def _text(self, given: object) -> str:
        text = given.strip() if isinstance(given, str) else ""
        if not text:
            raise ValueError
        if self.choices and text not in self.choices:
            raise UnknownName(self.name, text, self.choices)
        try:
            if self.form == "uuid":
                return str(UUID(text))
            return entity_id(entity_uuid(text)) if self.form == "entity" else text
        except ParameterError:
            raise ValueError from None

    def _number(self, given: object) -> int | float:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError
        if isinstance(given, str) and not _PLAIN.fullmatch(given):
            raise ValueError
        number = float(given)
        low, high = (-math.inf if self.low is None else self.low, self.high or math.inf)
        whole = self.type != "int" or number.is_integer()
        if not (math.isfinite(number) and whole and low <= number <= high):
            raise ValueError
        return int(number) if self.type == "int" else number


def parameter(
    default: Value,
    about: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] = (),
    form: Form = "",
) -> Any:
    """A field of the dataclass of a report's parameters; what it takes is checked by `accept`."""
    metadata = {"about": about, "low": low, "high": high, "choices": tuple(choices), "form": form}
    return dataclasses.field(default=default, metadata=metadata)


def since(default: str) -> Any:
    """The parameter `since` of a report."""
    about = "start of the window: an ISO time (2026-11-01T00:00Z) or a span back from until"
    return parameter(default, f"{about} (24h, 7d)", form="time")


def until() -> Any:
    """The parameter `until` of a report."""
    about = "end of the window: now, an ISO time or a span back from now"
    return parameter("now", about, form="time")


def declared(parameters: type) -> dict[str, Parameter]:
    """The parameters that a dataclass declares, by name, in its order."""
    hints, found = get_type_hints(parameters), {}
    for one in dataclasses.fields(parameters):
        kinds = get_args(hints[one.name]) or (hints[one.name],)
        kind = next(k.__name__ for k in kinds if k is not type(None))
        default: Any = one.default
        optional = type(None) in kinds
        found[one.name] = Parameter(one.name, kind, default, optional=optional, **one.metadata)
    return found


@dataclass(frozen=True)
class Window:
    """The time a report is about: from `since`, included, to `until`, not included. UTC."""

    since: datetime
    until: datetime

    def as_dict(self) -> dict[str, str]:
        return {"since": iso(self.since), "until": iso(self.until)}


def iso(moment: datetime) -> str:
    """A time as results hold it: `2026-11-01T00:00:00Z`, with a fraction only if there is one."""
    moment = moment.astimezone(UTC)
    exact = "milliseconds" if moment.microsecond else "seconds"
    return moment.isoformat(timespec=exact).replace("+00:00", "Z")


@dataclass(frozen=True)
class Accepted:
    """Values of all parameters, the window they describe, and the one to compare it with."""

    values: dict[str, Value]
    window: Window
    before: Window | None = None


def accept(report: str, known: Mapping[str, Parameter], given: Mapping[str, object]) -> Accepted:
    """All parameters of a report, those given brought to their types, the others by default.

    Raises `UnknownName` for a name the report has not, and `ParameterError` for a value that
    cannot be used; both say what would be right, and nothing has been written by then. With
    several wrong values the sentence names all of them.
    """
    for name in given:
        if name not in known:
            raise UnknownName("parameter", name, known, where=f"report '{report}'")
    values: dict[str, Value] = {}
    problems: list[ParameterError] = []
    for name, one in known.items():
        try:
            values[name] = one.value(given[name]) if name in given else one.default
        except ParameterError as error:
            problems.append(error)
    if len(problems) > 1:
        raise ParameterError(" ".join(str(p) for p in problems), name=problems[0].name)
    if problems:
        raise problems[0]
    chosen = window(str(values["since"]), str(values["until"]))
    return Accepted(values, chosen, _comparison(values.get(COMPARED), chosen))


def window(since: str, until: str, *, now: datetime | None = None) -> Window:
    """The window that two parameters describe; a span in `since` counts back from `until`.

    Raises `ParameterError` unless `since` is before `until` and neither lies in the future.
    """
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    end = timespan.moment(until, name="until", now=now)
    start = timespan.moment(since, name="since", now=end)
    if end > now:
        raise ParameterError(
            f"'until' is '{until}', which is in the future (it is {iso(now)}); give a time that "
            "has passed, or leave it out for now.",
            name="until",
        )
    if start >= end:
        raise ParameterError(
            f"'since' ({iso(start)}) is not before 'until' ({iso(end)}); give an earlier time or "
            "a span, for example since=24h.",
            name="since",
        )
    return Window(start, end)


def _comparison(given: Value, window: Window) -> Window | None:
    """The window that `compare_since` begins, as long as `window`; None when it is not given.

    A span counts back from the end of `window`. Raises `ParameterError` when the two overlap.
    """
    if given is None:
        return None
    length = window.until - window.since
    start = timespan.moment(str(given), name=COMPARED, now=window.until)
    if start + length > window.since:
        raise ParameterError(
            f"'{COMPARED}' ({iso(start)}) is less than the length of the window before 'since' "
            f"({iso(window.since)}), so that the two would overlap; give an earlier time, for "
            f"example {COMPARED}={iso(window.since - length)}.",
            name=COMPARED,
        )
    return Window(start, start + length)


def spelled(values: Mapping[str, Value]) -> str:
    """Parameters as they are typed: `since=24h, top=20`."""
    return ", ".join(f"{n}={'none' if v is None else v}" for n, v in values.items())
