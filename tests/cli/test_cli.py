"""The command line: what it prints, and the exit codes that scripts and CI build on."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

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


def url_of(db: Database) -> str:
    return db.postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def on_db(db: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Points the command line at the database of this test."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", url_of(db))
    monkeypatch.setenv("FWDB_MONGODB_URL", db.mongodb._given.get_secret_value())
    return db


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["sead"], "seed"),
        (["seed", "--scal", "3"], "--scale"),
        (["report", "slow_querys"], "slow_queries"),
        (["report", "pool", "-p", "sinse=24h"], "since"),
        (["sql", "audit_histroy"], "audit_history"),
        (["audit", "trail", "--entity-type", "Usr"], "User"),
    ],
)
def test_a_wrong_name_gets_one_sentence_with_the_nearest_right_one(
    fwdb: Callable[..., Ran], on_db: Database, tmp_path: Path, arguments: list[str], nearest: str
):
    """Exit 2, nothing on stdout, nothing written."""
    ran = fwdb(*arguments)

    assert ran.code == 2
    assert nearest in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "pool", "-p", "since=31 days ago"], "2026-11-01T00:00Z"),
        (["report", "pool", "-p", "since"], "key=value"),
        (["seed", "--scale", "many"], "--scale"),
        (["seed", "--scale", "-3"], "scale"),
        (["clear"], "--yes"),
        (["--profile", "stagign", "health"], "embedded"),
    ],
)
def test_a_wrong_value_gets_one_sentence_with_the_remedy(
    fwdb: Callable[..., Ran], on_db: Database, tmp_path: Path, arguments: list[str], said: str
):
    ran = fwdb(*arguments)

    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []


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
def test_a_url_in_the_wrong_place_is_repeated_without_its_password(
    fwdb: Callable[..., Ran], on_db: Database, arguments: list[str]
):
    """Our own sentences and those of the parser of the command line alike."""
    ran = fwdb(*arguments)

    assert ran.code == 2
    assert "://ana:***@127.0.0.1" in ran.err
    assert "s3cret" not in ran.err + ran.out


def test_a_report_with_a_url_that_cannot_be_used_writes_nothing(
    fwdb: Callable[..., Ran], on_db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Exit 2 and the form to write, once and not for each report."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", "mysql://ana:s3cret@db.example/nothing")

    ran = fwdb("report", "all")

    assert ran.code == 2
    assert ran.err.count("write postgresql://") == 1
    assert "s3cret" not in ran.err + ran.out
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_loses_nothing(fwdb: Callable[..., Ran], on_db: Database):
    """`clear` without --yes, when nobody can be asked, removes no row."""
    before = on_db.users.count()

    fwdb("clear")

    assert on_db.users.count() == before > 0


def test_a_server_that_is_down_is_said_without_the_password(
    fwdb: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
):
    """Exit 4, the address, the reason and the variable to look at."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", DOWN_POSTGRES)
    monkeypatch.setenv("FWDB_MONGODB_URL", DOWN_MONGODB)

    ran = fwdb("query", "database_counters")

    assert ran.code == 4
    assert "127.0.0.1:1/nothing" in ran.err
    assert "FWDB_POSTGRES_URL" in ran.err
    assert "s3cret" not in ran.err + ran.out


def test_health_exits_1_when_a_store_is_down(
    fwdb: Callable[..., Ran], on_db: Database, monkeypatch: pytest.MonkeyPatch
):
    """One store down is seen beside the other that is up."""
    assert fwdb("health").code == 0

    monkeypatch.setenv("FWDB_MONGODB_URL", DOWN_MONGODB)
    ran = fwdb("health", "--json")

    assert ran.code == 1
    stores = {store["database"]: store["status"] for store in json.loads(ran.out)["stores"]}
    assert stores == {"postgres": "up", "mongodb": "down"}


