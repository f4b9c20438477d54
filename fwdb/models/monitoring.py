"""The tables of the schema `monitoring`: what was measured, and when.

A row of `readings` is one moment; the other tables hold what was read then. Counters are stored
as the server shows them, since they began; differences are made when a question is asked, so
that a reset or an eviction can still be seen.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from fwdb.models.entities import metadata


def _table(name: str, about: str, *parts: Any) -> Table:
    # Downgrades drop only tables with this comment.
    return Table(name, metadata, *parts, schema="monitoring", comment=f"{about} Made by fwdb.")


def _reading() -> Column[int]:
    target = ForeignKey("monitoring.readings.reading_id", ondelete="CASCADE")
    return Column("reading_id", BigInteger, target, primary_key=True)


def _key(names: str, kind: Any = Text) -> list[Column[Any]]:
    return [
        Column(name, kind, primary_key=True, nullable=False, autoincrement=False)
        for name in names.split()
    ]


def _columns(kind: Any, names: str) -> list[Column[Any]]:
    return [Column(name, kind, nullable=False) for name in names.split()]


_TIME = DateTime(timezone=True)

readings = _table(
    "readings",
    "Moments at which something was measured.",
    Column("reading_id", BigInteger, Identity(), primary_key=True),
    Column("read_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("kind", Text, nullable=False, comment="process, light or full"),
    Column("process", Text, nullable=False, comment="who took it: application, host, pid"),
    Column("details", JSONB, nullable=False, server_default=text("'{}'")),
    Index("ix_readings_read_at", "read_at"),
    Index("ix_readings_kind_read_at", "kind", "read_at"),
)

pool_samples = _table(
    "pool_samples",
    "Connection pools of the process that took the reading.",
    _reading(),
    *_key("database"),
    Column("capacity", Integer, comment="null: unlimited"),
    *_columns(Integer, "in_use idle overflow waiting waiting_peak"),
    *_columns(BigInteger, "waits timeouts opened closed invalidated"),
    *_columns(Double, "wait_ms hold_ms dial_ms"),
    Column("wait_counts", ARRAY(BigInteger), nullable=False, comment="of waits, by bucket"),
    Column("hold_counts", ARRAY(BigInteger), nullable=False, comment="of holds, by bucket"),
    Column("dial_counts", ARRAY(BigInteger), nullable=False, comment="of dials, by bucket"),
)

session_samples = _table(
    "session_samples",
    "Sessions of the servers.",
    _reading(),
    *_key("database database_name user_name application state"),
    *_columns(Integer, "sessions"),
    Column("oldest_seconds", Double),
    Column("waiting", Integer),
    Column("blocked", Integer),
)

counter_samples = _table(
    "counter_samples",
    "Counters of the servers since they began, by subject.",
    _reading(),
    *_key("database subject"),
    *_columns(JSONB, "counters"),
)

statement_samples = _table(
    "statement_samples",
    "pg_stat_statements since each entry began.",
    _reading(),
    *_key("user_id database_id query_id", BigInteger),
    *_key("toplevel", Boolean),
    *_columns(BigInteger, "calls row_count hit_blocks read_blocks temp_blocks wal_bytes"),
    *_columns(Double, "total_ms squares_ms2 read_ms plan_ms"),
    Column("stats_since", _TIME, comment="null before PostgreSQL 17"),
)

statement_texts = _table(
    "statement_texts",
    "Texts of the statements, stored once.",
    *_key("database_id query_id", BigInteger),
    *_columns(Text, "statement"),
    Column("first_seen_at", _TIME, nullable=False, server_default=text("now()")),
)

command_samples = _table(
    "command_samples",
    "MongoDB commands of one process since its reading before.",
    _reading(),
    *_key("command namespace shape"),
    *_columns(BigInteger, "calls errors documents"),
    *_columns(Double, "total_ms squares_ms2 max_ms"),
    *_columns(ARRAY(BigInteger), "histogram"),
)
