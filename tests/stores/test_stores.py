"""The two stores: lost and full servers, transactions, errors by code, frames and loads."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import signal
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import duckdb
import pandas as pd
import pytest
import sqlalchemy as sa
from support.trouble import Wire, wired
from support.urls import url_of

from fwdb import config, errors
from fwdb.database import Database
from fwdb.repositories import MongoRepository
from fwdb.stores import MongoStore, PostgresStore, frames

Store = PostgresStore | MongoStore
BYTES = "decode(repeat('ab', :n), 'hex')"


def quick(**more: Any) -> config.Settings:
    """Settings that give up soon."""
    update = {"connect_timeout_seconds": 0.5, "pool_timeout_seconds": 0.2, **more}
    return config.settings().model_copy(update=update)


def dial(url: str, settings: config.Settings | None = None) -> Store:
    if url.startswith("mongodb"):
        return MongoStore(url, settings=settings or quick())
    return PostgresStore(url, settings=settings or quick())


def ask(store: Store) -> object:
    """A question that reads the data."""
    if isinstance(store, MongoStore):
        return MongoRepository(store).count()
    return store.rows(sa.text("SELECT count(*) FROM shared.users"))


@pytest.fixture(params=["postgres", "mongodb"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def wire(name: str, module_db: Database) -> Iterator[tuple[Wire, str]]:
    """A wire to the server, and the URL of the database at its near end."""
    with wired(url_of(getattr(module_db, name))) as found:
        yield found


# -- servers that go away ---------------------------------------------------------------------


def test_a_server_that_goes_away_is_told_and_met_again_when_it_is_up(wire):
    """Nothing has to be made anew afterwards, and the error is fwdb's, with address and remedy."""
    line, url = wire
    # MongoDB's driver looks for a server that it lost every half second.
    store = dial(url, quick(connect_timeout_seconds=2))
    expected = ask(store)

    line.drop()  # as by a restart: dead connections of the pool are replaced before they are used
    assert ask(store) == expected

    line.cut()
    with pytest.raises(errors.StoreUnavailable) as caught:
        ask(store)
    line.connect()
    assert caught.value.database == store.name
    assert f"127.0.0.1:{line.port}" in str(caught.value)
    assert f"Check FWDB_{store.name.upper()}_URL" in str(caught.value)
    assert ask(store) == expected

    with pytest.raises((errors.StoreUnavailable, errors.Transient)), store.transaction():  # noqa: PT012
        ask(store)
        line.cut()
        ask(store)
    line.connect()
    with store.transaction():  # a new one
        ask(store)
    store.close()


