"""Who may do what in the built-in servers, and where their passwords are not."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pymongo
import pymongo.errors
import pytest
from support.embedded import (
    ask,
    mongo_names,
    python,
    record,
    up,
    up_mongodb,
    up_postgres,
)

from fwdb import embedded, errors
from fwdb.embedded import mongodb, postgres

WRONG = "wrong-" + "0" * 40


def passwords(home: Path) -> list[str]:
    """Every password of a home."""
    content = json.loads((home / "secrets.json").read_text())
    return [word for users in content.values() for word in users.values()]


def test_the_owner_makes_tables_that_others_use_by_their_role(shared):
    """Privileges come by default: nobody grants anything after a migration."""
    urls = up(shared).postgres
    ask(urls.owner, "CREATE SCHEMA IF NOT EXISTS shop")
    ask(urls.owner, "CREATE TABLE shop.t (id int GENERATED ALWAYS AS IDENTITY, v int)")

    ask(urls.app, "INSERT INTO shop.t (v) VALUES (1), (2)")
    ask(urls.app, "UPDATE shop.t SET v = 3 WHERE v = 1")
    ask(urls.app, "DELETE FROM shop.t WHERE v = 2")
    assert ask(urls.report, "SELECT sum(v) FROM shop.t") == 3

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(urls.app, "CREATE TABLE shop.u (v int)")
    for statement in ("INSERT INTO shop.t (v) VALUES (1)", "DELETE FROM shop.t"):
        with pytest.raises(psycopg.Error) as refused:
            ask(urls.report, statement)
        assert refused.value.sqlstate in ("25006", "42501")
    for url in (urls.owner, urls.app, urls.report):
        assert ask(url, "SELECT count(*) >= 0 FROM pg_stat_statements") is True
        assert ask(url, "SELECT pg_has_role('pg_monitor', 'MEMBER')") is True
        assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    assert ask(urls.superuser, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")


def test_mongodb_roles(shared):
    """The report reads and cannot write; the application writes and cannot make users."""
    urls = up(shared).mongodb
    with pymongo.MongoClient(urls.app) as app:
        app.fashion_wallet.t.insert_one({"v": 1})
        with app.start_session() as session, session.start_transaction():
            app.fashion_wallet.t.insert_one({"v": 2}, session=session)
        assert app.admin.command("serverStatus")["connections"]["current"] >= 1
        with pytest.raises(pymongo.errors.OperationFailure) as refused:
            app.admin.command("createUser", "x", pwd="x", roles=[])
        assert refused.value.code == 13
        assert app.write_concern.document == {"w": "majority", "j": True}
    with pymongo.MongoClient(urls.report) as report:
        assert report.fashion_wallet.t.count_documents({}) == 2
        with pytest.raises(pymongo.errors.OperationFailure) as refused:
            report.fashion_wallet.t.insert_one({"v": 3})
        assert refused.value.code == 13
    with pymongo.MongoClient(urls.owner) as owner:
        owner.fashion_wallet.t.drop()


def test_nobody_gets_in_without_the_password(shared):
    """Wrong, empty and none are refused by both servers, for every account."""
    servers = up(shared)
    words = json.loads((shared / "secrets.json").read_text())
    for url in dataclasses.astuple(servers.postgres):
        user = url.split("//")[1].split(":")[0]
        right = words["postgres"][user]
        for wrong in (url.replace(right, WRONG), url.replace(f":{right}", "")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(wrong, connect_timeout=5)
    for url in (servers.mongodb.owner, servers.mongodb.app, servers.mongodb.report):
        user = url.split("//")[1].split(":")[0]
        with (
            pymongo.MongoClient(url.replace(words["mongodb"][user], WRONG)) as client,
            pytest.raises(pymongo.errors.OperationFailure) as refused,
        ):
            client.fashion_wallet.t.find_one()
        assert refused.value.code == 18
    port = record(shared, "mongodb")["port"]
    with (
        pymongo.MongoClient("127.0.0.1", port, directConnection=True) as client,
        pytest.raises(pymongo.errors.OperationFailure) as refused,
    ):
        client.fashion_wallet.t.find_one()
    assert refused.value.code == 13
    rules = ask(
        servers.postgres.superuser, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules"
    )
    assert rules == ["scram-sha-256"]


def test_passwords_are_shown_nowhere(shared):
    """Not in repr, status, doctor, state, logs, nor on any command line or in an environment."""
    servers = up(shared)
    words = passwords(shared)
    shown = [repr(servers), json.dumps(embedded.status(shared).as_dict())]
    shown += [repr(embedded.doctor(shared)), (shared / "state.json").read_text()]
    data = Path(record(shared)["data"])
    shown += [
        path.read_text(errors="replace")
        for folder in (shared / "log", data / "log")
        for path in folder.iterdir()
    ]
    for name in ("postgres", "mongodb"):
        for pid in (record(shared, name)["pid"], record(shared, name)["watcher_pid"]):
            process = psutil.Process(pid)
            shown.append(" ".join([*process.cmdline(), *process.environ().values()]))

    assert len(words) == len(set(words)) == 7
    assert [word for word in words for text in shown if word in text] == []
    assert "***" in repr(servers)


SETTINGS = {
    "shared_preload_libraries": "pg_stat_statements,auto_explain",
    "wal_level": "replica",
    "log_destination": "jsonlog",
    "timezone": "UTC",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    **dict.fromkeys(("compute_query_id", "track_io_timing", "track_wal_io_timing"), "on"),
    **dict.fromkeys(("fsync", "synchronous_commit", "data_checksums"), "on"),
}


def test_postgres_settings(shared):
    """What the reports need is on, and what keeps data safe is not off."""
    url = up_postgres(shared).superuser
    assert {name: ask(url, f"SHOW {name}") for name in SETTINGS} == SETTINGS


def test_the_log_has_no_values_of_rows(shared, wait_until):
    """Neither a refused row nor a parameter of a slow statement is in it."""
    urls = up_postgres(shared)
    with psycopg.connect(urls.owner, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE narrow (email text, age int CHECK (age > 0))")
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute("INSERT INTO narrow VALUES (%s, -1)", ["canary@example.com"])
        connection.execute("SELECT %s, pg_sleep(0.2) AS over", ["canary@example.com"])
    data = Path(ask(urls.superuser, "SHOW data_directory"))

    def logged() -> str:
        return "".join(path.read_text() for path in (data / "log").glob("*.json"))

    wait_until(lambda: "pg_sleep(0.2) AS over" in logged())
    assert "canary" not in logged()


def test_lost_passwords_are_set_anew_and_data_is_kept(shared, monkeypatch):
    """secrets.json is gone, or of another home: both servers take new passwords. When that is cut
    short, the accounts whose turn had not come yet get theirs from the next start."""
    first = up(shared)
    ask(first.postgres.owner, "CREATE TABLE IF NOT EXISTS public.kept AS SELECT 42 AS v")
    with pymongo.MongoClient(first.mongodb.app) as client:
        client.fashion_wallet.kept.insert_one({"v": 42})
    (shared / "secrets.json").unlink()

    second = up(shared)
    embedded.down(shared)
    words = json.loads((shared / "secrets.json").read_text())
    other = {store: dict.fromkeys(users, WRONG[:20]) for store, users in words.items()}
    (shared / "secrets.json").write_text(json.dumps(other))
    third = up(shared)

    assert first != second != third
    assert ask(third.postgres.app, "SELECT v FROM kept") == 42
    with pymongo.MongoClient(third.mongodb.app) as client:
        assert client.fashion_wallet.kept.find_one({}, {"_id": 0}) == {"v": 42}

    embedded.down(shared)
    (shared / "secrets.json").unlink()
    run, ask_mongodb, asked = postgres.PostgresServer._sql, mongodb._command, []

    def half(server, data, database, sql):
        run(server, data, database, sql.partition("ALTER ROLE fwdb_app")[0])
        raise errors.EmbeddedError("cut short")

    def once(link, command):
        asked.append(command)
        if len(asked) > 2:
            raise errors.EmbeddedError("cut short")
        return ask_mongodb(link, command)

    with monkeypatch.context() as patch:
        patch.setattr(postgres.PostgresServer, "_sql", half)
        patch.setattr(mongodb, "_command", once)
        with pytest.raises(errors.EmbeddedError, match="cut short"):
            up(shared)
    servers = up(shared)
    for url in dataclasses.astuple(servers.postgres):
        assert ask(url, "SELECT 1") == 1
    for url in dataclasses.astuple(servers.mongodb)[:3]:
        assert mongo_names(url) is not None


# Asks every TCP port that a server of the home is told to listen on, as fast as it can.
MALLORY = """
import os, re, socket, struct, sys, bson, encodings.idna  # all, while they can be read
home = sys.argv[1].encode()
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
COMMANDS = [{"createUser": "mallory", "pwd": "x", "roles": ["root"]}, {"usersInfo": 1},
            {"listDatabases": 1}]

