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
    dict: "a dictionary",
    Mapping: "a dictionary",
}


class _Unfit(Exception):
    """The value is not what the annotation asks for."""


Take = Callable[[Any], Any]  # the value to go on with; raises _Unfit


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an annotation accepts: `take` checks a value, `wanted` says it in words."""

    take: Take
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
    signature: _Signature | None = None  # made at the first call: imports stay quick

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        nonlocal signature
        if signature is None:
            signature = _Signature(function)
        args = signature.check(args, named)
        return function(*args, **named)

    return call


class _Signature:
    """The parameters of a function, ready for checking."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = f"{function.__name__}()"
        parameters = inspect.signature(function).parameters.values()
        hints = _hints(function)
        self._ordered: list[tuple[str, Take | None]] = []
        self._kinds: dict[str, _Kind] = {}
        self._named: dict[str, Take | None] = {}
        self._required: list[tuple[int, str]] = []
        self._open = False
        for place, parameter in enumerate(parameters):
            name = parameter.name
            if parameter.kind is parameter.VAR_KEYWORD:
                self._open = True
                continue
            kind = _kind(hints[name]) if name in hints and name != "self" else None
            take = None
            if kind is not None:
                self._kinds[name] = kind
                take = kind.take
            if parameter.kind is not parameter.KEYWORD_ONLY:
                self._ordered.append((name, take))
            if parameter.kind is not parameter.POSITIONAL_ONLY and name != "self":
                self._named[name] = take
            if parameter.default is parameter.empty:
                by_place = parameter.kind is not parameter.KEYWORD_ONLY
                self._required.append((place if by_place else 1000, name))

    def check(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments by position, checked; those by name are checked in place."""
        given = len(args)
        if given > len(self._ordered):
            own = int(self._ordered[:1] == [("self", None)])
            most, given = len(self._ordered) - own, given - own
            raise ParameterError(
                f"{self._call} takes {most} argument{'s' * (most != 1)} by position, not {given}; "
                "give the others by name."
            )
        changed: dict[int, Any] = {}
        for place, value in enumerate(args):
            name, take = self._ordered[place]
            if take is not None:
                taken = self._taken(name, take, value)
                if taken is not value:
                    changed[place] = taken
        for name, value in named.items():
            take = self._named.get(name, _NONE)
            if take is _NONE:
                if self._open:
                    continue
                raise UnknownName("argument", name, self._named, where=self._call)
            if take is not None:
                named[name] = self._taken(name, take, value)
        for place, name in self._required:
            if place >= given and name not in named:
                wanted = self._kinds[name].wanted if name in self._kinds else "a value"
                raise ParameterError(f"{self._call} needs '{name}'; give {wanted}.", name=name)
        if changed:
            return tuple(changed.get(place, value) for place, value in enumerate(args))
        return args

    def _taken(self, name: str, take: Take, value: Any) -> Any:
        try:
            return take(value)
        except _Unfit:
            kind = self._kinds[name]
        if kind.choices and isinstance(value, str):
            raise UnknownName(name.replace("_", " "), value, kind.choices)
        raise ParameterError(
            f"{self._call}: '{name}' is {shown(value)}; give {kind.wanted}.", name=name
        )


def _none(value: Any) -> Any:
    raise AssertionError("never called")


_NONE: Take = _none


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
    if origin is Annotated:
        return _annotated(_kind(parts[0]), hint.__metadata__)
    if origin in (Union, types.UnionType):
        return _union(
            [_kind(part) for part in parts if part is not type(None)], type(None) in parts
        )
    if origin is Literal:
        return _choice(parts)
    if hint in (int, float):
        return _Kind(_whole, "a whole number") if hint is int else _Kind(_number, "a number")
    if origin is collections.abc.Callable:
        return _Kind(_only(callable), "a function")
    if origin in (Sequence, list):
        item = _kind(parts[0])
        wanted = f"a list of {'values' if item is None else item.wanted}"
        return _Kind(functools.partial(_listed, item), wanted)
    if origin in (Iterable, Iterator):
        return _Kind(_only(_is_many), "a list")
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None
    wanted = _WORDS.get(kind, f"a {kind.__name__}")
    if issubclass(kind, date):  # pandas' NaT is a datetime, and unlike itself
        return _Kind(_only(lambda value: isinstance(value, kind) and value == value), wanted)
    return _Kind(_only(lambda value: isinstance(value, kind)), wanted)


def _annotated(kind: _Kind | None, metadata: tuple[Any, ...]) -> _Kind | None:
    for rule in metadata:
        if isinstance(rule, tuple):
            kind = _choice(rule)
        elif kind is not None and isinstance(rule, str):
            kind = _Kind(kind.take, rule)
        elif kind is not None and isinstance(rule, Range):
            kind = _Kind(_only(rule.__contains__, kind.take), f"{kind.wanted} {rule}")
        elif kind is not None:
            kind = _Kind(_only(rule, kind.take), kind.wanted)
    return kind


def _choice(choices: tuple[Any, ...]) -> _Kind:
    return _Kind(
        _only(lambda value: isinstance(value, str) and value in choices),
        f"one of {', '.join(choices)}",
        choices,
    )


def _union(kinds: list[_Kind | None], optional: bool) -> _Kind | None:
    found = [kind for kind in kinds if kind is not None]
    if len(found) < len(kinds):
        return None
    takes = tuple(kind.take for kind in found)

    def take(value: Any) -> Any:
        if value is None and optional:
            return None
        for one in takes:
            try:
                return one(value)
            except _Unfit:
                continue
        raise _Unfit

    wanted = list(dict.fromkeys(kind.wanted for kind in found))
    words = " or ".join([", ".join(wanted[:-1]), wanted[-1]] if wanted[1:] else wanted)
    return _Kind(take, words, found[0].choices)


def _only(test: Callable[[Any], bool], inner: Take | None = None) -> Take:
    """What passes `test`, after `inner` took it."""

    def take(value: Any) -> Any:
        taken = value if inner is None else inner(value)
        if test(taken):
            return taken
        raise _Unfit

    return take


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
