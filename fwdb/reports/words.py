"""Figures and column names as a reader sees them, the same in notebooks and pages."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pandas as pd

from fwdb.charts import number, share, shorten

QUOTED = 60  # characters of a statement inside a sentence
_SUFFIXES = {
    "_ms": "ms",
    "_seconds": "s",
    "_bytes": "bytes",
    "_percent": "%",
}


def figure(value: Any, unit: str = "") -> str:
    """A value with its unit: `41 %`, `230 ms`, `1 900`, `13.6 MB`; an em dash for none."""
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    size = abs(float(value))
    if unit == "ratio":
        # 0.99996 is not 1: something was missed.
        return "over 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"
    if unit == "percent":
        return share(float(value))
    if unit == "bytes":
        return amount(float(value))
    digits = 0 if size >= 100 or float(value).is_integer() else 1 if size >= 10 else 2
    text = number(value) if digits == 0 else f"{value:.{digits}f}"
    names = {"seconds": "s", "count": "", "": ""}
    name = names.get(unit, unit)
    return f"{text}\u202f{name}" if name else text


def amount(size: float) -> str:
    """A number of bytes in the unit that leaves two or three digits: `64 MB`.

    >>> amount(81_250_027).replace("\\u202f", " ")
    '81 MB'
    """
    scale, unit = next(
        ((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if abs(size) >= s), (1.0, "B")
    )
    number = size / scale
    text = f"{number:.1f}" if scale > 1 and abs(number) < 9.95 else f"{number:.0f}"
    return f"{text}\u202f{unit}"


def heading(column: str) -> str:
    """A column's name for people: `mean_ms` is `mean (ms)`, `sampled_at` is `sampled (UTC)`."""
    for suffix, unit in _SUFFIXES.items():
        if column.endswith(suffix):
            return f"{column.removesuffix(suffix).replace('_', ' ')} ({unit})"
    if column.endswith("_at"):
        return f"{column.removesuffix('_at').replace('_', ' ')} (UTC)"
    return column.replace("_", " ")


def cell(value: Any) -> str:
    """A table's cell; missing values are blank, long texts are cut."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    text = figure(value)
    return text if len(text) <= 160 else text[:159] + "…"


def sentence(text: str) -> str:
    """A remark as a sentence of its own: a capital, a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def times(count: int, one: str, many: str = "") -> str:
    """`1 caller`, `1 200 callers`."""
    return f"{figure(count)} {one if count == 1 else many or one + 's'}"


def quoted(statement: str, most: int = QUOTED) -> str:
    """A statement inside a sentence, set as code."""
    text = shorten(statement).replace("`", "'")
    return f"`{text if len(text) <= most else text[: most - 1].rstrip() + '…'}`"