def ask(port, command):
    document = bson.encode({**command, "$db": "admin"})
    with socket.create_connection(("127.0.0.1", port), 1) as link:
        link.sendall(struct.pack("<iiiiiB", 21 + len(document), 1, 0, 2013, 0, 0) + document)
        with link.makefile("rb") as stream:
            length = struct.unpack_from("<i", stream.read(21))[0]
            return bson.decode(stream.read(length - 21))

def ports():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            continue
        if home in words and (found := re.search(rb"\\0--port\\0(\\d+)\\0", words)):
            yield int(found[1])

print("ready", flush=True)
while True:
    for port in ports():
        for command in COMMANDS:
            try:
                print(next(iter(command)), ask(port, command).get("code", 0), flush=True)
            except (OSError, struct.error):
                pass  # not listening yet, or no more
"""


@contextmanager
def attacked(home: Path) -> Iterator[set[str]]:
    """Another user of this machine attacks during the block; then what it was answered."""
    answers: set[str] = set()
    mallory = python(MALLORY, str(home.parent))
    assert mallory.stdout
    assert mallory.stdout.readline() == "ready\n"
    try:
        yield answers
    finally:
        mallory.kill()
        out, err = mallory.communicate()
        assert not err
        answers.update(out.splitlines())


def _reached(client: pymongo.MongoClient) -> bool:
    return client.admin.command("serverStatus")["connections"]["totalCreated"] > 20


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the attack reads /proc")
def test_another_user_is_never_answered_while_passwords_are_set(home, wait_until):
    """Neither by a server that has no users yet, nor while lost passwords are replaced."""
    refused = {f"{command} 13" for command in ("createUser", "usersInfo", "listDatabases")}
    for _ in range(2):
        with attacked(home) as answers, pymongo.MongoClient(up_mongodb(home).owner) as client:
            # It has reached the server, at the latest the one that asks for passwords.
            wait_until(functools.partial(_reached, client))
            users = client.admin.command("usersInfo")["users"]
        assert answers == refused
        assert {user["user"] for user in users} == {"fwdb_owner", "fwdb_app", "fwdb_report"}
        embedded.down(home)
        (home / "secrets.json").unlink()
