"""What becomes of old readings: one per hour is kept for a while, then none."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from fwdb.models import monitoring as tables
from fwdb.stores.timing import OWN

# Readings that one turn deals with: some seconds of work at most, on a history that was left
# alone for months. What is left waits for the next turn.
MOST = 1000

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

_EXPIRED = f"""
    DELETE FROM monitoring.readings WHERE reading_id IN (
        SELECT reading_id FROM monitoring.readings
        WHERE read_at < clock_timestamp() - make_interval(secs => :age)
        ORDER BY reading_id LIMIT :most
    ) {OWN}
"""

_UNUSED_TEXTS = f"""
    DELETE FROM monitoring.statement_texts AS t WHERE NOT EXISTS (
        SELECT FROM monitoring.statement_samples AS s
        WHERE s.query_id = t.query_id AND s.database_id = t.database_id
    ) {OWN}
"""

# Of each process and kind the last reading of an hour stays: counters are since their beginning,
# so differences across the removed ones stay what they were.
_SUPERFLUOUS = f"""
    SELECT reading_id, kept FROM (
        SELECT reading_id, last_value(reading_id) OVER (
            PARTITION BY process, kind, date_trunc('hour', read_at, 'UTC')
            ORDER BY read_at, reading_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS kept
        FROM monitoring.readings
        WHERE read_at < date_trunc(
            'hour', clock_timestamp() - make_interval(secs => :age), 'UTC'
        )
    ) AS r
    WHERE reading_id <> kept
    ORDER BY reading_id LIMIT :most {OWN}
"""

_REMOVED = """
    unnest(CAST(:removed AS bigint[]), CAST(:kept AS bigint[])) AS r (reading_id, kept)
"""

# A pool's state is that of a moment: the kept one gets the fullest moment of the hour.
_PEAKS = f"""
    UPDATE monitoring.pool_samples AS p SET
        in_use = greatest(p.in_use, m.in_use),
        overflow = greatest(p.overflow, m.overflow),
        waiting = greatest(p.waiting, m.waiting)
    FROM (
        SELECT r.kept, s.database, max(s.in_use) AS in_use, max(s.overflow) AS overflow,
            max(s.waiting) AS waiting
        FROM {_REMOVED} JOIN monitoring.pool_samples AS s USING (reading_id)
        GROUP BY r.kept, s.database
    ) AS m
    WHERE p.reading_id = m.kept AND p.database = m.database {OWN}
"""


# The kept reading stands for the time of all of them.
_BEGINNINGS = f"""
    UPDATE monitoring.readings AS k SET
        details = k.details || jsonb_build_object('commands_since', m.commands_since)
    FROM (
        SELECT r.kept, min(s.details ->> 'commands_since') AS commands_since
        FROM {_REMOVED} JOIN monitoring.readings AS s USING (reading_id)
        GROUP BY r.kept
    ) AS m
    WHERE k.reading_id = m.kept AND m.commands_since < k.details ->> 'commands_since' {OWN}
"""


def expire(connection: Connection, days: float, *, most: int | None = None) -> int:
    """Remove readings older than `days`, and texts nobody refers to; readings removed."""
    removed = connection.execute(sa.text(_EXPIRED), {"age": 86400 * days, "most": most}).rowcount
    if removed:
        connection.execute(sa.text(_UNUSED_TEXTS))
    return int(removed)


def thin(connection: Connection, days: float, *, most: int | None = None) -> int:
    """Leave one reading per hour, process and kind of those older than `days`; readings removed.

    Counters since a beginning lose nothing. Commands, which are stored as what came since the
    reading before, are added to those of the kept reading.
    """
    found = connection.execute(sa.text(_SUPERFLUOUS), {"age": 86400 * days, "most": most}).all()
    if not found:
        return 0
    pairs = {"removed": [row.reading_id for row in found], "kept": [row.kept for row in found]}
    connection.execute(sa.text(_PEAKS), pairs)
    connection.execute(sa.text(_BEGINNINGS), pairs)
    connection.execute(sa.text(_added_up(tables.command_samples)), pairs)
    connection.execute(
        sa.text(f"DELETE FROM monitoring.readings WHERE reading_id = ANY(:removed) {OWN}"),
        {"removed": pairs["removed"]},
    )
    return len(found)


def _added_up(table: sa.Table) -> str:
    """Adds the rows of removed readings to those of the kept ones, column by column.

    Columns whose name begins with ``max_`` keep the greatest value, arrays are added cell by cell.
    """
    keys = [c.name for c in table.primary_key if c.name != "reading_id"]
    values = [c for c in table.columns if not c.primary_key]
    arrays = [c.name for c in values if isinstance(c.type, ARRAY)]
    shown = ", ".join(keys)
    sums = ", ".join(
        f"CAST({'max' if c.name.startswith('max_') else 'sum'}({c.name}) AS "
        f"{c.type.compile(dialect=_DIALECT)}) AS {c.name}"
        for c in values
        if c.name not in arrays
    )
    cells = "".join(
        f", {name} AS (SELECT kept, {shown}, array_agg(CAST(n AS bigint) ORDER BY place) AS {name} "
        f"FROM (SELECT kept, {shown}, place, sum(n) AS n FROM parts CROSS JOIN "
        f"unnest({name}) WITH ORDINALITY AS cell (n, place) GROUP BY kept, {shown}, place) AS c "
        f"GROUP BY kept, {shown})"
        for name in arrays
    )
    joins = "".join(f" JOIN {name} USING (kept, {shown})" for name in arrays)
    names = ", ".join(c.name for c in values)
    changes = ", ".join(f"{c.name} = excluded.{c.name}" for c in values)
    return f"""
        WITH parts AS (
            SELECT r.kept, s.* FROM {_REMOVED} JOIN {table.fullname} AS s USING (reading_id)
            UNION ALL
            SELECT s.reading_id, s.* FROM {table.fullname} AS s
            WHERE s.reading_id = ANY(CAST(:kept AS bigint[]))
        ), sums AS (SELECT kept, {shown}, {sums} FROM parts GROUP BY kept, {shown}){cells}
        INSERT INTO {table.fullname} (reading_id, {shown}, {names})
        SELECT kept, {shown}, {names} FROM sums{joins}
        ON CONFLICT (reading_id, {shown}) DO UPDATE SET {changes} {OWN}
    """
