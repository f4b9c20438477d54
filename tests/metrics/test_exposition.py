"""What is written is what prometheus_client would write, and what prom-client would send."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

import fwdb.metrics.metrics
from fwdb import config, errors
from fwdb.database import Database
from fwdb.metrics import exposition
from fwdb.metrics.collector import DatabaseCollector
from fwdb.metrics.families import Families, number
from fwdb.metrics.probes import Probes
from fwdb.metrics.series import BY_NAME, SERIES
from fwdb.stores import MongoStore, PostgresStore, QueryStats
from fwdb.stores.timings import BOUNDS_SECONDS, Timed

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
    found.register(DatabaseCollector(postgres, mongodb, Probes([]), lambda: ({"READ": 3}, 1)))
    return found


def test_the_text_is_that_of_the_client(registry: CollectorRegistry):
    """Family by family, sample by sample, whatever stands in a label."""
    ours = exposition.write(registry.collect()).decode()

    assert list(parse(ours)) == list(parse(generate_latest(registry).decode()))
    assert sorted(ours.splitlines()) == sorted(generate_latest(registry).decode().splitlines())


def test_openmetrics_is_that_of_the_client(registry: CollectorRegistry):
    """It ends with its mark, so that half an answer is not taken for a whole one."""
    content_type = exposition.negotiate("application/openmetrics-text; version=1.0.0")
    ours = exposition.write(registry.collect(), content_type).decode()

    theirs = openmetrics.generate_latest(registry).decode()
    assert list(parse_open(ours)) == list(parse_open(theirs))
    assert ours.endswith("# EOF\n")


def test_a_second_scrape_writes_what_was_added():
    """Kept lines are those of a child to which nothing was added, and of no other."""
    families, series = Families(), BY_NAME["db_query_duration_seconds"]
    empty = (0,) * len(BOUNDS_SECONDS)
    first = Timed("find", "success", (1, *empty), 0.0001)
    second = Timed("find", "success", (2, *empty), 0.0002)

    def count(timed: Timed) -> float:
        family = families.durations(series, {"mongodb": QueryStats((timed,), {}, 0, 0)})
        (found,) = parse(exposition.write([family]).decode())
        return next(s.value for s in found.samples if s.name.endswith("_count"))

    assert [count(first), count(first), count(second)] == [1, 1, 2]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6, 1e9 + 0.5, 1.5e-7, -3e8, math.inf])
def test_numbers_are_written_as_the_client_does(value: float):
    gauge = Gauge("one", "x", registry=None)
    gauge.set(value)
    registry = CollectorRegistry()
    registry.register(gauge)

    assert generate_latest(registry).decode().splitlines()[-1] == f"one {number(value)}"


def test_series_of_the_host_are_part_of_it_without_the_times_of_their_making(
    registry: CollectorRegistry,
):
    """The client's switch for these is one for the process: it stays as it is."""
    Counter("orders", "Orders.", registry=registry).inc(3)
    Summary("parcel_bytes", "Parcels.", registry=registry).observe(5)

    text = exposition.write(registry.collect()).decode()
    open_text = exposition.write(registry.collect(), "application/openmetrics-text").decode()
    names = {value["name"] for value in exposition.json(registry.collect())}

    for written in (text, open_text):
        assert "orders_total 3.0" in written
        assert "parcel_bytes_sum 5.0" in written
        assert "_created" not in written
    assert {"orders_total", "parcel_bytes"} <= names
    assert not any("_created" in v.get("metricName", "") for v in _values(registry))
    assert "orders_created" in generate_latest(registry).decode()


def _values(registry: CollectorRegistry) -> list[dict[str, object]]:
    return [value for family in exposition.json(registry.collect()) for value in family["values"]]


def test_the_json_has_the_shape_of_prom_client(registry: CollectorRegistry):
    """Flat values, `le` as a number, names of counters with `_total`; strict JSON."""
    Gauge("broken", "No number.", registry=registry).set(math.nan)
    content = json.loads(
        json.dumps(exposition.json(registry.collect()), allow_nan=False),
        parse_constant=pytest.fail,
    )
    by_name = {family["name"]: family for family in content}

    assert {key for family in content for key in family} == {
        "help",
        "name",
        "type",
        "values",
        "aggregator",
    }
    assert {family["aggregator"] for family in content} == {"sum"}
    assert by_name["broken"]["values"] == [{"value": None, "labels": {}}]
    assert by_name["db_cache_hit_ratio"]["values"] == []
    assert by_name["fwdb_audit_failures_total"]["values"] == [{"value": 1.0, "labels": {}}]
    histogram = by_name["db_query_duration_seconds"]["values"]
    one = [v for v in histogram if v["labels"]["operation"] == " " and "mongodb" in str(v)]
    assert [v["labels"].get("le") for v in one] == [*BOUNDS_SECONDS, "+Inf", None, None]
    assert one[0] == {
        "labels": {"database": "mongodb", "operation": " ", "status": "success", "le": 0.0001},
        "value": 1.0,
        "metricName": "db_query_duration_seconds_bucket",
        "exemplar": None,
    }
    assert [v["metricName"].rpartition("_")[2] for v in one[-2:]] == ["sum", "count"]
    assert "exemplar" not in one[-1]


