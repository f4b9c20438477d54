"""Figures and column names as a reader sees them, the same in notebooks and pages."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pandas as pd

from fwdb.charts import number, share

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
        return _bytes(float(value))
    digits = 0 if size >= 100 or float(value).is_integer() else 1 if size >= 10 else 2
    text = number(value) if digits == 0 else f"{value:.{digits}f}"
    names = {"seconds": "s", "count": "", "": ""}
    name = names.get(unit, unit)
    return f"{text}\u202f{name}" if name else text


def _bytes(value: float) -> str:
    for unit, limit in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if abs(value) >= limit:
            return f"{value / limit:.3g}\u202f{unit}"
    return f"{value:.0f}\u202fbytes"


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
