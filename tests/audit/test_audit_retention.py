"""Retention of the audit trail: old rows go in batches, younger ones and writers stay."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.engine import make_url
from support.sql import do

from fwdb import errors
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

NOW = datetime.now(UTC)

# Rows of an existing table go one by one; months of our own are in test_retention.py.
pytestmark = pytest.mark.parametrize("made", ["existing"], indirect=True)


@pytest.fixture
def put_old(put):
    """Writes a row for each age in days."""
    return lambda ages: put([{"created_at": NOW - timedelta(days=age)} for age in ages])


def test_rows_older_than_a_year_go_and_younger_ones_stay(audit, put_old, count):
    """The counts tell what was there, what went and what is oldest now."""
    put_old([400, 366, 365.01, 364.99, 1])
    heard: list[str] = []
    kept = audit.retain(batch=2, progress=heard.append)

    assert (kept.expired, kept.removed, kept.batches) == (3, 3, 2)
    assert kept.oldest_left_at == NOW - timedelta(days=364.99)
    assert count() == 2
    assert heard == ["removed 2 of 3 audit rows", "removed 3 of 3 audit rows"]
    assert audit.retain().removed == 0


def test_a_dry_run_counts_and_removes_nothing(audit, put_old, count):
    """`expired` is what a real run would remove."""
    put_old([400, 380, 10])
    kept = audit.retain(dry_run=True)

    assert (kept.expired, kept.removed) == (2, 0)
    assert count() == 3
    assert audit.retain(5, dry_run=True).expired == 3


def test_writers_go_on_while_old_rows_are_removed(audit, put_old, count):
    """Each batch is a short transaction of its own, so that a writer gets in between."""
    put_old([400.0] * 3000)
    batches = threading.Event()
    done = threading.Event()
    written: list[str] = []

    def write() -> None:
        batches.wait(10)
        while not done.is_set():
            written.append(audit.log_read("User", uuid.uuid4()).id)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    seen: list[int] = []

    def progress(_: str) -> None:
        batches.set()
        seen.append(len(written))

    kept = audit.retain(batch=100, progress=progress)
    done.set()
    writer.join()

    assert kept.batches == 30
    assert seen[-1] > 0, "the writer wrote nothing before the last batch"
    assert count() == len(written)


def test_removal_without_permission_names_the_grant(store, put_old, count):
    """A role that may only write is told what it lacks before anything is done."""
    role = f"writer_{uuid.uuid4().hex[:8]}"
    do(
        store,
        f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA audit TO {role};"
        f" GRANT SELECT, INSERT ON audit.audit_logs TO {role}",
    )
    put_old([400])
    try:
        limited = PostgresStore(_as_role(store, role))
        try:
            with pytest.raises(errors.PermissionDenied, match=rf'GRANT DELETE .* TO "{role}"'):
                Audit(limited).retain()
            assert Audit(limited).retain(dry_run=True).expired == 1
        finally:
            limited.close()
        assert count() == 1
    finally:
        do(store, f"DROP OWNED BY {role}; DROP ROLE {role}")


def _as_role(store: PostgresStore, role: str) -> str:
    """A URL whose sessions act as `role`."""
    url = make_url(store.url).set(drivername="postgresql")
    return url.update_query_dict({"options": f"-c role={role}"}).render_as_string(
        hide_password=False
    )


@pytest.mark.parametrize("days", [0, -1, 1.5, True, "365"])
def test_days_are_a_whole_number(audit, days):
    """A slip must not remove the whole trail."""
    with pytest.raises(errors.ParameterError, match=r"'older_than_days' is .* whole number"):
        audit.retain(days)


def test_removal_inside_a_transaction_is_refused(audit, store):
    """Batches that cannot commit would be one long transaction after all."""
    with store.transaction(), pytest.raises(errors.ParameterError, match="outside a transaction"):
        audit.retain()
