"""monitoring.*: readings of pools, sessions, counters, statements and commands."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from fwdb.migrating import operations as fw

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# In the order in which they can be dropped.
TABLES = (
    "command_samples",
    "statement_texts",
    "statement_samples",
    "counter_samples",
    "session_samples",
    "pool_samples",
    "readings",
)


def upgrade() -> None:
    fw.table(
        "monitoring.readings",
        sa.Column("reading_id", sa.BigInteger, sa.Identity(), primary_key=True),
        _at("read_at", "clock_timestamp()"),
        sa.Column("kind", sa.Text, nullable=False, comment="process, light or full"),
        sa.Column(
            "process", sa.Text, nullable=False, comment="who took it: application, host, pid"
        ),
        sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
        about="Moments at which something was measured.",
        key="reading_id",
    )
    fw.index("ix_readings_read_at", "monitoring.readings", ["read_at"])
    fw.index("ix_readings_kind_read_at", "monitoring.readings", ["kind", "read_at"])
    fw.table(
        "monitoring.pool_samples",
        _reading(),
        _text("database", key=True),
        sa.Column("capacity", sa.Integer, comment="null: unlimited"),
        *(
            sa.Column(name, sa.Integer, nullable=False)
            for name in ("in_use", "idle", "overflow", "waiting", "waiting_peak")
        ),
        _count("waits"),
        _number("wait_ms"),
        _count("timeouts"),
        _count("opened"),
        _count("closed"),
        _count("invalidated"),
        sa.Column(
            "wait_counts", ARRAY(sa.BigInteger), nullable=False, comment="of waits, by bucket"
        ),
        sa.Column(
            "hold_counts", ARRAY(sa.BigInteger), nullable=False, comment="of holds, by bucket"
        ),
        _number("hold_ms"),
        sa.Column(
            "dial_counts", ARRAY(sa.BigInteger), nullable=False, comment="of dials, by bucket"
        ),
        _number("dial_ms"),
        about="Connection pools of the process that took the reading.",
        key="reading_id",
    )
    fw.table(
        "monitoring.session_samples",
        _reading(),
        *(
            _text(name, key=True)
            for name in ("database", "database_name", "user_name", "application", "state")
        ),
        sa.Column("sessions", sa.Integer, nullable=False),
        sa.Column("oldest_seconds", sa.Double),
        sa.Column("waiting", sa.Integer),
        sa.Column("blocked", sa.Integer),
        about="Sessions of the servers.",
        key="reading_id",
    )
    fw.table(
        "monitoring.counter_samples",
        _reading(),
        _text("database", key=True),
        _text("subject", key=True),
        sa.Column("counters", JSONB, nullable=False),
        about="Counters of the servers since they began, by subject.",
        key="reading_id",
    )
    fw.table(
        "monitoring.statement_samples",
        _reading(),
        _count("user_id", key=True),
        _count("database_id", key=True),
        sa.Column("toplevel", sa.Boolean, primary_key=True, nullable=False),
        _count("query_id", key=True),
        _count("calls"),
        _number("total_ms"),
        _number("squares_ms2"),
        _count("row_count"),
        _count("hit_blocks"),
        _count("read_blocks"),
        _number("read_ms"),
        _count("temp_blocks"),
        sa.Column("stats_since", sa.DateTime(timezone=True), comment="null before PostgreSQL 17"),
        about="pg_stat_statements since each entry began.",
        key="reading_id",
    )
    fw.table(
        "monitoring.statement_texts",
        _count("database_id", key=True),
        _count("query_id", key=True),
        _text("statement"),
        _at("first_seen_at", "now()"),
        about="Texts of the statements, stored once.",
        key="query_id",
    )
    fw.table(
        "monitoring.command_samples",
        _reading(),
        *(_text(name, key=True) for name in ("command", "namespace", "shape")),
        _count("calls"),
        _count("errors"),
        _number("total_ms"),
        _number("squares_ms2"),
        _number("max_ms"),
        _count("documents"),
        sa.Column("histogram", ARRAY(sa.BigInteger), nullable=False),
        about="MongoDB commands of one process since its reading before.",
        key="reading_id",
    )


def downgrade() -> None:
    for name in TABLES:
        fw.drop_table(f"monitoring.{name}")


def _reading() -> sa.Column[int]:
    return sa.Column(
        "reading_id",
        sa.BigInteger,
        sa.ForeignKey("monitoring.readings.reading_id", ondelete="CASCADE"),
        primary_key=True,
    )


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=key, nullable=False)


def _count(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


def _at(name: str, default: str) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=False, server_default=sa.text(default)
    )
