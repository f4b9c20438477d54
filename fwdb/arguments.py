"""Arguments of public calls, checked against their annotations before the call does anything.

``@checks_arguments`` on a function, or on a class for all its public methods. What an annotation
cannot say is said by ``Annotated``: a `Range` of numbers, a tuple of names to choose from, a test,
or a text, which is what the refusal asks for. An argument is never turned into another type where
that could mean something else: ``"80"`` is no port and True no number.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union
from uuid import UUID

from fwdb.errors import ParameterError, UnknownName, shown

__all__ = ["Count", "Days", "File", "Range", "Seconds", "checks_arguments"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; `above`: without `low` itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, number: Any) -> bool:
        return bool(self.low < number if self.above else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        start = f"{'above' if self.above else 'from'} {self.low:,.10g}"
        if self.high > _FAR:
            return start if self.above else f"{start} on"
        return f"{start} {'up ' if self.above else ''}to {self.high:,.10g}"


_FAR = 2**32
Count = Annotated[int, Range(1, 2**63 - 1)]
Days = Annotated[float, Range(0, 36_500, above=True)]
Seconds = Annotated[float, Range(0, 31_622_400, above=True)]  # a year; beyond, clocks overflow


def _is_file_name(value: str | Path) -> bool:
    """Whether the system takes it: a URL given by mistake would become folders of its parts."""
    text = str(value)
    try:
        return 0 < len(text.encode()) < 4096 and "\0" not in text and "://" not in text
    except UnicodeEncodeError:
        return False


File = Annotated[str | Path, _is_file_name, "the path of a file"]

_WORDS: dict[Any, str] = {
    bool: "True or False",
    str: "text",
    datetime: "a time",
    date: "a date",
    timedelta: "a timedelta",
    UUID: "a UUID",
    Path: "a path",
    type(None): "",  # goes without saying
    dict: "a dictionary",
    Mapping: "a dictionary",
}


class _Unfit(Exception):
    """The value is not what the annotation asks for."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an annotation accepts: `take` gives the value to go on with or raises `_Unfit`."""

    take: Callable[[Any], Any]
    wanted: str
    choices: tuple[str, ...] = ()


def checks_arguments(target: T) -> T:
    """`target`, a function or a class, whose arguments are checked.

    Raises `ParameterError` for a value that does not fit, a missing argument or one too many, and
    `UnknownName` for a name that is no argument or none of the choices.
    """
    if not isinstance(target, type):
        return typing.cast(T, _checking(typing.cast(Any, target)))
    for name in dir(target):
        function = inspect.getattr_static(target, name)
        if isinstance(function, types.FunctionType) and not name.startswith("_"):
            setattr(target, name, _checking(function))
    return target