def test_a_server_lost_within_a_frame(module_db, caplog):
    """COPY is told like any other statement, and the dead connection is not used again."""
    with caplog.at_level(logging.WARNING):
        with pytest.raises(errors.StoreUnavailable, match="ended the connection"):
            module_db.postgres.frame(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert ask(module_db.postgres)
    assert caplog.messages == []


def test_ctrl_c_ends_a_frame_and_its_statement(module_db, wait_until):
    """The statement is cancelled in the server, and the pool goes on."""
    store = module_db.postgres
    slow = sa.text("SELECT n, pg_sleep(0.01) IS NULL AS slept FROM generate_series(1, 3000) AS n")

    def interrupt() -> None:
        wait_until(lambda: running(store))
        signal.raise_signal(signal.SIGINT)

    with ThreadPoolExecutor(1) as other:
        interrupted = other.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.frame(slow)
        interrupted.result()

    wait_until(lambda: not running(store))
    assert len(store.frame(sa.text("SELECT 1 AS one"))) == 1


def running(store: PostgresStore) -> bool:
    asked = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY%pg_sleep%'"
    return bool(store.rows(sa.text(asked)))


def test_a_full_pool_is_told_apart_from_a_server_that_is_down(wire, wait_until):
    """Who waits too long for a connection of this process learns that it was the pool."""
    line, url = wire
    store = dial(url, quick(pool_size=1, pool_max_overflow=0, connect_timeout_seconds=5))
    expected = ask(store)

    with ThreadPoolExecutor(1) as other:
        line.hold()
        first = other.submit(ask, store)
        wait_until(lambda: store.pool().in_use == 1)
        with pytest.raises(errors.PoolExhausted, match="became free in time"):
            ask(store)
        line.flow()
        assert first.result(10) == expected

    assert store.pool().timeouts >= 1  # MongoDB's driver tries a read twice
    assert store.pool().waiting == 0
    assert ask(store) == expected
    store.close()


# -- addresses and passwords ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://ana:s3cret@127.0.0.1:1/x", errors.StoreUnavailable),
        ("mongodb://ana:s3cret@127.0.0.1:1/x", errors.StoreUnavailable),
        ("mysql://ana:s3cret@127.0.0.1:1/x", errors.ConfigError),
        ("postgresql://ana:s3cret@[::1/x", errors.ConfigError),
        ("mongodb://ana:s3c@ret@127.0.0.1:1:2/x", errors.ConfigError),
        ("mongo://ana:s3cret@127.0.0.1/x", errors.ConfigError),
        ("ana:s3cret@127.0.0.1/x", errors.ConfigError),
        ("postgresql://ana:a@s3cret@127.0.0.1/x", errors.ConfigError),
        ("postgresql://ana:s3cret/?s3cret#s3cret@127.0.0.1:1/x", errors.StoreUnavailable),
    ],
)
def test_no_error_shows_the_password(url, error):
    """Not in its text, and not in the name of the store."""

    def use() -> None:
        store = dial(url)
        assert "s3cret" not in repr(store)
        try:
            ask(store)
        finally:
            store.close()

    with pytest.raises(error) as caught:
        use()

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_store_shows_its_url_without_the_password(name):
    """In its text, and in whatever prints the object with all of its fields."""
    scheme = {"postgres": "postgresql+psycopg", "mongodb": "mongodb"}[name]
    store = dial(f"{scheme}://ana:s3cret@127.0.0.1:1/x")

    assert str(store.url) == f"{scheme}://ana:***@127.0.0.1:1/x"
    twin = store.twin(application_name="x")
    for each in (store, twin):
        assert "s3cret" not in f"{each} {each.url!r} {vars(each)}"
        each.close()


def test_a_wrong_password_is_told_apart_from_a_missing_database(module_db):
    """Both are refusals after a connection was made; the remedies differ."""
    login = partial(url_of, module_db.postgres, username="test_login")
    execute = module_db.postgres.execute
    execute(sa.text("DROP ROLE IF EXISTS test_login"))
    execute(sa.text("CREATE ROLE test_login LOGIN PASSWORD 'right'"))
    try:
        assert answer(login(password="right")) is None
        refused = answer(login(password="wrong"))
        lost = answer(login(password="right", database="nowhere"))
    finally:
        execute(sa.text("DROP ROLE test_login"))

    assert type(lost) is errors.StoreUnavailable
    assert '"nowhere" does not exist' in str(lost)
    if refused is None:
        pytest.skip("this server trusts every client of its own computer")
    assert type(refused) is errors.AuthenticationFailed
    assert "wrong" not in str(refused)


def answer(url: str) -> errors.FwdbError | None:
    """The error that a first question to `url` ends in."""
    with contextlib.closing(dial(url)) as store:
        try:
            store.ping()
        except errors.FwdbError as error:
            return error
    return None


# -- errors by SQLSTATE and code --------------------------------------------------------------


REFUSED = {
    "SELECT 1 / 0": errors.InvalidData,
    "SELECT CAST('x' AS integer)": errors.InvalidData,
    "SELECT * FROM shared.nothing": errors.QueryError,
    "SELECT nothing FROM shared.users": errors.QueryError,
    "SELEC 1": errors.QueryError,
    "SET LOCAL statement_timeout = 1; SELECT pg_sleep(5)": errors.QueryTimeout,
    "SELECT pg_terminate_backend(pg_backend_pid())": errors.StoreUnavailable,
}


def test_each_refusal_has_its_class(module_db):
    """Told by SQLSTATE, the cause chained."""
    for statement, error in REFUSED.items():
        with pytest.raises(error) as caught, module_db.postgres.transaction() as connection:
            connection.exec_driver_sql(statement)

        assert type(caught.value) is error
        assert caught.value.__cause__ is not None


def seen(text: str) -> Any:
    return sa.text(text).bindparams(a=CANARY)


CANARY = "can\nary@example.com"  # of two lines, as the first of a message is not all of it
PERSON = dict.fromkeys(("email", "password_hash", "first_name", "last_name"), CANARY)
DESIGN = {"user_id": str(UUID(int=1)), "name": CANARY, "id": "0" * 24}