def test_the_frame_has_a_row_per_sample(module_db: Database):
    """In columns and types that do not depend on what there is."""
    module_db.metrics.track("mongodb", "findDesign", lambda: None)
    frame = module_db.metrics.frame()

    assert list(frame.columns) == list(exposition.COLUMNS)
    assert [str(dtype) for dtype in frame.dtypes] == ["str", "str", "str", "str", "float64"]
    row = frame[
        (frame["metric"] == "db_queries_total") & (frame["labels"] == "operation=findDesign")
    ]
    assert row.to_dict("records")[0] | {"value": 1.0} == {
        "metric": "db_queries_total",
        "type": "counter",
        "database": "mongodb",
        "labels": "operation=findDesign",
        "value": 1.0,
    }
    assert frame[frame["metric"] == "fwdb_build_info"]["database"].isna().all()


# -- registration ---------------------------------------------------------------------------------


def test_nothing_is_registered_by_an_import(module_db: Database):
    """The registry of the process is its owner's; each database has its own."""
    module_db.metrics.text()
    ours = {series.name for series in SERIES}

    assert not ours & set(prometheus_client.REGISTRY._names_to_collectors)


def test_a_hundred_runs_of_a_cell_leave_one_set_of_series(module_db: Database):
    """And a reload of the module, as %autoreload does it, breaks nothing."""
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


def test_two_databases_of_a_process_do_not_meet(module_db: Database):
    """Each counts what was asked through it."""
    url = module_db.postgres.url.set(drivername="postgresql")
    stores = (
        PostgresStore(url.render_as_string(hide_password=False)),
        MongoStore(module_db.mongodb._given.get_secret_value()),
    )
    with Database(*stores, settings=config.settings()) as other:
        other.metrics.track("postgres", "onlyHere", lambda: None)

        assert "onlyHere" in other.metrics.text()
        assert "onlyHere" not in module_db.metrics.text()


def test_a_name_that_is_taken_is_refused(module_db: Database):
    """Two families of one name would reach Prometheus, which keeps one of them."""
    with pytest.raises(ValueError, match="db_cache_hit_ratio"):
        Gauge("db_cache_hit_ratio", "Mine.", registry=module_db.metrics.registry)


# -- files ----------------------------------------------------------------------------------------


def test_the_file_holds_the_text_and_appears_whole(module_db: Database, tmp_path: Path):
    """Another account reads it; nothing else is left in the folder."""
    path = module_db.metrics.write(tmp_path / "new" / "fwdb.prom")

    assert {f.name for f in parse(path.read_text())} >= {"db_health_status", "fwdb_build_info"}
    assert path.stat().st_mode & 0o444 == 0o444
    assert [p.name for p in path.parent.iterdir()] == ["fwdb.prom"]


def test_a_place_that_cannot_be_written_is_said(module_db: Database, tmp_path: Path):
    (tmp_path / "file").write_text("")

    with pytest.raises(errors.MetricsError, match="choose another file"):
        module_db.metrics.write(tmp_path / "file" / "fwdb.prom")
    with pytest.raises(errors.MetricsError, match="choose another file"):
        module_db.metrics.write(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == ["file"]


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
def test_the_format_is_the_one_asked_for(accept: str, is_open: bool):
    assert exposition.negotiate(accept).startswith("application/openmetrics-text") == is_open


def test_the_parts_of_the_registry_agree(
    module_db: Database, scrape: Callable[[Database], Callable[..., float]]
):
    """Operations ended are the sum of the histograms, failed ones that of the causes."""
    module_db.users.count()
    module_db.designs.count()
    with pytest.raises(errors.QueryError):
        module_db.frame("SELECT nothing FROM nowhere")
    exposed = scrape(module_db)

    for database in ("postgres", "mongodb"):
        duration = "db_query_duration_seconds_count"
        assert exposed("db_queries_total", database=database) == exposed(
            duration, database=database
        )
        assert exposed("db_query_errors_total", database=database) == exposed(
            duration, database=database, status="error"
        )
    assert exposed("db_query_errors_total", database="postgres") > 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: install prometheus")
def test_promtool_has_nothing_to_say(registry: CollectorRegistry):
    """Prometheus's own reader, and its opinion of the names."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition.write(registry.collect()),
        capture_output=True,
        check=False,
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
