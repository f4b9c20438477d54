"""The seal of the audit trail as series: Prometheus then keeps each head beside its time."""

from __future__ import annotations

from datetime import UTC, datetime

from fwdb.audit import sealing
from fwdb.metrics.probes import Values
from fwdb.stores import PostgresStore

_HEAD_DIGITS = 16  # 64 bits: enough to tell heads apart, short enough for a label


def ask(store: PostgresStore) -> Values:
    """The newest seal; nothing where nothing was ever sealed."""
    found = sealing.state(store)
    if found is None or found.head is None or found.sealed_at is None:
        return {}
    age = (datetime.now(UTC) - found.sealed_at).total_seconds()
    return {
        "fwdb_audit_seal_info": {(found.head[:_HEAD_DIGITS],): 1.0},
        "fwdb_audit_sealed_rows": {(): float(found.total_rows)},
        "fwdb_audit_unsealed_rows": {(): float(found.unsealed_rows)},
        "fwdb_audit_seal_age_seconds": {(): max(0.0, age)},
    }