@pytest.mark.parametrize(
    ("use", "kept"),
    [
        (lambda db: db.users.create(**PERSON), "uq_users_email"),
        (lambda db: db.users.create_many([PERSON]), "SQLSTATE 23505"),
        (lambda db: db.users.update(db.users.first(email__ne=CANARY).id, **PERSON), "email"),
        (lambda db: db.users.create(**PERSON | {"email": CANARY * 99}), "22001"),
        (lambda db: db.users.create(**PERSON | {"created_by": UUID(int=1)}), "created_by"),
        (lambda db: db.users.create(**PERSON | {"email": f"{CANARY}\x00"}), "NUL"),
        (lambda db: db.users.create(**PERSON | {"email": f"{CANARY}\ud800"}), "email"),
        (lambda db: db.users.create(**PERSON | {"password_hash": CANARY.encode()}), "bytes"),
        (lambda db: db.postgres.copy("shared.users", pd.DataFrame([PERSON])), "uq_users_email"),
        (
            lambda db: db.postgres.copy("shared.users", pd.DataFrame([{"created_at": CANARY}])),
            "line 1, column created_at",
        ),
        (
            lambda db: db.postgres.execute(
                seen("INSERT INTO shared.users (email, first_name) VALUES (:a, :a)")
            ),
            "users.password_hash",
        ),
        (lambda db: db.postgres.rows(seen("SELECT CAST(:a AS integer)")), "22P02"),
        (lambda db: db.postgres.rows(seen("SELECT nothing, :a")), '"nothing" does not exist'),
        (lambda db: db.frame("SELECT CAST(:a AS uuid)", a=CANARY), "type uuid"),
        (lambda db: db.frame("SELECT CAST(:a AS bigint)", a="9" * 30), "out of range"),
        (lambda db: db.frame("SELECT 1 :a", a=CANARY), "42601"),
        (lambda db: db.frame("SELECT 1 FROM nothing WHERE x = :a", a=CANARY), "fwdb migrate"),
        (lambda db: db.frame("SELECT timestamp 'infinity' AS at, :a AS b", a=CANARY), "column at"),
        (lambda db: db.postgres.lines(seen("SELECT CAST(:a AS json)"), print), "22P02"),
        (lambda db: db.designs.create(**DESIGN), "code 11000"),
        (lambda db: db.designs.create_many([DESIGN]), "code 11000"),
        (lambda db: db.designs.create(**DESIGN | {"metadata": {"a": {CANARY}}}), "BSON"),
        (lambda db: db.designs.create(**DESIGN | {"metadata": {CANARY: 2**64}}), "64 bits"),
        (lambda db: db.mongodb.collection("designs").insert_one({"name": CANARY}), "code 121"),
        (
            lambda db: list(
                db.mongodb.collection("designs").aggregate(
                    [{"$project": {"x": {"$toInt": "$name"}}}]
                )
            ),
            "code 241",
        ),
    ],
)
def test_no_traceback_shows_a_row_or_a_parameter(module_db, use, kept):
    """Not the error, and not what it was raised from; code, constraint and column stay."""
    with contextlib.suppress(errors.FwdbError):
        module_db.users.create(**PERSON)
    with contextlib.suppress(errors.FwdbError):
        module_db.designs.create(**DESIGN)
    with pytest.raises(errors.FwdbError) as caught, module_db.mongodb.errors():
        use(module_db)

    shown = "".join(traceback.format_exception(caught.value))
    assert "can\n" not in shown
    assert "ary@" not in shown
    assert "can\\n" not in shown
    assert "9999" not in shown
    assert "parameters:" not in shown
    assert kept in shown


def test_a_store_may_only_read_or_only_for_so_long(module_db):
    """The session is read-only whatever the role may do; a limit holds for one transaction too."""
    options = {"settings": quick(statement_timeout_seconds=0.05), "read_only": True}
    with contextlib.closing(PostgresStore(url_of(module_db.postgres), **options)) as store:
        assert ask(store)
        with pytest.raises(errors.PermissionDenied):
            store.execute(sa.text("DELETE FROM shared.users"))
        with pytest.raises(errors.QueryTimeout):
            store.rows(sa.text("SELECT pg_sleep(5)"))
    with pytest.raises(errors.QueryTimeout), module_db.postgres.transaction(timeout_ms=20):
        module_db.postgres.rows(sa.text("SELECT pg_sleep(5)"))
    assert module_db.postgres.rows(sa.text("SELECT pg_sleep(0.03)"))


