"""What is written is read back by Prometheus, and has the shape that prom-client would send."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

import fwdb.metrics.metrics
from fwdb import config, errors
from fwdb.metrics.exposition import COLUMNS, Exposition
from fwdb.metrics.series import QUERY_BOUNDS_MS, SERIES, DatabaseCollector
from fwdb.stores import MongoStore, PostgresStore

HOSTILE = ['say "hello"', "back\\slash", "new\nline", "100 %d %s %%", "{le=}", "größer", " "]


@pytest.fixture
def registry() -> CollectorRegistry:
    """That of a database without servers, with every name that a caller may think of."""
    settings = config.settings().model_copy(update={"connect_timeout_seconds": 0.2})
    postgres = PostgresStore("postgresql://nobody@127.0.0.1:1/nothing", settings=settings)
    mongodb = MongoStore("mongodb://127.0.0.1:1/nothing", settings=settings)
    for n, name in enumerate(HOSTILE):
        for seconds in (0.0001, 0.003 * n, 12.0):
            mongodb.times.add(name, seconds)
            postgres.times.add(name, seconds, "timeout" if n % 2 else "")
    found = CollectorRegistry()
    found.register(DatabaseCollector(postgres, mongodb, list, lambda: ({"READ": 3}, 1)))
    return found


@pytest.mark.parametrize(
    ("accept", "parse"), [("", parse), ("application/openmetrics-text", parse_open)]
)
def test_every_value_is_read_back_whatever_stands_in_a_label(registry, accept, parse):
    """In both formats; the names are those that callers gave."""
    text = Exposition(registry).negotiated(accept)[1].decode()
    found = {family.name: family for family in parse(text)}

    assert text.endswith("# EOF\n") == bool(accept)
    durations = [s for s in found["db_query_duration_seconds"].samples if "_count" in s.name]
    assert {s.labels["operation"] for s in durations} == set(HOSTILE)
    assert {s.value for s in durations} == {3}
    assert len(durations) == 2 * len(HOSTILE)


def test_series_of_the_host_are_part_of_it_without_the_times_of_their_making(registry):
    """The client's switch for these is one for the process: it stays as it is."""
    Counter("orders", "Orders.", registry=registry).inc(3)
    Summary("parcel_bytes", "Parcels.", registry=registry).observe(5)

    shown = Exposition(registry)
    for accept in ("", "application/openmetrics-text"):
        written = shown.negotiated(accept)[1].decode()
        assert "orders_total 3.0" in written
        assert "parcel_bytes_sum 5.0" in written
        assert "_created" not in written
    content = json.dumps(shown.json())
    assert '"orders_total"' in content
    assert '"parcel_bytes_sum"' in content
    assert "_created" not in content
    assert "orders_created" in generate_latest(registry).decode()


def test_the_json_has_the_shape_of_prom_client(registry):
    """Flat values, `le` as a number, names of counters with `_total`; strict JSON."""
    Gauge("broken", "No number.", registry=registry).set(math.nan)
    written = json.dumps(Exposition(registry).json(), allow_nan=False)
    content = json.loads(written, parse_constant=pytest.fail)
    by_name = {family["name"]: family for family in content}

    keys = {"help", "name", "type", "values", "aggregator"}
    assert all(set(family) == keys for family in content)
    assert {family["aggregator"] for family in content} == {"sum"}
    assert by_name["broken"]["values"] == [{"value": None, "labels": {}}]
    assert by_name["db_cache_hit_ratio"]["values"] == []
    assert by_name["fwdb_audit_failures_total"]["values"] == [{"value": 1.0, "labels": {}}]
    histogram = by_name["db_query_duration_seconds"]["values"]
    one = [v for v in histogram if v["labels"]["operation"] == " " and "mongodb" in str(v)]
    bounds = [bound / 1000 for bound in QUERY_BOUNDS_MS]
    assert [v["labels"].get("le") for v in one] == [*bounds, "+Inf", None, None]
    assert one[0] == {
        "labels": {"database": "mongodb", "operation": " ", "status": "success", "le": 0.0001},
        "value": 1.0,
        "metricName": "db_query_duration_seconds_bucket",
        "exemplar": None,
    }
    assert [v["metricName"].rpartition("_")[2] for v in one[-2:]] == ["count", "sum"]
    assert "exemplar" not in one[-1]


