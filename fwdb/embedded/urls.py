"""The addresses that `up` hands out. A `repr` never shows a password."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fwdb.errors import redact

DATABASE = "fashion_wallet"
OWNER, APP, REPORT = "fwdb_owner", "fwdb_app", "fwdb_report"
REPLICATION = "fwdb_replication"  # what the replica logs in as; it may stream and nothing else


@dataclass(frozen=True, repr=False)
class Urls:
    """URLs of one store by role, with passwords in them.

    `owner` makes and changes the schema, `app` reads and writes rows, `report` only reads.
    `superuser` is PostgreSQL's role ``postgres``, for tests that make databases and for repair;
    None for MongoDB, where `owner` may do everything.
    """

    owner: str
    app: str
    report: str
    superuser: str | None = None

    def __repr__(self) -> str:
        shown = {
            role: redact(url) for role, url in vars(self).items() if url and role != "superuser"
        }
        return f"Urls({', '.join(f'{role}={url!r}' for role, url in shown.items())})"


@dataclass(frozen=True)
class Servers:
    """The built-in servers of `home` that run; None for one that was not asked for.

    `replica` has the accounts of `postgres`, takes no writes, and is there with
    ``up(replica=True)`` only.
    """

    home: Path
    postgres: Urls | None = None
    mongodb: Urls | None = None
    replica: Urls | None = None