# -- transactions -----------------------------------------------------------------------------


def test_run_repeats_work_that_met_another_transaction(module_db):
    """Four writers count to forty under serializable; no step is lost."""
    store = module_db.postgres
    store.execute(sa.text("DROP TABLE IF EXISTS shared.counter"))
    store.execute(sa.text("CREATE TABLE shared.counter AS SELECT 0 AS n"))

    def step() -> None:
        n = store.rows(sa.text("SELECT n FROM shared.counter"))[0]["n"]
        store.execute(sa.text("UPDATE shared.counter SET n = :n"), {"n": n + 1})

    def steps() -> None:
        for _ in range(10):
            store.run(step, retries=50, first_delay_ms=1, isolation="serializable")

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(steps) for _ in range(4)]:
            done.result()

    assert store.rows(sa.text("SELECT n FROM shared.counter")) == [{"n": 40}]
    store.execute(sa.text("DROP TABLE shared.counter"))


def test_run_gives_up_in_the_end(module_db):
    """After its tries the last error comes out; other errors are not repeated."""
    tries = []

    def meet(error: Exception) -> None:
        tries.append(error)
        raise error

    for error, count in ((errors.Transient("again"), 3), (errors.DuplicateKey("no"), 4)):
        with pytest.raises(type(error)):
            module_db.postgres.run(lambda error=error: meet(error), retries=2, first_delay_ms=1)
        assert len(tries) == count
    with pytest.raises(errors.UnknownName, match="did you mean 'serializable'"):
        module_db.postgres.run(print, isolation="serialisable")


def test_two_transactions_on_one_document(module_db):
    """The second writer is told to try again."""
    designs = module_db.designs
    made = designs.create(user_id="u", name="One")

    def write() -> None:
        with module_db.mongodb.transaction():
            designs.update(made.id, name="Theirs")

    with ThreadPoolExecutor(1) as other, module_db.mongodb.transaction():
        designs.update(made.id, name="Mine")
        with pytest.raises(errors.Transient):
            other.submit(write).result(10)

    assert designs.get(made.id).name == "Mine"


# -- frames -----------------------------------------------------------------------------------

TYPES = """SELECT CAST(:i AS integer) AS i, CAST(:i AS bigint) AS big, CAST(:b AS boolean) AS b,
    CAST(:f AS double precision) AS f, CAST(:f AS numeric) AS n, CAST(:t AS text) AS t,
    CAST(:u AS uuid) AS u, CAST(:j AS jsonb) AS j, CAST(:at AS timestamptz) AS at,
    CAST(:at AS date) AS day"""
FULL = {
    "i": 7,
    "b": True,
    "f": 1.5,
    "t": 'a,"b"\n\\N',
    "u": "0190a3c2-0000-7000-8000-000000000001",
    "j": '{"k": [1, null]}',
    "at": datetime(2026, 11, 1, 12, 30, 0, 250_000, tzinfo=UTC),
}


def test_types_follow_from_the_statement_and_not_from_the_rows(module_db):
    """A frame of values, one of gaps and an empty one can be put together."""
    store = module_db.postgres
    full = store.frame(sa.text(TYPES), **FULL)
    gaps = store.frame(sa.text(TYPES), **dict.fromkeys(FULL))
    empty = store.frame(sa.text(f"{TYPES} LIMIT 0"), **FULL)

    assert full.dtypes.to_dict() == gaps.dtypes.to_dict() == empty.dtypes.to_dict()
    assert {name: str(kind) for name, kind in full.dtypes.items()} == {
        "i": "Int64", "big": "Int64", "b": "boolean", "f": "float64", "n": "float64", "t": "str",
        "u": "str", "j": "str", "at": "datetime64[us, UTC]", "day": "date32[day][pyarrow]",
    }  # fmt: skip
    assert gaps.isna().all(axis=None)
    row = full.iloc[0]
    assert (row["t"], row["j"], row["u"]) == (FULL["t"], FULL["j"], FULL["u"])
    assert (row["at"], row["day"]) == (FULL["at"], date(2026, 11, 1))


