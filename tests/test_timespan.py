"""The reader of times that people type."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pandas as pd
import pytest

from fwdb.errors import ParameterError
from fwdb.timespan import moment, span

EAST = timezone(timedelta(hours=5))
NOW = datetime(2026, 11, 8, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("now", NOW),
        ("45s", NOW - timedelta(seconds=45)),
        ("30m", NOW - timedelta(minutes=30)),
        ("24h", NOW - timedelta(days=1)),
        (" 7d ", NOW - timedelta(days=7)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2w", NOW - timedelta(weeks=2)),
        (timedelta(hours=1), NOW - timedelta(hours=1)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        (date(2026, 11, 1), datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T00:00Z", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01t00:00:00.5z", datetime(2026, 11, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-11-01 02:00+02:00", datetime(2026, 11, 1, tzinfo=UTC)),
        (datetime(2026, 11, 1, 5, tzinfo=EAST), datetime(2026, 11, 1, tzinfo=UTC)),
        (pd.Timestamp("2026-11-01", tz="UTC"), datetime(2026, 11, 1, tzinfo=UTC)),
    ],
)
def test_spans_dates_and_iso_times_become_utc(value, expected):
    """Whatever is typed comes back as a plain datetime in UTC."""
    found = moment(value, now=NOW)

    assert found == expected
    assert type(found) is datetime
    assert found.tzinfo is UTC


WRONG = [
    "31 days ago",
    "",
    "7",
    "d",
    "-7d",
    "7 fortnights",
    "2026-13-01",
    "99999999999999d",
    7,
    None,
]


@pytest.mark.parametrize("value", [*WRONG, "١d", pd.NaT])
def test_anything_else_is_refused_with_what_to_write(value):
    """The sentence holds the parameter, the value and both forms that work."""
    with pytest.raises(ParameterError) as caught:
        moment(value, now=NOW)

    given = f"'{value}'" if isinstance(value, str) else value
    assert str(caught.value) in {
        f"'since' is {given}; give an ISO time (2026-11-01T00:00Z) or a span (24h, 7d).",
        f"'since' is {given}; give a span such as 30m, 24h or 7d.",
    }
    assert caught.value.name == "since"


@pytest.mark.parametrize("value", ["2026-11-01T00:00", datetime(2026, 11, 1)])
def test_a_time_without_a_zone_is_refused(value):
    """It would mean another moment on another computer."""
    with pytest.raises(ParameterError, match=r"'until' is .* without a zone"):
        moment(value, now=NOW, name="until")


def test_a_span_alone_is_a_length_of_time():
    """`span` reads the same lengths for retention and intervals."""
    assert span("90m") == timedelta(minutes=90)
    with pytest.raises(ParameterError, match="'keep' is 'soon'"):
        span("soon", name="keep")