def test_the_frame_has_a_row_per_sample(module_db):
    """In columns and types that do not depend on what there is."""
    module_db.metrics.track("mongodb", "findDesign", lambda: None)
    frame = module_db.metrics.frame()

    assert list(frame.columns) == list(COLUMNS)
    assert [str(dtype) for dtype in frame.dtypes] == ["str", "str", "str", "str", "float64"]
    row = frame[frame["labels"] == "operation=findDesign"].iloc[0]
    assert list(row) == ["db_queries_total", "counter", "mongodb", "operation=findDesign", 1.0]
    assert frame[frame["metric"] == "fwdb_build_info"]["database"].isna().all()


def test_each_database_has_a_registry_of_its_own(module_db, alone):
    """Nothing is in that of the process, a hundred runs of a cell and a reload as by %autoreload
    leave one set of series, two databases do not meet, and a name that is taken is refused."""
    for _ in range(100):
        module_db.metrics.text()
        with module_db.metrics.track("postgres", "cell"):
            pass
    importlib.reload(fwdb.metrics.metrics)

    families = list(parse(module_db.metrics.text()))
    names = [family.name for family in families]
    samples = [(s.name, tuple(s.labels.items())) for f in families for s in f.samples]
    assert len(names) == len(set(names)) == len(SERIES)
    assert len(samples) == len(set(samples))
    registered = set(prometheus_client.REGISTRY._names_to_collectors)
    assert not registered & {series.name for series in SERIES}
    with alone() as other:
        other.metrics.track("postgres", "onlyHere", lambda: None)
        assert "onlyHere" in other.metrics.text()
    assert "onlyHere" not in module_db.metrics.text()
    with pytest.raises(ValueError, match="db_cache_hit_ratio"):
        Gauge("db_cache_hit_ratio", "Mine.", registry=module_db.metrics.registry)


def test_the_file_holds_the_text_and_appears_whole(module_db, tmp_path):
    """Another account reads it; nothing else is left in the folder. A place that cannot be written
    is said."""
    path = module_db.metrics.write(tmp_path / "new" / "fwdb.prom")

    assert {f.name for f in parse(path.read_text())} >= {"db_health_status", "fwdb_build_info"}
    assert path.stat().st_mode & 0o444 == 0o444
    assert [p.name for p in path.parent.iterdir()] == ["fwdb.prom"]
    for place in (path / "fwdb.prom", tmp_path):
        with pytest.raises(errors.MetricsError, match="choose another file"):
            module_db.metrics.write(place)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False),
        ("text/plain", False),
        ("*/*", False),
        ("application/openmetrics-text", True),
        # What Prometheus 2.42 and 3 send.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;"
            "version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.1", False),
    ],
)
def test_the_format_is_the_one_asked_for(accept, is_open):
    content_type, text = Exposition(CollectorRegistry()).negotiated(accept)

    assert content_type.startswith("application/openmetrics-text") == is_open
    assert text == (b"# EOF\n" if is_open else b"")


def test_the_parts_of_the_registry_agree(module_db, scrape):
    """Operations ended are the sum of the histograms, failed ones that of the causes."""
    module_db.users.count()
    module_db.designs.count()
    with pytest.raises(errors.QueryError):
        module_db.frame("SELECT nothing FROM nowhere")
    exposed = scrape(module_db)

    for of in ({"database": "postgres"}, {"database": "mongodb"}):
        ended = "db_query_duration_seconds_count"
        assert exposed("db_queries_total", **of) == exposed(ended, **of)
        assert exposed("db_query_errors_total", **of) == exposed(ended, **of, status="error")
    assert exposed("db_query_errors_total", database="postgres") > 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: install prometheus")
def test_promtool_has_nothing_to_say(registry):
    """Prometheus's own reader, and its opinion of the names."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(Exposition(registry)),
        capture_output=True,
        check=False,
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
