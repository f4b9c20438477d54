"""What an expression asks for."""

from __future__ import annotations

import re

from fwdb.metrics.series import BY_NAME, Series

_SELECTOR = re.compile(r"\b((?:db|fwdb|database)[_:][\w:]+|up)\b(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def selectors(expr: str) -> list[tuple[str, list[str]]]:
    """The series that `expr` names, each with the labels that it matches."""
    return [(name, _LABEL.findall(inside)) for name, inside in _SELECTOR.findall(expr)]


def series(name: str) -> Series:
    """The series of `name`, which may be a part of a histogram. Raises `KeyError`."""
    return BY_NAME.get(name) or BY_NAME[re.sub(r"_(bucket|count|sum)$", "", name)]
