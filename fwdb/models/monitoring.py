"""The tables of the schema `monitoring`: what was measured, and when.

A row of `readings` is one moment; the other tables hold what was read then. Counters are stored
as the server shows them, since they began; differences are made when a question is asked, so
that a reset or an eviction can still be seen.
"""

from __future__ import annotations

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

__all__ = [
    "command_samples",
    "counter_samples",
    "pool_samples",
    "readings",
    "session_samples",
    "statement_samples",
    "statement_texts",
]

_SCHEMA = "monitoring"
_MADE = "Made by fwdb."  # downgrades drop only tables with this comment


def _reading() -> Column[int]:
    return Column(
        "reading_id",
        BigInteger,
        ForeignKey("monitoring.readings.reading_id", ondelete="CASCADE"),
        primary_key=True,
    )


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False)


def _count(name: str, *, key: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _number(name: str) -> Column[float]:
    return Column(name, Double, nullable=False)


readings = Table(
    "readings",
    metadata,
    Column("reading_id", BigInteger, Identity(), primary_key=True),
    Column(
        "read_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")
    ),
    Column("kind", Text, nullable=False, comment="process, light or full"),
    Column("process", Text, nullable=False, comment="who took it: application, host, pid"),
    Column("details", JSONB, nullable=False, server_default=text("'{}'")),
    Index("ix_readings_read_at", "read_at"),
    Index("ix_readings_kind_read_at", "kind", "read_at"),
    schema=_SCHEMA,
    comment=f"Moments at which something was measured. {_MADE}",
)

pool_samples = Table(
    "pool_samples",
    metadata,
    _reading(),
    _text("database", key=True),
    Column("capacity", Integer, comment="null: unlimited"),
    Column("in_use", Integer, nullable=False),
    Column("idle", Integer, nullable=False),
    Column("overflow", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("waiting_peak", Integer, nullable=False),
    _count("waits"),
    _number("wait_ms"),
    _count("timeouts"),
    _count("opened"),
    _count("closed"),
    _count("invalidated"),
    Column("wait_counts", ARRAY(BigInteger), nullable=False, comment="of waits, by bucket"),
    Column("hold_counts", ARRAY(BigInteger), nullable=False, comment="of holds, by bucket"),
    _number("hold_ms"),
    Column("dial_counts", ARRAY(BigInteger), nullable=False, comment="of dials, by bucket"),
    _number("dial_ms"),
    schema=_SCHEMA,
    comment=f"Connection pools of the process that took the reading. {_MADE}",
)

session_samples = Table(
    "session_samples",
    metadata,
    _reading(),
    _text("database", key=True),
    _text("database_name", key=True),
    _text("user_name", key=True),
    _text("application", key=True),
    _text("state", key=True),
    Column("sessions", Integer, nullable=False),
    Column("oldest_seconds", Double),
    Column("waiting", Integer),
    Column("blocked", Integer),
    schema=_SCHEMA,
    comment=f"Sessions of the servers. {_MADE}",
)

counter_samples = Table(
    "counter_samples",
    metadata,
    _reading(),
    _text("database", key=True),
    _text("subject", key=True),
    Column("counters", JSONB, nullable=False),
    schema=_SCHEMA,
    comment=f"Counters of the servers since they began, by subject. {_MADE}",
)

statement_samples = Table(
    "statement_samples",
    metadata,
    _reading(),
    _count("user_id", key=True),
    _count("database_id", key=True),
    Column("toplevel", Boolean, primary_key=True, nullable=False),
    _count("query_id", key=True),
    _count("calls"),
    _number("total_ms"),
    _number("squares_ms2"),
    _count("row_count"),
    _count("hit_blocks"),
    _count("read_blocks"),
    _number("read_ms"),
    _count("temp_blocks"),
    _count("wal_bytes"),
    _number("plan_ms"),
    Column("stats_since", DateTime(timezone=True), comment="null before PostgreSQL 17"),
    schema=_SCHEMA,
    comment=f"pg_stat_statements since each entry began. {_MADE}",
)

statement_texts = Table(
    "statement_texts",
    metadata,
    _count("database_id", key=True),
    _count("query_id", key=True),
    _text("statement"),
    Column("first_seen_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    schema=_SCHEMA,
    comment=f"Texts of the statements, stored once. {_MADE}",
)

command_samples = Table(
    "command_samples",
    metadata,
    _reading(),
    _text("command", key=True),
    _text("namespace", key=True),
    _text("shape", key=True),
    _count("calls"),
    _count("errors"),
    _number("total_ms"),
    _number("squares_ms2"),
    _number("max_ms"),
    _count("documents"),
    Column("histogram", ARRAY(BigInteger), nullable=False),
    schema=_SCHEMA,
    comment=f"MongoDB commands of one process since its reading before. {_MADE}",
)
