"""The parameters of a report: read from the notebook's tagged cell, checked before any work.

The cell is the only declaration. A line of it names the parameter, its type, its default and,
as a comment, what it means:

    top: int = 20  # statements in the table, 1 to 200

Values come typed (Python), as raw text (`-p top=5`), or as papermill put them into the notebook;
all three are brought to the declared type by the same rules, and refused by the same sentences.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

from fwdb import timespan
from fwdb.errors import ParameterError, ReportError, UnknownName, shown
from fwdb.models import entity_id, entity_uuid

Value = str | int | float | bool | None

_RANGE = re.compile(r"(?<![\w.])(?P<low>\d+(?:\.\d+)?) to (?P<high>\d+(?:\.\d+)?)(?![\w.])")
_CHOICE = re.compile(r"one of (?P<names>\w+(?:, \w+)*)")
_EXAMPLES = {"str": "text", "int": "20", "float": "100", "bool": "true"}
TIMES = ("since", "until")
COMPARED = "compare_since"
TIME_FORMS = "an ISO time (2026-11-01T00:00Z) or a span (24h, 7d, 90m)"


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell. `low`, `high` and `choices` are read from its comment."""

    name: str
    type: str
    default: Value
    about: str = ""
    optional: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    uuid: bool = False
    entity: bool = False

    @property
    def example(self) -> str:
        """A value that would be right, as it is typed after `-p name=`."""
        if self.name in TIMES:
            return "24h"
        if self.name == COMPARED:
            return "48h"
        if self.default is not None:
            return str(self.default).lower() if self.type == "bool" else str(self.default)
        if self.uuid or self.entity:
            return "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
        return self.choices[0] if self.choices else _EXAMPLES[self.type]


@dataclass(frozen=True)
class Window:
    """The time a report is about: from `since`, included, to `until`, not included. UTC."""

    since: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        return (self.until - self.since).total_seconds()

    def as_dict(self) -> dict[str, str]:
        return {"since": iso(self.since), "until": iso(self.until)}


def iso(moment: datetime) -> str:
    """A time as results hold it: `2026-11-01T00:00:00Z`, with a fraction only if there is one."""
    moment = moment.astimezone(UTC)
    exact = "milliseconds" if moment.microsecond else "seconds"
    return moment.isoformat(timespec=exact).replace("+00:00", "Z")


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, in the order of its cell tagged `parameters`.

    Raises `ReportError` when the cell is missing or holds anything but annotated scalars.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"the notebook {notebook} cannot be read ({error}).") from error
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            source = cell["source"]
            text = source if isinstance(source, str) else "".join(source)
            return _declarations(text, notebook.name)
    raise ReportError(f"the notebook {notebook.name} has no cell tagged 'parameters'.")