def test_texts_come_as_they_are_and_what_a_frame_cannot_hold_is_refused(module_db):
    """Gaps, empty texts, signs that mean something to a driver, comments and semicolons."""
    for statement, expected in {
        "SELECT CAST(NULL AS text) AS x": None,
        "SELECT '' AS x": "",
        "SELECT '%' || :p AS x -- the last words": "%{}",
        'SELECT \'{"a": "50%"}\' AS x;': '{"a": "50%"}',
    }.items():
        given = {"p": "{}"} if ":p" in statement else {}
        (found,) = module_db.postgres.frame(sa.text(statement), **given)["x"]
        assert (None if pd.isna(found) else found) == expected
    with pytest.raises(errors.InvalidData, match="column x holds a value"):
        module_db.postgres.frame(sa.text("SELECT CAST('infinity' AS timestamptz) AS x"))
    with pytest.raises(errors.ParameterError, match="two columns 'x'"):
        module_db.postgres.frame(sa.text("SELECT 1 AS x, 2 AS x"))


AT = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("declared", "values", "kind", "refused"),
    [
        ("int64", [1, 2**53 + 1], "int64", [1.5, None]),
        ("Int64", [2**53 + 1, None], "Int64", ["x", True]),
        ("float64", [1, None], "float64", ["x"]),
        ("boolean", [True, None], "boolean", ["yes"]),
        ("string", [{"a": 1}, None], "str", []),
        ("timestamp", [AT, None], "datetime64[us, UTC]", ["today"]),
        ("category", ["a", None], "category", []),
    ],
)
def test_declared_types_hold_for_rows_and_for_none(declared, values, kind, refused):
    """Query files declare their columns; nothing is rounded, cut, turned into a gap or quoted."""
    full = frames.from_rows(["x"], [[value] for value in values], {"x": declared})
    empty = frames.from_rows(["x"], [], {"x": declared})

    assert str(full["x"].dtype) == str(empty["x"].dtype) == kind
    assert full["x"].isna().tolist() == [value is None for value in values]
    if "int" in kind.lower():
        assert full["x"].dropna().tolist() == [value for value in values if value is not None]
    for value in refused:
        with pytest.raises(
            errors.InvalidData, match=f"column x holds a value that is no {declared}"
        ):
            frames.from_rows(["x"], [[value]], {"x": declared})


@pytest.mark.parametrize("megabytes", [3, 40])
@pytest.mark.parametrize("value", ["repeat('x', :n)", "to_jsonb(repeat('x', :n))", BYTES])
def test_a_value_may_be_longer_than_a_block_of_the_reader(module_db, value, megabytes):
    """Beside short ones, by frame and by stream, and back by a load."""
    length = megabytes << 20
    statement = f"SELECT 1 AS a, {value} AS v, 2 AS b UNION ALL SELECT 2, NULL, NULL"
    frame = module_db.frame(statement, n=length)
    tables: list[Any] = []
    module_db.postgres.stream(sa.text(statement), tables.append, n=length)

    assert frame["v"].str.len()[0] >= length
    assert frame["v"].isna().tolist() == [False, True]
    assert frame["b"].tolist() == [2, pd.NA]
    assert [len(v.as_py() or "") for t in tables for v in t["v"]] == [len(frame["v"][0]), 0]
    with pytest.raises(errors.InvalidData, match="column c holds"):
        module_db.frame(f"SELECT {value} AS v, timestamp 'infinity' AS c", n=length)


# -- CSV --------------------------------------------------------------------------------------

TEXTS = [
    *("plain", "a,b", 'say "hi"', "a\rb", "a\n=b", "a\r\n=c", "\r", "", " ", "ünï✓ 🎉", "007"),
    *("=1+1", "+1", "-1", "@x", "\tx", "\r=1", "\n=1", "  =1", "＝1", None),
]
GUARDED = TEXTS.index("=1+1")


