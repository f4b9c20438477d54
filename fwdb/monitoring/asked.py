"""What questions are asked with, and the sentences for what cannot be asked."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from fwdb.errors import ParameterError, UnknownName

Time = str | datetime | date | timedelta

DATABASES = ("postgres", "mongodb")
APPLICATION = "fwdb-monitor"


def known(database: str) -> str:
    """`database`, if there is such a one."""
    if database not in DATABASES:
        raise UnknownName("database", database, DATABASES)
    return database


def one_or_more(top: int) -> None:
    """Refuses a `top` that asks for nothing."""
    if top < 1:
        raise ParameterError(f"'top' is {top}; give 1 or more.", name="top")


def positive(value: float, name: str = "live_seconds") -> float:
    """`value`, if it is above 0."""
    if not value > 0:
        raise ParameterError(f"'{name}' is {value}; give a number above 0.", name=name)
    return value
