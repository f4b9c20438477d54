"""The command line: what it prints, and the exit codes that scripts and CI build on."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families as parse
from support.urls import url_of

from fwdb import cli
from fwdb.database import Database
from fwdb.stores import PostgresStore

DOWN_POSTGRES = "postgresql://ana:s3cret@127.0.0.1:1/nothing"
DOWN_MONGODB = "mongodb://ana:s3cret@127.0.0.1:1/nothing"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def fwdb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ran]:
    """Runs a command line in an empty folder: ``fwdb("seed", "--scale", "5")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FWDB_CONNECT_TIMEOUT_SECONDS", "1")

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fwdb", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def on_db(db: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Points the command line at the database of this test."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", url_of(db.postgres))
    monkeypatch.setenv("FWDB_MONGODB_URL", url_of(db.mongodb))
    return db


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sead"], "seed"),
        (["seed", "--scal", "3"], "--scale"),
        (["report", "slow_querys"], "slow_queries"),
        (["report", "pool", "-p", "sinse=24h"], "since"),
        (["sql", "audit_histroy"], "audit_history"),
        (["audit", "trail", "--entity-type", "Usr"], "User"),
        (["report", "pool", "-p", "since=31 days ago"], "2026-11-01T00:00Z"),
        (["report", "pool", "-p", "since"], "key=value"),
        (["seed", "--scale", "many"], "--scale"),
        (["seed", "--scale", "-3"], "scale"),
        (["clear"], "--yes"),
        (["--profile", "stagign", "health"], "embedded"),
    ],
)
def test_a_wrong_word_gets_one_sentence_with_the_remedy(fwdb, on_db, tmp_path, arguments, said):
    """The nearest right name, or what to write. Exit 2, nothing on stdout, nothing written, and
    nothing lost: `clear` without --yes, when nobody can be asked, removes no row."""
    ran = fwdb(*arguments)

    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []
    assert on_db.users.count() > 0


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--profile", DOWN_POSTGRES, "health"], [DOWN_POSTGRES], [f"--{DOWN_POSTGRES}"]),
        *(["report", DOWN_POSTGRES], ["report", "pool", "-p", DOWN_POSTGRES]),
        *(["query", DOWN_POSTGRES], ["query", "sessions", "-p", DOWN_POSTGRES]),
        *(["audit", "history", DOWN_POSTGRES, "1"], ["audit", "as-of", "User", DOWN_POSTGRES]),
        ["audit", "seal", DOWN_POSTGRES],
    ],
)
def test_a_url_in_the_wrong_place_is_repeated_without_its_password(fwdb, on_db, arguments):
    """Our own sentences and those of the parser of the command line alike."""
    ran = fwdb(*arguments)

    assert ran.code == 2
    assert "://ana:***@127.0.0.1" in ran.err
    assert "s3cret" not in ran.err + ran.out


