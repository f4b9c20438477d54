"""Bringing the servers of a home up and taking them down."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fwdb.embedded.home import Home, disk_sentences
from fwdb.embedded.join import (
    KINDS,
    STORES,
    alive,
    check_stores,
    home_at,
    join,
    open_server,
)
from fwdb.embedded.launch import Launch
from fwdb.embedded.processes import Progress, end
from fwdb.embedded.replica import NAME as REPLICA
from fwdb.embedded.urls import Servers
from fwdb.errors import ParameterError

log = logging.getLogger("fwdb.embedded")


def up(
    home: Path | str | None = None,
    *,
    stores: Sequence[str] = STORES,
    owner_pid: int | None = None,
    idle_minutes: float | None = None,
    replica: bool = False,
    progress: Progress | None = None,
) -> Servers:
    """Start the servers of `home` that do not run, and return the URLs of all asked for.

    Servers outlive this process. They stop when nobody has been connected for `idle_minutes`
    (FWDB_IDLE_STOP, 30; 0 is never), and within 5 s after the process `owner_pid` has ended, if
    it is given. Both hold for servers started here; those that run already are joined as they
    are. Several processes may call this at once. `progress` is told, in short sentences, what
    takes time. With `replica` a streaming replica of PostgreSQL is brought up as well, and made
    the first time.

    Raises `FeatureUnavailable` when there is no program to run, and `EmbeddedError` when a server
    cannot be started; the other one runs then all the same.
    """
    wanted = check_stores(stores)
    if replica and "postgres" not in wanted:
        raise ParameterError(
            "a replica needs its primary: add 'postgres' to stores.", name="stores"
        )
    everything = [*wanted, REPLICA] if replica else wanted
    place = home_at(home)
    if joined := join(place, everything):
        return joined
    launch = Launch(place, owner_pid, idle_minutes, progress or log.info)
    place.create()
    with place.lock(launch.progress):
        if joined := join(place, everything):  # another process has started them meanwhile
            return joined
        servers = join(place, wanted) or launch.start(wanted)
        if not replica:
            return servers
        return replace(servers, replica=launch.start([REPLICA]).replica)


def down(home: Path | str | None = None, *, stores: Sequence[str] = STORES) -> bool:
    """Stop the servers of `home`; whether there was one to stop. A replica stops with PostgreSQL.

    Data, ports and passwords stay. Raises `EmbeddedError` when a server does not end.
    """
    place = home_at(home)
    return _stop(place, check_stores(stores)) if place.exists() else False


def _stop(place: Home, wanted: list[str], *, kill: bool = False) -> bool:
    """Stop what runs of `wanted`, all at the same time; `kill` does it at once."""
    place.create()  # refuses a home of another user
    with place.lock(log.info):
        state = place.read_state()
        stopped: list[bool] = []
        # The replica first: a primary that stops waits for one that does not answer.
        with_replica = "postgres" in wanted and open_server(place, REPLICA).data.exists()
        for names in ([REPLICA] if with_replica else [], wanted):
            targets: list[tuple[int, float, Sequence[int]]] = []
            for name in names:
                record = state.servers.pop(name, None)
                signals = () if kill else KINDS[name].signals
                targets += [(pid, began, signals) for pid, began in alive(place, name, record)]
            with ThreadPoolExecutor(len(names) or 1) as pool:
                stopped += pool.map(lambda target: end(*target), targets)
        place.write_state(state)
    return any(stopped)


def remove(home: Path | str | None = None) -> None:
    """Kill the servers of `home` and delete it with all their data, wherever that lies.

    For tests and for starting anew: as root, data may lie outside of `home` (see `status`), where
    deleting the folder itself would leave it behind. Nothing is asked. A missing home is nothing
    to remove.
    """
    place = home_at(home)
    folders = {open_server(place, name).folder for name in STORES}
    if place.exists():
        _stop(place, list(STORES), kill=True)
    for folder in (*folders, place.path):
        with disk_sentences(folder):
            if folder.exists():
                shutil.rmtree(folder)
