"""Every query file: used, runnable by hand, and true to its own header."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import fwdb
from fwdb import migrating, queries
from fwdb.embedded.postgres_setup import LOGGED_PLANS
from fwdb.errors import ParameterError, UnknownName
from fwdb.stores import PostgresStore

PACKAGE = Path(fwdb.__file__).parent
FOLDER = PACKAGE / "queries" / "postgres"
NAMES = queries.names()

# Type OIDs that each declared type may come from (src/include/catalog/pg_type.dat).
OIDS = {
    "string": {18, 19, 25, 114, 1042, 1043, 2950, 3802},
    "int64": {20, 21, 23},
    "Int64": {20, 21, 23},
    "float64": {700, 701, 1700},
    "boolean": {16},
    "timestamp": {1184},
}


@pytest.fixture(scope="module", params=["postgres18", "postgres15"])
def store(request: pytest.FixtureRequest, servers: Any) -> Iterator[PostgresStore]:
    """A migrated database without rows, on each PostgreSQL there is."""
    admin = (
        servers.postgres if request.param == "postgres18" else request.getfixturevalue("postgres15")
    )
    name = f"test_queries_{time.time_ns()}"
    server = PostgresStore(admin)
    server.execute(sa.text(f"CREATE DATABASE {name}"))
    url = server.url.set(database=name, drivername="postgresql")
    found = PostgresStore(url.render_as_string(hide_password=False))
    migrating.migrate(found, None)
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        connection.execute(LOGGED_PLANS.read_bytes())
    yield found
    found.close()
    server.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.close()


def by_hand(name: str) -> str:
    """The psql line of the header, as one line."""
    lines = (FOLDER / f"{name}.sql").read_text().splitlines()
    header = [line.removeprefix("--").strip() for line in lines if line.startswith("--")]
    start = next(n for n, line in enumerate(header) if line.startswith("psql "))
    line = header[start]
    while line.endswith("\\"):
        start += 1
        line = f"{line[:-1]} {header[start]}"
    return line


def variables(name: str) -> dict[str, str]:
    """What the psql line sets, as SQL expressions."""
    found = re.findall(r"""-v (\w+)=(?:"([^"]*)"|(\S+))""", by_hand(name))
    return {variable: quoted or bare for variable, quoted, bare in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_query_is_used_and_its_header_says_what_how_and_which_columns(name: str) -> None:
    """The first sentence, the psql line with every parameter, the columns with known types."""
    query = queries.load(name)

    assert any(f'"{name}"' in path.read_text() for path in PACKAGE.rglob("*.py"))
    assert query.about[0].isupper()
    assert set(variables(name)) == query.parameters
    assert by_hand(name).endswith(f"-f {name}.sql")
    assert query.columns
    assert set(query.columns.values()) <= set(OIDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_is_true_to_its_header(name: str, store: PostgresStore) -> None:
    """The psql line runs as it stands, and the answer has the declared columns and types."""
    query = queries.load(name)
    if store.server_version // 10000 < query.minimum:
        pytest.skip(f"needs PostgreSQL {query.minimum}")
    if psql := shutil.which("psql"):
        url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        done = subprocess.run(
            ["sh", "-c", f"{by_hand(name)} -v ON_ERROR_STOP=1 --no-psqlrc"],
            cwd=FOLDER,
            env={"FWDB_POSTGRES_URL": url, "PATH": str(Path(psql).parent) + ":/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (done.returncode, done.stderr) == (0, "")
    text = query.text
    for variable, expression in variables(name).items():
        text = re.sub(rf"(?<![:\w]):{variable}\b", lambda _, e=expression: e, text)
    with store.connection() as connection:
        answer = connection.exec_driver_sql(text.replace("%", "%%"))
        described = {column[0]: column[1] for column in answer.cursor.description}
        answer.close()

    assert list(described) == list(query.columns)
    assert not [c for c, oid in described.items() if oid not in OIDS[query.columns[c]]]
    if not query.parameters:
        dtypes = store.frame(name).dtypes.astype(str).to_dict()
        known = {"string": "str", "timestamp": "datetime64[us, UTC]"}
        assert dtypes == {c: known.get(kind, kind) for c, kind in query.columns.items()}


def test_an_unknown_query_names_the_nearest(store: PostgresStore) -> None:
    """So that a slip of the pen is no search."""
    with pytest.raises(UnknownName, match="did you mean 'sessions'"):
        store.frame("sesions")


def test_parameters_are_checked_by_name(store: PostgresStore) -> None:
    """A missing one and one that the query does not have."""
    with pytest.raises(ParameterError, match="needs since, until"):
        store.frame("readings")
    with pytest.raises(UnknownName, match="did you mean 'since'"):
        store.frame("readings", sinse=1, until=2)
