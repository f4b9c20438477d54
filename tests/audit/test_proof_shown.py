"""Seals where others see them: in metrics and in reports, each a copy that cannot be taken back."""

from __future__ import annotations

from fwdb import reports
from fwdb.database import Database


def test_metrics_and_reports_show_the_newest_head_once_there_is_one(db: Database):
    """Nothing is said of a trail that was never sealed."""
    db.audit.log_read("User", db.users.find()[0].id)
    before = (db.metrics.text(), reports.open_report("audit_trail", db=db))
    db.metrics.close()
    sealed = db.audit.seal()
    db.audit.log_read("User", db.users.find()[0].id)
    del db.__dict__["metrics"]
    text, report = db.metrics.text(), reports.open_report("audit_trail", db=db)

    assert "\nfwdb_audit_seal_info" not in before[0]
    assert "Audit seal" not in dict(before[1].result.sources)
    assert sealed.head is not None
    assert f'fwdb_audit_seal_info{{head="{sealed.head[:16]}"}} 1.0' in text
    assert f"fwdb_audit_sealed_rows {float(sealed.total_rows)}" in text
    assert "fwdb_audit_unsealed_rows 1.0" in text
    assert sealed.head in dict(report.result.sources)["Audit seal"]
    assert "not signed" in dict(report.result.sources)["Audit seal"]