def test_a_report_with_a_url_that_cannot_be_used_writes_nothing(fwdb, on_db, tmp_path, monkeypatch):
    """Exit 2 and the form to write, once and not for each report."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", "mysql://ana:s3cret@db.example/nothing")

    ran = fwdb("report", "all")

    assert ran.code == 2
    assert ran.err.count("write postgresql://") == 1
    assert "s3cret" not in ran.err + ran.out
    assert list(tmp_path.iterdir()) == []


def test_stores_that_are_down(fwdb, on_db, monkeypatch, tmp_path):
    """One that is down is seen beside the other that is up, and a report has the half that answers.
    With both down there is no data, and the sentence has the address, the reason and the variable
    to look at, but no password. The SQL of a migration needs no server."""
    assert fwdb("health").code == 0
    monkeypatch.setenv("FWDB_MONGODB_URL", DOWN_MONGODB)
    health, half = fwdb("health", "--json"), fwdb("report", "pool")
    results = json.loads((tmp_path / "reports/pool/results.json").read_text())
    files = [path for path in (tmp_path / "reports").rglob("*") if path.is_file()]
    written = "".join(path.read_text(errors="ignore") for path in files)
    monkeypatch.setenv("FWDB_POSTGRES_URL", DOWN_POSTGRES)
    query, report = fwdb("query", "database_counters"), fwdb("report", "pool")
    sql = fwdb("migrate", "--sql")

    stores = {store["database"]: store["status"] for store in json.loads(health.out)["stores"]}
    assert (health.code, stores) == (1, {"postgres": "up", "mongodb": "down"})
    assert half.code in {0, 4}
    checks = [one for one in results["checks"] if one["id"] == "pool.reachable"]
    reached = {check["database"]: check["sentence"] for check in checks}
    assert reached["postgres"] == "PostgreSQL answers."
    assert "MongoDB is missing" in reached["mongodb"]
    assert (query.code, report.code, sql.code) == (4, 4, 0)
    assert "127.0.0.1:1/nothing" in query.err
    assert "FWDB_POSTGRES_URL" in query.err
    assert "CREATE TABLE" in sql.out
    for ran in (health, half, query, report):
        assert "s3cret" not in written + ran.out + ran.err


def test_schema_and_seed_data(fwdb, on_db):
    """A migrated and seeded database gets nothing more; clearing it removes the three users."""
    migrated = fwdb("migrate")
    assert (migrated.code, fwdb("migrate", "--check").code) == (0, 0)
    assert "newest schema" in migrated.out
    assert "0 users" in fwdb("seed").out

    assert "3 users" in fwdb("clear", "--yes").out
    assert on_db.users.count() == on_db.designs.count() == 0


def test_a_query_prints_a_table_csv_or_json(fwdb, on_db):
    """And `sql` its text, ready for psql, or the list of all."""
    ran = [fwdb("query", "database_counters", *form).out for form in ([], ["--csv"], ["--json"])]

    assert ran[0].rstrip().endswith("rows")
    assert len(ran[1].splitlines()) >= 2
    assert isinstance(json.loads(ran[2]), list)
    assert "database_counters" in fwdb("sql").out
    assert fwdb("sql", "database_counters").out.startswith("-- ")


def test_printed_csv_has_no_formula_and_no_row_too_many(fwdb, on_db):
    """A query and a question of the trail are written alike."""
    hostile = PostgresStore(url_of(on_db.postgres), application_name="=1+1")
    user, said = on_db.users.first(role="admin"), "lost\r=1+1\r\n=2"
    assert user is not None
    on_db.audit.log_read("User", user.id, user_agent=said)
    with hostile.connection():
        sessions = fwdb("query", "sessions", "--csv").out
    hostile.close()
    trail = fwdb("audit", "history", "User", user.id, "--csv").out

    assert '"\'=1+1"' in sessions
    assert '"=1+1"' not in sessions
    rows = list(csv.DictReader(io.StringIO(trail, newline="")))
    assert [row["user_agent"] for row in rows] == ["", said]
    assert {row["entity_id"] for row in rows} == {user.id}


def test_the_trail_is_asked_and_a_change_undone(fwdb, on_db):
    """Tables for people, CSV and JSON for programs; a revert is a plan until --yes."""
    item = on_db.catalog_items.first(price=1000)
    assert item is not None
    with on_db.transaction():
        on_db.catalog_items.update(item.id, price=990)
        on_db.audit.log_update("CatalogItem", item.id, {"price": 1000}, {"price": 990})
    one = ("CatalogItem", item.id)

    assert item.id in fwdb("audit", "trail").out
    assert "price" in fwdb("audit", "history", *one).out
    assert "990" in fwdb("audit", "timeline", *one).out
    differing = json.loads(fwdb("audit", "diff", *one, "--json").out)
    assert {row["field"]: row["after"] for row in differing}["price"] == "990"
    before = fwdb("audit", "as-of", "CatalogItem", "1h", "--csv").out
    assert len(before.splitlines()) == 1  # the database is younger than that
    assert item.id in fwdb("audit", "as-of", "CatalogItem", "0s", "--id", item.id, "--csv").out
    assert item.id in fwdb("audit", "who-changed", "price", "--entity-type", "CatalogItem").out
    assert fwdb("audit", "anomalies").code == 0

    event = on_db.audit.who_changed("price")["log_id"].iloc[0]
    assert "--yes" in fwdb("audit", "revert", "--event", event).out
    assert on_db.catalog_items.get(item.id).price == 990
    assert fwdb("audit", "revert", "--event", event, "--yes").code == 0
    assert on_db.catalog_items.get(item.id).price == 1000
    refused = fwdb("audit", "revert", "--event", event, "--yes")
    assert (refused.code, refused.out) == (1, "")
    assert "was changed again" in refused.err
    assert fwdb("audit", "revert").code == 2


def test_ctrl_c_leaves_no_half_written_report(on_db, tmp_path):
    """An interrupt in the middle of a run ends it, with no folder that looks finished."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "fwdb.cli", "report", "pool"],
        cwd=tmp_path,
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "verdict" in line or "open" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()

        assert process.wait(30) == 130, rest
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("module", ["typer", "fwdb.cli.audit", "numpy", "pandas"])
def test_ctrl_c_while_modules_are_loaded_is_one_sentence(tmp_path, module):
    """In the first second nothing has begun yet, and nobody wants to read where it was."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "fwdb.cli", "health"],
        cwd=tmp_path,
        env={**os.environ, "FWDB_HOME": str(tmp_path / ".fwdb")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # one for each module that is loaded
            if line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        rest = [line for line in process.stderr if not line.startswith("import time:")]

        assert (process.wait(30), rest) == (130, ["fwdb: stopped.\n"])


@pytest.mark.parametrize("command", ["status", "doctor", "up", "down"])
def test_a_path_that_is_too_long_is_one_sentence(fwdb, monkeypatch, command):
    """A name longer than 255 letters, and a whole of more than 4,096."""
    for name in ("x" * 300, "/".join(["folder"] * 700)):
        monkeypatch.setenv("FWDB_HOME", f"/tmp/{name}/.fwdb")
        ran = fwdb(command)
        said = ran.out + ran.err
        assert (ran.code, "File name too long" in said, "FWDB_HOME" in said) == (1, True, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_the_output_is_one_sentence(tmp_path):
    """What is printed goes to a file, and its disk has no room."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fwdb.cli", "status", "--json"],
            env={**os.environ, "FWDB_HOME": str(tmp_path / ".fwdb")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 1
    assert done.stderr == "fwdb: No space left on device; make room on that disk.\n"


def test_help_loads_neither_drivers_nor_pandas():
    """They take most of the time that a command needs to start."""
    code = (
        "import sys, fwdb.cli; fwdb.cli.app;"
        "sys.exit(str({'pandas', 'sqlalchemy', 'psycopg', 'pymongo', 'pydantic'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert done.stderr == "set()\n"


def test_every_command_has_help(fwdb):
    """Each command says what it does, in help that fits its line."""
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = (command.name or command.callback.__name__).replace("_", "-")
        assert (command.callback.__doc__ or "").strip(), name
    for name in ("history", "trail"):
        assert "User, Avatar, CatalogItem or Design." in fwdb("audit", name, "--help").out


def test_the_trail_is_sealed_verified_and_erased(fwdb, on_db, tmp_path, monkeypatch):
    """Each says what it did; verify ends with 1 when anything is wrong, or was never sealed."""
    user = on_db.users.find(limit=1)[0]
    on_db.audit.log_create("User", user.id, {"name": "Anna"}, user_id=user.id)
    unsealed = fwdb("audit", "verify")
    sealed = fwdb("audit", "seal", "--export", "seals.json")
    counted = fwdb("audit", "erase", "--user-id", user.id, "--reason", "request 7")
    erased = fwdb("audit", "erase", "--user-id", user.id, "--reason", "request 7", "--yes")
    sound = fwdb("audit", "verify", "--against", "seals.json")
    newer = fwdb("audit", "verify", "--since", "1h")
    future = fwdb("audit", "verify", "--since", "2999-01-01T00:00Z")
    damaged = fwdb("audit", "verify", "--against", "nothing.json")
    on_db.postgres.execute(sa.text("UPDATE audit.audit_logs SET new_values = '{}'"))
    altered = fwdb("audit", "verify", "--json")

    assert (unsealed.code, sound.code, damaged.code, altered.code) == (1, 0, 1, 1)
    assert "Nothing is sealed" in unsealed.out
    assert "not signed" in sealed.out
    assert (tmp_path / "seals.json").exists()
    assert "would erase: 1 rows" in counted.out
    assert "erased: 1 rows" in erased.out
    assert "are as they were sealed" in sound.out
    assert (newer.code, future.code) == (0, 2)
    assert "and later are as they were sealed" in newer.out
    assert "'since' is" in future.err
    assert "not proven: " in sound.out
    assert "cannot be read" in damaged.err
    found = json.loads(altered.out)
    assert found["findings"][0]["kind"] == "altered"
    assert "Anna" not in altered.out


def test_the_wrong_key_is_said(fwdb, on_db, monkeypatch):
    """And the key itself is in no output."""
    on_db.audit.log_read("User", on_db.users.find(limit=1)[0].id)
    monkeypatch.setenv("FWDB_AUDIT_KEY", "the right key of all")
    sealed = fwdb("audit", "seal")
    monkeypatch.setenv("FWDB_AUDIT_KEY", "a wrong one, long enough")
    wrong = fwdb("audit", "verify")
    again = fwdb("audit", "seal")
    monkeypatch.setenv("FWDB_AUDIT_KEY", "short")
    short = fwdb("audit", "verify")

    assert "signed with key" in sealed.out
    assert (wrong.code, again.code, short.code) == (1, 1, 2)
    assert "FWDB_AUDIT_KEY" in wrong.out + again.err
    assert "FWDB_AUDIT_KEY" in short.err
    for ran in (sealed, wrong, again, short):
        assert "wrong one" not in ran.out + ran.err


# -- `fwdb serve` and `fwdb metrics`, as a person or a service manager runs them -----------------


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `fwdb serve`, and the address it printed."""
    command = [sys.executable, "-m", "fwdb.cli", "serve", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            if process.poll() is None:
                process.kill()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return reply.read().decode()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_samples_until_it_is_told_to_end(on_db, wait_until, kind):
    """It prints its address, stores readings, and ends well: no trace, the port is free."""
    with serving("--port", "0", "--interval", "1") as (process, url):
        text = get(url)
        assert {f.name for f in parse(text)} >= {"db_health_status", "db_queries"}
        base = url.removesuffix("/metrics")
        assert json.loads(get(f"{base}/health/database"))["status"] == "ok"
        count = sa.text("SELECT count(*) AS n FROM monitoring.readings")
        wait_until(lambda: on_db.postgres.rows(count)[0]["n"] >= 2, 30)
        process.send_signal(kind)
        _, said = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "Traceback" not in said
    assert "sampling every 1 s" in said
    assert said.strip().endswith("stopped.")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(base.rpartition(":")[2]))) != 0


def test_sigterm_ends_it_whatever_its_clients_do(on_db):
    """One sends nothing, one half a request, one does not read what it asked for."""
    with serving("--port", "0") as (process, url), ExitStack() as clients:
        port = int(url.rpartition(":")[2].partition("/")[0])
        for sent in (b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\n\r\n"):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(sent)
        assert "db_health_status" in get(url)
        process.send_signal(signal.SIGTERM)
        process.wait(10)

    assert process.returncode == 0


def test_who_may_only_read_is_served_all_the_same(on_db, monkeypatch):
    """It says that nothing is sampled, and why."""
    role = f"reader_{on_db.postgres.url.database}"
    on_db.postgres.execute(
        sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT pg_read_all_data TO {role}")
    )
    try:
        url = on_db.postgres.url.set(drivername="postgresql", username=role, password="x")
        monkeypatch.setenv("FWDB_POSTGRES_URL", url.render_as_string(hide_password=False))
        with serving("--port", "0") as (process, address):
            assert "db_health_status" in get(address)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    finally:
        on_db.postgres.execute(sa.text(f"DROP ROLE {role}"))

    assert process.returncode == 0
    assert "nothing is sampled: " in said
    assert "GRANT" in said


def test_a_taken_port_is_one_sentence_and_exit_code_1(on_db):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving("--port", str(port)) as (process, printed):
            _, said = process.communicate(timeout=60)

    assert (process.returncode, printed) == (1, "")
    assert len(said.strip().splitlines()) == 1
    assert f"port {port}" in said
    assert "--port" in said


def test_metrics_are_printed_as_they_are_served(on_db, tmp_path):
    """As text, and as JSON that every parser reads."""
    command = [sys.executable, "-m", "fwdb.cli", "metrics"]
    text, as_json = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], ["--json"])
    )

    names = {f.name + ("_total" if f.type == "counter" else "") for f in parse(text)}
    assert names == {family["name"] for family in json.loads(as_json, parse_constant=pytest.fail)}
    assert "db_health_status" in names