def _declarations(source: str, where: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    comments = _comments(source)
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            raise ReportError(
                f"the parameters cell of {where} may hold lines like `top: int = 20  # help` "
                f"only; line {node.lineno} is something else."
            )
        parts = [part.strip() for part in ast.unparse(node.annotation).split("|")]
        kinds = [part for part in parts if part != "None"]
        if len(kinds) != 1 or kinds[0] not in _EXAMPLES or node.value is None:
            raise ReportError(
                f"'{node.target.id}' in the parameters cell of {where} must be str, int, float "
                "or bool, may be `| None`, and needs a default."
            )
        found[node.target.id] = _parameter(
            node.target.id,
            kinds[0],
            ast.literal_eval(node.value),
            comments.get(node.end_lineno or node.lineno, ""),
            optional=len(parts) > 1,
        )
    return found


def _parameter(name: str, kind: str, default: Value, about: str, *, optional: bool) -> Parameter:
    span = _RANGE.search(about) if kind in ("int", "float") else None
    choice = _CHOICE.search(about) if kind == "str" else None
    return Parameter(
        name,
        kind,
        default,
        about,
        optional,
        low=float(span["low"]) if span else None,
        high=float(span["high"]) if span else None,
        choices=tuple(choice["names"].split(", ")) if choice else (),
        uuid=kind == "str" and "UUID" in about and "ObjectId" not in about,
        entity=kind == "str" and "ObjectId" in about,
    )


def _comments(source: str) -> dict[int, str]:
    return {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }


def check(
    report: str, known: Mapping[str, Parameter], given: Mapping[str, object]
) -> dict[str, Value]:
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
    for name, parameter in known.items():
        try:
            value = parameter.default if name not in given else _value(parameter, given[name])
            values[name] = value
        except ParameterError as error:
            problems.append(error)
    if not problems and set(TIMES) <= set(known):
        try:
            comparison(values, window(str(values["since"]), str(values["until"])))
        except ParameterError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ParameterError(" ".join(str(p) for p in problems), name=problems[0].name)
    return values


def _refusal(parameter: Parameter, value: object, wanted: str) -> ParameterError:
    return ParameterError(
        f"'{parameter.name}' is {shown(value)}; give {wanted}, for example "
        f"{parameter.name}={parameter.example}.",
        name=parameter.name,
    )


def _value(parameter: Parameter, given: object) -> Value:
    if given is None or (parameter.optional and given in ("none", "None", "null")):
        if parameter.optional:
            return None
        raise _refusal(parameter, "None", _wanted(parameter))
    if parameter.name in (*TIMES, COMPARED):
        return _time_value(parameter, given)
    if parameter.type == "bool":
        text = str(given).lower()
        if not isinstance(given, bool | str) or text not in ("true", "false"):
            raise _refusal(parameter, given, "true or false")
        return text == "true"
    if parameter.type == "str":
        return _text_value(parameter, given)
    return _number_value(parameter, given)


def _text_value(parameter: Parameter, given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise _refusal(parameter, given, _wanted(parameter))
    text = given.strip()
    if parameter.choices and text not in parameter.choices:
        raise UnknownName(parameter.name, text, parameter.choices)
    if parameter.uuid:
        try:
            return str(UUID(text))
        except ValueError:
            raise _refusal(parameter, given, _wanted(parameter)) from None
    if parameter.entity:
        try:
            return entity_id(entity_uuid(text))
        except ParameterError:
            raise _refusal(parameter, given, _wanted(parameter)) from None
    return text


def _number_value(parameter: Parameter, given: object) -> int | float:
    wanted = _wanted(parameter)
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise _refusal(parameter, given, wanted)
    try:
        # Text is held to plain decimal notation: int() and float() also take 1_000 and ' 7 '.
        if isinstance(given, str) and not re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", given):
            raise ValueError(given)
        number = float(given)
        if not math.isfinite(number):
            raise ValueError(given)
    except (ValueError, OverflowError):
        raise _refusal(parameter, given, wanted) from None
    if parameter.type == "int" and not number.is_integer():
        raise _refusal(parameter, given, wanted)
    if (parameter.low is not None and number < parameter.low) or (
        parameter.high is not None and number > parameter.high
    ):
        raise _refusal(parameter, given, wanted)
    return int(number) if parameter.type == "int" else number


def _wanted(parameter: Parameter) -> str:
    if parameter.name in (*TIMES, COMPARED):
        return TIME_FORMS
    if parameter.choices:
        return f"one of {', '.join(parameter.choices)}"
    if parameter.uuid:
        return "a UUID"
    if parameter.entity:
        return "a UUID or the 24 digits of an ObjectId"
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    text = kind[parameter.type]
    if parameter.low is not None and parameter.high is not None:
        text += f" from {_decimal(parameter.low)} to {_decimal(parameter.high)}"
    return text


def _decimal(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)


def _time_value(parameter: Parameter, given: object) -> str:
    """A time as text; what it means is settled, and refused if need be, by `window`."""
    if not isinstance(given, str | date | timedelta):
        raise _refusal(parameter, given, TIME_FORMS)
    moment = timespan.moment(given, name=parameter.name)
    return given.strip() if isinstance(given, str) else iso(moment)


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


def comparison(values: Mapping[str, Value], window: Window) -> Window | None:
    """The window that `compare_since` begins, as long as `window`; None when it is not given.

    A span counts back from the end of `window`. Raises `ParameterError` when the two overlap.
    """
    given = values.get(COMPARED)
    if given is None:
        return None
    start = timespan.moment(str(given), name=COMPARED, now=window.until)
    end = start + (window.until - window.since)
    if end > window.since:
        raise ParameterError(
            f"'{COMPARED}' ({iso(start)}) is less than the length of the window before 'since' "
            f"({iso(window.since)}), so that the two would overlap; give an earlier time, for "
            f"example {COMPARED}={iso(window.since - (window.until - window.since))}.",
            name=COMPARED,
        )
    return Window(start, end)


def spelled(values: Mapping[str, Value], names: Iterable[str] | None = None) -> str:
    """Parameters as they are typed: `since=24h, top=20`."""
    chosen = names if names is not None else values
    return ", ".join(f"{n}={'none' if values[n] is None else values[n]}" for n in chosen)
