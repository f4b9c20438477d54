"""kill -9 of the servers under writers: what they were told is written is written.

Three rounds by default, twelve with FWDB_TEST_FULL=1.
"""

from __future__ import annotations

import pytest
from support.crash import rounds
from support.embedded import FULL, shared

__all__ = ["shared"]  # the fixture


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["postgres", "mongodb"])
def test_no_acknowledged_row_is_lost(shared, name):
    """Writers note each row the server has confirmed; after the restart all of them are there."""
    results = rounds(shared, name, 12 if FULL else 3)

    assert all(result.acknowledged > 0 for result in results)
    assert [result.lost for result in results] == [0] * len(results)
    assert all(result.answers for result in results)
    assert len({result.port for result in results}) == 1, "URLs stay good over a crash"