def _checking(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = functools.cache(lambda: _Signature(function))  # at the first call

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return function(*signature().check(args, named), **named)

    return call


class _Signature:
    """The parameters of a function, ready for checking."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = f"{function.__name__}()"
        parameters = inspect.signature(function).parameters.values()
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        self._open = len(named) < len(parameters)
        self._places = [p.name for p in named if p.kind is not p.KEYWORD_ONLY]
        self._names = {p.name for p in named if p.kind is not p.POSITIONAL_ONLY} - {"self"}
        self._required = [p.name for p in named if p.default is p.empty]
        self._kinds = {name: _kind(hint) for name, hint in _hints(function).items()}

    def check(self, args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """The arguments by position, checked; those by name are checked in place."""
        if len(args) > len(self._places):
            own = int(self._places[:1] == ["self"])
            most = len(self._places) - own
            raise ParameterError(
                f"{self._call} takes {most} argument{'s' * (most != 1)} by position, not "
                f"{len(args) - own}; give the others by name."
            )
        by_place = [self._take(*pair) for pair in zip(self._places, args, strict=False)]
        for name, value in named.items():
            if name in self._names:
                named[name] = self._take(name, value)
            elif not self._open:
                raise UnknownName("argument", name, self._names, where=self._call)
        for name in self._required:
            if name not in self._places[: len(args)] and name not in named:
                kind = self._kinds.get(name)
                wanted = kind.wanted if kind else "a value"
                raise ParameterError(f"{self._call} needs '{name}'; give {wanted}.", name=name)
        return by_place

    def _take(self, name: str, value: Any) -> Any:
        kind = self._kinds.get(name)
        if kind is None:
            return value
        try:
            return kind.take(value)
        except _Unfit:
            pass
        if kind.choices and isinstance(value, str):
            raise UnknownName(name.replace("_", " "), value, kind.choices)
        raise ParameterError(
            f"{self._call}: '{name}' is {shown(value)}; give {kind.wanted}.", name=name
        )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters; names that only a type checker imports are left open."""
    inner = inspect.unwrap(function)
    known = {name: hint for name, hint in inner.__annotations__.items() if name != "return"}
    later: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(
                types.SimpleNamespace(__annotations__=known),
                inner.__globals__,
                later,
                include_extras=True,
            )
        except NameError as error:
            name = str(error.name)
            later[name] = getattr(sys.modules["fwdb"], name, Any)


# -- annotations ----------------------------------------------------------------------------------


def _kind(hint: Any) -> _Kind | None:
    """What `hint` accepts; None where that is anything."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return None
    if hint in _NUMBERS:
        return _NUMBERS[hint]
    if origin is Annotated:
        return _annotated(_kind(parts[0]), hint.__metadata__)
    if origin in (Union, types.UnionType):
        return _union([_kind(part) for part in parts])
    if origin is Literal:
        return _choice(parts)
    if origin is collections.abc.Callable:
        return _only(callable, "a function")
    if origin in (Sequence, list):
        item = _kind(parts[0])
        wanted = f"a list of {'values' if item is None else item.wanted}"
        return _Kind(functools.partial(_listed, item), wanted)
    if origin in (Iterable, Iterator):
        return _only(_is_many, "a list")
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None
    wanted = _WORDS.get(kind, f"a {kind.__name__}")
    # pandas' NaT is a datetime, and unlike itself
    strict = issubclass(kind, date)
    return _only(lambda value: isinstance(value, kind) and (not strict or value == value), wanted)


def _annotated(kind: _Kind | None, metadata: tuple[Any, ...]) -> _Kind | None:
    for rule in metadata:
        if isinstance(rule, tuple):
            kind = _choice(rule)
        elif kind is not None and isinstance(rule, str):
            kind = _Kind(kind.take, rule)
        elif kind is not None:
            ranged = isinstance(rule, Range)
            wanted = f"{kind.wanted} {rule}" if ranged else kind.wanted
            kind = _only(rule.__contains__ if ranged else rule, wanted, kind.take)
    return kind


def _choice(choices: tuple[Any, ...]) -> _Kind:
    fits = _only(lambda value: isinstance(value, str) and value in choices, "")
    return _Kind(fits.take, f"one of {', '.join(choices)}", choices)


def _union(kinds: list[_Kind | None]) -> _Kind | None:
    found = [kind for kind in kinds if kind is not None]
    if len(found) < len(kinds):
        return None

    def take(value: Any) -> Any:
        for kind in found:
            try:
                return kind.take(value)
            except _Unfit:
                continue
        raise _Unfit

    wanted = list(dict.fromkeys(kind.wanted for kind in found if kind.wanted))
    words = " or ".join([", ".join(wanted[:-1]), wanted[-1]] if wanted[1:] else wanted)
    return _Kind(take, words, next((kind.choices for kind in found if kind.wanted), ()))


def _only(
    test: Callable[[Any], bool], wanted: str, take: Callable[[Any], Any] | None = None
) -> _Kind:
    """What passes `test`, after `take` took it."""

    def only(value: Any) -> Any:
        taken = value if take is None else take(value)
        if test(taken):
            return taken
        raise _Unfit

    return _Kind(only, wanted)


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):  # as numpy's
        return int(value)
    raise _Unfit


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        raise _Unfit
    try:
        if math.isfinite(value):
            return value if isinstance(value, int | float) else float(value)
    except (OverflowError, ValueError):
        pass  # more digits than a float has
    raise _Unfit


def _is_many(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping)


def _listed(item: _Kind | None, value: Any) -> Any:
    if not _is_many(value):
        raise _Unfit
    many = value if isinstance(value, list | tuple) else list(value)
    return many if item is None else [item.take(one) for one in many]


_NUMBERS = {int: _Kind(_whole, "a whole number"), float: _Kind(_number, "a number")}
