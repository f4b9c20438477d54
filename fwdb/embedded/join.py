"""Finding servers that run already, and joining them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fwdb.config import settings
from fwdb.embedded.home import Home, Record, find_home
from fwdb.embedded.mongodb import MongoServer
from fwdb.embedded.postgres import PostgresServer
from fwdb.embedded.processes import argv, find
from fwdb.embedded.replica import NAME as REPLICA
from fwdb.embedded.replica import ReplicaServer
from fwdb.embedded.urls import Servers
from fwdb.embedded.watcher import identity
from fwdb.errors import UnknownName

STORES = ("postgres", "mongodb")
LOOK_SECONDS = 0.3  # enough for a server that is well; of others no more has to be known

Server = PostgresServer | MongoServer
KINDS: dict[str, type[PostgresServer] | type[MongoServer]] = {
    "postgres": PostgresServer,
    "mongodb": MongoServer,
    REPLICA: ReplicaServer,
}


def running(home: Path | str | None = None, *, stores: Sequence[str] = STORES) -> Servers | None:
    """The URLs of the servers of `home` if all of `stores` run; None otherwise, at once.

    A server counts as running when the process has the pid, the time of start and the data folder
    that were written down, and answers or is silent: one that is frozen would not start anew
    either, and who asks it waits no longer than FWDB_CONNECT_TIMEOUT_SECONDS.
    """
    return join(home_at(home), check_stores(stores))


def verified(record: Record, name: str, seconds: float = 2) -> bool | None:
    """Whether the process of `record` is still the server it was, and answers; None: silent."""
    kind = KINDS[name]
    return (
        identity(record.pid) == record.began
        and kind.kind.serves(argv(record.pid), Path(record.data))
        and kind.ping(record.port, seconds)
    )


def open_server(place: Home, name: str) -> Server:
    """The server `name` of a home, with nothing done to it yet."""
    return KINDS[name](place, settings().run_as)


def home_at(home: Path | str | None) -> Home:
    return Home(find_home() if home is None else Path(home).expanduser())


def check_stores(stores: Sequence[str]) -> list[str]:
    for name in stores:
        if name not in STORES:
            raise UnknownName("store", name, STORES)
    return [name for name in STORES if name in stores]


def join(place: Home, wanted: list[str]) -> Servers | None:
    state = place.read_state()
    if any(name not in state.servers for name in wanted):
        return None
    secrets = place.read_secrets()
    if any(name not in secrets for name in wanted):
        return None
    place.touch_used()  # before the look: the watcher must not stop what is about to be handed out
    if any(verified(state.servers[name], name, LOOK_SECONDS) is False for name in wanted):
        return None
    return Servers(
        place.path,
        **{
            name: KINDS[name].urls(state.servers[name].port, passwords(secrets, name))
            for name in wanted
        },
    )


def passwords(secrets: Mapping[str, Mapping[str, str]], name: str) -> dict[str, str]:
    """The passwords of all accounts of a server; a replica has those of its primary as well."""
    shared = secrets.get("postgres", {}) if name == REPLICA else {}
    return {**shared, **secrets[name]}


def alive(place: Home, name: str, record: Record | None) -> list[tuple[int, float]]:
    """Servers of one store that run, as (pid, began): the one written down, or any over its data.

    The second way finds them when state.json is lost or damaged.
    """
    kind = KINDS[name].kind
    if (
        record
        and identity(record.pid) == record.began
        and kind.serves(argv(record.pid), Path(record.data))
    ):
        return [(record.pid, record.began)]
    server = open_server(place, name)
    return find(kind, server.data, server.account)
