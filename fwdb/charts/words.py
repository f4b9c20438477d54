"""Figures, times and statements as a reader sees them, the same in charts, pages and notebooks."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

import pandas as pd

from fwdb.arguments import checks_arguments

DATABASES = {"postgres": "PostgreSQL", "mongodb": "MongoDB"}
QUOTED = 60  # characters of a statement inside a sentence


def named(database: object) -> str:
    """The name of a database as a reader knows it."""
    return DATABASES.get(str(database), str(database))


def figure(value: Any, unit: str = "") -> str:
    """A value with its unit: `41 %`, `230 ms`, `1 900`, `13.6 MB`; an em dash for none."""
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if unit == "ratio":
        # 0.99996 is not 1: something was missed.
        return "over 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"
    if unit == "percent":
        return share(float(value))
    if unit == "bytes":
        return amount(float(value))
    size, whole = abs(float(value)), float(value).is_integer()
    digits = 0 if size >= 100 or whole else 1 if size >= 10 else 2
    text = number(value) if digits == 0 else f"{value:.{digits}f}"
    name = {"seconds": "s", "count": ""}.get(unit, unit)
    return f"{text}\u202f{name}" if name else text


def amount(size: float) -> str:
    """A number of bytes in the unit that leaves two or three digits: `64 MB`.

    >>> amount(81_250_027).replace("\\u202f", " ")
    '81 MB'
    """
    scales = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (0.0, "B"))
    scale, unit = next((s, u) for s, u in scales if abs(size) >= s)
    scaled = size / (scale or 1)
    return f"{scaled:.{int(scale > 0 and abs(scaled) < 9.95)}f}\u202f{unit}"


@checks_arguments
def number(value: float) -> str:
    """A count as people read it, with thin spaces: 12 345.

    >>> number(1900).replace("\\u202f", " ")
    '1 900'
    """
    return f"{round(value):,}".replace(",", "\u202f")


def compact(value: float, *, most: float = 1e5) -> str:
    """A count for a narrow place: from `most` on in thousands, millions or billions."""
    if value < most:
        return number(value)
    if value >= 1e14:
        return f"{value:.0e}"
    size, unit = next((s, u) for s, u in ((1e9, "bn"), (1e6, "m"), (0, "k")) if value >= s)
    return f"{number(value / (size or 1e3))} {unit}"


@checks_arguments
def share(value: float) -> str:
    """A percentage without false precision: under ten with one digit, else whole."""
    if value == 0:
        return "0 %"
    if value < 0.1:
        return "under 0.1 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 sample`, `12 samples`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def more(count: int, text: str) -> str:
    """`text` with the count in place of ``{}``; nothing where there are none."""
    return text.format(number(count)) if count > 0 else ""


def times(ratio: float, digits: int = 1) -> str:
    """How many times as much: `12`, `1.4`."""
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.{digits}f}"


def milliseconds(value: float) -> str:
    """A duration in the unit people would use: `250 µs`, `12 ms`, `1.3 s`, `2 min`."""
    for limit, unit, size in ((1, "µs", 0.001), (1000, "ms", 1), (120_000, "s", 1000)):
        if value < limit * 0.9995:
            scaled = value / size
            return f"{scaled:.{int(scaled < 9.95 and scaled != round(scaled))}f} {unit}"
    return f"{value / 60_000:.0f} min"


@checks_arguments
def duration(ms: float) -> str:
    """A bound as people say it: `0.25 ms`, `100 ms`, `2.5 s`, `1 min`.

    >>> [duration(bound) for bound in (0.25, 100, 2500, 60000)]
    ['0.25 ms', '100 ms', '2.5 s', '1 min']
    """
    if ms >= 60_000:
        return f"{ms / 60_000:g} min"
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def utc(times: pd.Series[Any] | pd.Timestamp) -> Any:
    """Times as matplotlib takes them: UTC without a zone."""
    if isinstance(times, pd.Timestamp):
        return times.tz_convert("UTC").tz_localize(None) if times.tzinfo else times
    return pd.to_datetime(times, utc=True).dt.tz_localize(None)


@checks_arguments
def window_text(since: pd.Timestamp | None, until: pd.Timestamp | None) -> str:
    """`2026-11-17 08:00–12:00 UTC`, with the second date when it is another day; else nothing."""
    if since is None or until is None:
        return ""
    start, end = utc(since), utc(until)
    clock = "%H:%M:%S" if end - start < pd.Timedelta(minutes=5) else "%H:%M"
    last = f"{end:{clock}}" if start.date() == end.date() else f"{end:%Y-%m-%d {clock}}"
    return f"{start:%Y-%m-%d {clock}}–{last} UTC"


def clean(text: object) -> str:
    """`text` on one line, without the control characters an SVG cannot hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def sentence(text: object) -> str:
    """A remark as a sentence of its own: a capital, a full stop."""
    said = str(text)
    return said[:1].upper() + said[1:] + ("" if said.endswith(".") else ".")


@checks_arguments
def shorten(statement: str) -> str:
    """A statement as one line to recognise it by: comments and long column lists left out.

    >>> shorten("SELECT id, name, email FROM shared.users /* fwdb */ WHERE id = $1")
    'SELECT … FROM shared.users WHERE id = $1'
    """
    text = re.sub(r"/\*.*?\*/", " ", statement, flags=re.DOTALL)
    text = clean(re.sub(r"--[^\n]*", " ", text))
    text = re.sub(r"(?i)^(select(?: distinct)?) .{12,}? (from) ", r"\1 … \2 ", text)
    return re.sub(r"(?i)^(insert into \S+) ?\(.*$", r"\1 …", text) or clean(statement)


def quoted(statement: object) -> str:
    """A statement inside a sentence, set as code."""
    text = shorten(str(statement)).replace("`", "'")
    return f"`{text if len(text) <= QUOTED else text[: QUOTED - 1].rstrip() + '…'}`"
