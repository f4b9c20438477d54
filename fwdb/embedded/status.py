"""What runs, as a value that can be printed or written as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fwdb.embedded.home import data_bytes
from fwdb.embedded.join import (
    KINDS,
    STORES,
    home_at,
    open_server,
    passwords,
    verified,
)
from fwdb.embedded.replica import NAME as REPLICA
from fwdb.embedded.watcher import identity
from fwdb.errors import EmbeddedError, redact


@dataclass(frozen=True)
class StoreStatus:
    """One built-in server. `reason` says why it does not run, or is empty."""

    store: str
    running: bool
    reason: str
    pid: int | None = None
    port: int | None = None
    engine: str | None = None
    version: str | None = None
    binary: str | None = None
    url: str | None = None
    uptime_seconds: float | None = None
    watched: bool | None = None
    data: str | None = None
    data_bytes: int | None = None


@dataclass(frozen=True)
class Status:
    """The built-in servers of one home; the replica of PostgreSQL too, once there was one."""

    home: Path
    stores: tuple[StoreStatus, ...]

    @property
    def running(self) -> bool:
        """Whether all of them run."""
        return all(store.running for store in self.stores)

    def as_dict(self) -> dict[str, Any]:
        """The same in types that JSON has."""
        return {
            "home": str(self.home),
            "running": self.running,
            "stores": {store.store: asdict(store) for store in self.stores},
        }


def status(home: Path | str | None = None) -> Status:
    """What runs for `home`. Nothing is started, written or counted as use; no password shown."""
    place = home_at(home)
    state = place.read_state()
    secrets = place.read_secrets()
    found = []
    for name in (*STORES, *([REPLICA] if REPLICA in state.ports else [])):
        try:
            server = open_server(place, name)
            data = server.data
        except EmbeddedError as error:
            found.append(StoreStatus(name, False, str(error)))
            continue
        size = data_bytes(data) if data.is_dir() else None
        common: dict[str, Any] = {"data": str(data) if size is not None else None}
        common["data_bytes"] = size
        record = state.servers.get(name)
        if record is None:
            reason = "no server was started" if size is None else "stopped"
            found.append(StoreStatus(name, False, reason, **common))
            continue
        alive = identity(record.pid) == record.began
        runs = alive and bool(verified(record, name))
        reason = ""
        if not alive:
            reason = f"process {record.pid} has ended"
        elif not runs:
            reason = f"process {record.pid} does not answer on port {record.port}"
        url = None
        if name in secrets:
            url = redact(KINDS[name].urls(record.port, passwords(secrets, name)).app)
        found.append(
            StoreStatus(
                name,
                runs,
                reason,
                pid=record.pid if alive else None,
                port=record.port,
                engine=record.engine,
                version=record.version,
                binary=record.binary,
                url=url,
                uptime_seconds=round(time.time() - record.started_at, 1) if alive else None,
                watched=identity(record.watcher_pid) == record.watcher_began,
                **common,
            )
        )
    return Status(place.path, tuple(found))
