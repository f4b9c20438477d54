"""A report run leaves a file and opens no port; a gateway that is away costs a line in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from support.receivers import receiving

from fwdb import reports
from fwdb.errors import ReportError
from fwdb.metrics import batch
from fwdb.metrics.series import REPORT_SERIES
from fwdb.reports import run

NAMES = {series.name for series in REPORT_SERIES}


def values(text: str) -> dict[str, float]:
    """The one sample of each series."""
    return {s.name: s.value for family in parse(text) for s in family.samples}


@dataclass
class Gateway:
    """Takes what is pushed, as a Pushgateway does."""

    url: str = ""
    status: int = 200
    pushed: list[tuple[str, str, str]] = field(default_factory=list)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    found = Gateway()

    def take(request: BaseHTTPRequestHandler, body: str) -> int:
        found.pushed.append((request.command, request.path, body))
        return found.status

    with receiving(take) as port:
        found.url = f"http://127.0.0.1:{port}"
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Exception | None]:
    """Reports that end at once, in place of a notebook: well, or with the error given."""
    outcome: dict[str, Exception | None] = {"error": None}

    def execute(notebook: Path, executed: Path, given: object, space: Path, *_: object) -> None:
        executed.write_text("{}")
        if outcome["error"] is not None:
            raise outcome["error"]
        folder = space / "pool"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"verdict": "ok", "summary": "Fine."}))
        (folder / "report.html").write_text("")

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "index", lambda _: "")
    return outcome


def test_a_run_leaves_only_what_is_about_the_run(quick, tmp_path):
    """Two runs with the same histograms would be one series, of which data is lost."""
    reports.report("pool", out=tmp_path)

    found = values((tmp_path / "pool" / "metrics.prom").read_text())
    assert set(found) == NAMES
    assert found["fwdb_report_last_run_success"] == 1
    last, success = "last_run_timestamp_seconds", "last_success_timestamp_seconds"
    assert found[f"fwdb_report_{last}"] == found[f"fwdb_report_{success}"] > 1.7e9
    assert found["fwdb_report_last_run_duration_seconds"] >= 0


def test_a_run_that_fails_keeps_the_time_of_the_last_success(quick, tmp_path):
    """In both folders: the report of the earlier run stays, and says that the last one failed."""
    reports.report("pool", out=tmp_path)
    before = values((tmp_path / "pool" / "metrics.prom").read_text())
    quick["error"] = ReportError("broken")
    with pytest.raises(ReportError):
        reports.report("pool", out=tmp_path)

    for folder in ("pool", "pool.failed"):
        found = values((tmp_path / folder / "metrics.prom").read_text())
        success = "fwdb_report_last_success_timestamp_seconds"
        assert found["fwdb_report_last_run_success"] == 0
        assert found[success] == before[success]
        last = "fwdb_report_last_run_timestamp_seconds"
        assert found[last] > before[last]


def test_without_a_success_there_is_no_time_of_one(quick, tmp_path):
    """Absent, not 0: that would be in 1970. A file that was tampered with has none either."""
    quick["error"] = ReportError("broken")
    with pytest.raises(ReportError):
        reports.report("pool", out=tmp_path)

    found = values((tmp_path / "pool.failed" / "metrics.prom").read_text())
    assert set(found) == NAMES - {"fwdb_report_last_success_timestamp_seconds"}
    assert not (tmp_path / "pool").exists()
    (tmp_path / batch.FILE).write_bytes(b"\xff\xfe nonsense")
    assert batch.last_success(tmp_path) is None


def test_a_run_is_added_at_the_gateway_under_its_report(quick, gateway, tmp_path, monkeypatch):
    """Added, not put in place: a failed run leaves the last success there. Without the setting
    nothing leaves the machine."""
    reports.report("pool", out=tmp_path)
    assert gateway.pushed == []
    monkeypatch.setenv("FWDB_PUSHGATEWAY", gateway.url)

    reports.report("pool", out=tmp_path)

    ((method, path, body),) = gateway.pushed
    assert (method, path) == ("POST", "/metrics/job/fwdb/report/pool")
    assert values(body) == values((tmp_path / "pool" / "metrics.prom").read_text())


@pytest.mark.parametrize("trouble", ["refuses", "is away", "is no address"])
def test_a_gateway_in_trouble_is_a_warning_and_no_failed_report(
    quick, gateway, tmp_path, monkeypatch, caplog, trouble
):
    """With the address but not its password."""
    gateway.status = 500
    url = {
        "refuses": gateway.url,
        "is away": "http://ana:s3cret@127.0.0.1:1",
        "is no address": "ftp://ana:s3cret@x",
    }[trouble]
    monkeypatch.setenv("FWDB_PUSHGATEWAY", url)

    with caplog.at_level(logging.WARNING):
        result = reports.report("pool", out=tmp_path)

    assert result.verdict == "ok"
    assert "FWDB_PUSHGATEWAY" in caplog.text
    assert "s3cret" not in caplog.text