def test_a_report_of_one_store_is_made_when_the_other_is_down(
    fwdb: Callable[..., Ran],
    on_db: Database,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """The half that answers is there; the other half is a check that says what is missing."""
    monkeypatch.setenv("FWDB_MONGODB_URL", DOWN_MONGODB)

    ran = fwdb("report", "pool")

    assert ran.code in {0, 4}
    results = json.loads((tmp_path / "reports/pool/results.json").read_text())
    reached = {
        check["database"]: check["sentence"]
        for check in results["checks"]
        if check["id"] == "pool.reachable"
    }
    assert reached["postgres"] == "PostgreSQL answers."
    assert "MongoDB is missing" in reached["mongodb"]
    written = "".join(
        path.read_text(errors="ignore")
        for path in (tmp_path / "reports").rglob("*")
        if path.is_file()
    )
    assert "s3cret" not in written + ran.out + ran.err


def test_both_stores_down_is_no_data(
    fwdb: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Exit 4, and the report still says why."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", DOWN_POSTGRES)
    monkeypatch.setenv("FWDB_MONGODB_URL", DOWN_MONGODB)

    assert fwdb("report", "pool").code == 4


def test_seed_and_clear_say_how_many(fwdb: Callable[..., Ran], on_db: Database):
    """Seeding a seeded database adds nothing; clearing it removes the three users."""
    assert "0 users" in fwdb("seed").out

    assert "3 users" in fwdb("clear", "--yes").out
    assert on_db.users.count() == 0
    assert on_db.designs.count() == 0


def test_migrate_on_the_newest_schema_changes_nothing(fwdb: Callable[..., Ran], on_db: Database):
    ran = fwdb("migrate")

    assert ran.code == 0
    assert "newest schema" in ran.out
    assert fwdb("migrate", "--check").code == 0


def test_migrate_prints_sql_without_a_server(
    fwdb: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FWDB_POSTGRES_URL", DOWN_POSTGRES)
    monkeypatch.setenv("FWDB_MONGODB_URL", DOWN_MONGODB)

    ran = fwdb("migrate", "--sql")

    assert ran.code == 0
    assert "CREATE TABLE" in ran.out


def test_a_query_prints_a_table_csv_or_json(fwdb: Callable[..., Ran], on_db: Database):
    table = fwdb("query", "database_counters")
    as_csv = fwdb("query", "database_counters", "--csv")
    as_json = fwdb("query", "database_counters", "--json")

    assert table.out.rstrip().endswith("rows")
    assert len(as_csv.out.splitlines()) >= 2
    assert isinstance(json.loads(as_json.out), list)


def test_printed_csv_has_no_formula_and_no_row_too_many(fwdb: Callable[..., Ran], on_db: Database):
    """A query and a question of the trail are written alike."""
    hostile = PostgresStore(url_of(on_db), application_name="=1+1")
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


def test_sql_prints_the_file_for_psql(fwdb: Callable[..., Ran]):
    listed = fwdb("sql").out
    printed = fwdb("sql", "database_counters").out

    assert "database_counters" in listed
    assert printed.startswith("-- ")


def test_the_audit_trail_is_printed_newest_first(fwdb: Callable[..., Ran], on_db: Database):
    user = on_db.users.first(role="admin")
    assert user is not None
    on_db.audit.log_read("User", user.id, user_id=user.id)

    assert user.id in fwdb("audit", "trail").out


def test_the_trail_is_asked_and_a_change_undone(fwdb: Callable[..., Ran], on_db: Database):
    """Tables for people, CSV and JSON for programs; a revert is a plan until --yes."""
    item = on_db.catalog_items.first(price=1000)
    assert item is not None
    with on_db.transaction():
        on_db.catalog_items.update(item.id, price=990)
        on_db.audit.log_update("CatalogItem", item.id, {"price": 1000}, {"price": 990})
    one = ("CatalogItem", item.id)

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


def test_ctrl_c_leaves_no_half_written_report(on_db: Database, tmp_path: Path):
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


@pytest.mark.parametrize("module", ["typer", "fwdb.cli.auditing", "numpy", "pandas"])
def test_ctrl_c_while_modules_are_loaded_is_one_sentence(tmp_path: Path, module: str):
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
def test_a_path_that_is_too_long_is_one_sentence(
    fwdb: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str
):
    """A name longer than 255 letters, and a whole of more than 4,096."""
    for name in ("x" * 300, "/".join(["folder"] * 700)):
        monkeypatch.setenv("FWDB_HOME", f"/tmp/{name}/.fwdb")
        ran = fwdb(command)
        said = ran.out + ran.err
        assert (ran.code, "File name too long" in said, "FWDB_HOME" in said) == (1, True, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_the_output_is_one_sentence(tmp_path: Path):
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


def test_every_command_has_help(fwdb: Callable[..., Ran]):
    """Each command says what it does, in help that fits its line."""
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = (command.name or command.callback.__name__).replace("_", "-")
        assert (command.callback.__doc__ or "").strip(), name


def test_the_trail_is_sealed_verified_and_erased(
    fwdb: Callable[..., Ran], on_db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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


def test_the_wrong_key_is_said(
    fwdb: Callable[..., Ran], on_db: Database, monkeypatch: pytest.MonkeyPatch
):
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