def hostile() -> pd.DataFrame:
    count = len(TEXTS)

    def column(*values: Any, dtype: Any) -> Any:
        return pd.Series((values * count)[:count], dtype=dtype)

    return pd.DataFrame(
        {
            "text": pd.Series(TEXTS, dtype="str"),
            "whole": column(-5, None, dtype="Int64"),
            "exact": column(Decimal("-1.50"), None, dtype=object),
            "ratio": column(-2.5, float("nan"), dtype="float64"),
            "at": column("2026-01-01T00:00:00.123456Z", None, dtype="datetime64[us, UTC]"),
            "true": column(True, None, dtype="boolean"),
            "json": column({"a": [1, "="]}, ["=x"], dtype=object),
            "mixed": column(-3, "=3", dtype=object),
        }
    )


def expected() -> list[str]:
    texts = [f"'{t}" if t and n >= GUARDED else t or "" for n, t in enumerate(TEXTS)]
    return ["'\r" if text == "\r" else text for text in texts]


def test_csv_comes_back_from_its_readers(tmp_path):
    """Row for row; a formula has an apostrophe, a number never; texts are quoted, gaps are not."""
    text = frames.as_csv(hostile())
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    frame = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype=str)

    assert [row["text"] for row in rows] == expected() == frame["text"].tolist()
    assert text.startswith('"text","whole"')
    assert '"plain",-5,-1.50,-2.5,2026-01-01T00:00:00.123456Z,True,"{""a"": [1, ' in text
    assert {row["mixed"] for row in rows} == {"-3", "'=3"}
    numbers = pd.read_csv(io.StringIO(text))[["whole", "exact", "ratio"]]
    assert numbers.iloc[0].tolist() == [-5, -1.5, -2.5]
    assert numbers.iloc[1].isna().all()

    file = tmp_path / "hostile.csv"
    file.write_text(text, encoding="utf-8", newline="")
    found = duckdb.sql(f"FROM read_csv('{file}', allow_quoted_nulls = false)")
    assert [str(type) for type in found.types] == [
        *("VARCHAR", "BIGINT", "DOUBLE", "DOUBLE", "TIMESTAMP WITH TIME ZONE", "BOOLEAN"),
        *("VARCHAR", "VARCHAR"),
    ]
    assert [row[0] for row in found.fetchall()] == [*expected()[:-1], None]
    # A gap alone in its row is a row: readers skip a line with nothing in it.
    assert frames.as_csv(pd.DataFrame({"a": [None, 1.5]})) == '"a"\n""\n1.5\n'


# -- loads ------------------------------------------------------------------------------------


def test_copy_loads_all_rows_or_none(module_db):
    """The server converts the text; a refused value is told by line and column."""
    store = module_db.postgres
    store.execute(sa.text("CREATE TABLE shared.loaded (n int, t text, j jsonb, at timestamptz)"))
    long = "x" * (3 << 20)
    frame = pd.DataFrame(
        {
            "n": pd.array([1, None, 2], dtype="Int64"),
            "t": ['x,"y"\n', "", long],
            "j": ['{"a": 1}', None, None],
            "at": pd.to_datetime(["2026-11-01T12:00Z", None, None], utc=True),
        }
    )

    assert store.copy("shared.loaded", frame) == 3
    back = store.frame(sa.text("SELECT * FROM shared.loaded"))
    assert back["n"].tolist() == [1, pd.NA, 2]
    assert back["t"].tolist() == ['x,"y"\n', "", long]
    assert back["j"].isna().tolist() == [False, True, True]
    with pytest.raises(errors.InvalidData, match=r"line 2, column n"):
        store.copy("shared.loaded", pd.DataFrame({"n": ["3", "x"]}))
    assert len(store.rows(sa.text("SELECT 1 AS one FROM shared.loaded"))) == 3
    store.execute(sa.text("DROP TABLE shared.loaded"))


def test_a_server_that_is_too_old_is_refused_with_both_versions(module_db, monkeypatch):
    """At the first connection, and the connection is not kept."""
    monkeypatch.setattr("fwdb.stores.session.MINIMUM_VERSION", 990000)
    monkeypatch.setattr("fwdb.stores.mongodb.MINIMUM_VERSION", 99)
    postgres = module_db.postgres.twin(application_name="old")
    mongodb = MongoStore(url_of(module_db.mongodb))

    with pytest.raises(errors.FeatureUnavailable, match=r"is version \d+; fwdb needs 99"):
        postgres.ping()
    with pytest.raises(errors.FeatureUnavailable, match=r"is version [\d.]+; fwdb needs 99"):
        _ = mongodb.build_info

    assert postgres.pool().opened == 0
    mongodb.close()
