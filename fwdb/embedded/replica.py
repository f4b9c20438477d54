"""A streaming replica of the built-in PostgreSQL: a second cluster that replays its log.

Made by a base backup with the same binaries, on demand. It may be lost: when it cannot follow any
more, it is copied anew.
"""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwdb.embedded.accounts import read_own
from fwdb.embedded.home import Home, Progress, check_room, data_bytes
from fwdb.embedded.postgres import ROOM_BYTES, SUPERUSER, Binaries, PostgresServer, configuration
from fwdb.embedded.server import HOST, log
from fwdb.errors import EmbeddedError, FeatureUnavailable

if TYPE_CHECKING:
    import psycopg

NAME = "replica"
REPLICATION = "fwdb_replication"  # what it logs in as; it may stream and nothing else
SLOT = "fwdb_replica"  # also the name that the primary shows for it

# New passwords reach a replica by the log, after it has begun to take logins.
CATCH_UP_SECONDS = 20.0


class ReplicaServer(PostgresServer):
    """The replica of one home. Its primary runs: its port and passwords are those written down."""

    name = NAME
    title = "PostgreSQL's replica"
    users = (REPLICATION,)
    data_name = "pg-replica"

    def __init__(self, home: Home, progress: Progress = log.info) -> None:
        super().__init__(home, progress)
        self.passwords = self.primary.passwords | self.passwords

    @cached_property
    def primary(self) -> PostgresServer:
        return PostgresServer(self.home)

    @property
    def knows_passwords(self) -> bool:
        return super().knows_passwords and self.primary.knows_passwords

    def choose(self) -> None:
        """The primary's own binaries. Raises `FeatureUnavailable` without pg_basebackup."""
        record = self.primary.record
        assert record, "its primary runs"
        folder = Path(record.binary).parent
        if not (folder / "pg_basebackup").is_file():
            raise FeatureUnavailable(
                f"the PostgreSQL in '{folder}' has no pg_basebackup, which a replica is made with; "
                "set FWDB_POSTGRES_BIN to an installation that has it."
            )
        self._use(Binaries(folder, "the primary's", record.version))

    def fits(self) -> bool:
        """Whether the replica that runs asks its primary where that is now."""
        try:
            text = read_own(self.data / "fwdb.conf", self.account)
        except OSError:
            return False
        return f" port={self.primary.port} ".encode() in text

    # Getting ready to start

    def prepare(self) -> None:
        """Copy the primary if there is no copy that can follow it; write down where it is."""
        with self._connected() as primary:
            self._grant(primary)
            if self._follows(primary):
                self._clear_stale()
            else:
                self._copy(primary)
        self._write("fwdb.conf", self._settings())
        self._write("standby.signal", "")

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        import psycopg

        url = self.primary.url(SUPERUSER)
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
                yield connection
        except psycopg.Error as error:
            raise EmbeddedError(
                f"the primary refuses its replica: {str(error).strip().splitlines()[0]}."
            ) from error

    def _grant(self, primary: psycopg.Connection[Any]) -> None:
        """The role that may only stream. What is sent, and could be logged, is no password."""
        verifier = primary.pgconn.encrypt_password(
            self.passwords[REPLICATION].encode(), REPLICATION.encode(), b"scram-sha-256"
        ).decode()
        primary.execute("SET pg_stat_statements.track_utility = off")
        found = primary.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [REPLICATION])
        verb = "ALTER" if found.fetchone() else "CREATE"
        primary.execute(f"{verb} ROLE {REPLICATION} LOGIN REPLICATION PASSWORD '{verifier}'")

    def _follows(self, primary: psycopg.Connection[Any]) -> bool:
        """Whether the existing copy is one of this primary, which has kept the log for it."""
        kept = primary.execute(
            "SELECT system_identifier FROM pg_control_system() WHERE EXISTS (SELECT FROM "
            "pg_replication_slots WHERE slot_name = %s AND wal_status <> 'lost')",
            [SLOT],
        ).fetchone()
        try:
            control = read_own(self.data / "global" / "pg_control", self.account)
        except FileNotFoundError:
            return False
        # The first member of ControlFileData, in every version, in the machine's own byte order.
        copied: int = struct.unpack("=Q", control[:8])[0]
        return kept is not None and kept[0] == copied

    def _copy(self, primary: psycopg.Connection[Any]) -> None:
        """A base backup, and a new slot from which on the primary keeps its log."""
        check_room(self.folder, ROOM_BYTES + data_bytes(self.folder / "pg"))
        self.progress(f"Copying PostgreSQL {self.version} for a replica into {self.data}")
        if self.data.exists():
            shutil.rmtree(self.data)
        primary.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            "WHERE slot_name = %s",
            [SLOT],
        )
        primary.execute("SELECT pg_create_physical_replication_slot(%s, true)", [SLOT])
        with self.new_data() as making:
            done = self.run(
                [
                    *(str(self.binaries.folder / "pg_basebackup"), "-D", str(making)),
                    *("-h", HOST, "-p", str(self.primary.port), "-U", REPLICATION),
                    *("-X", "stream", "-c", "fast", "--no-password"),
                ],
                variables={"PGPASSWORD": self.passwords[REPLICATION]},
            )
            if done.returncode:
                raise self.broken("failed in its copy", done.stderr)
            shutil.rmtree(making / "log", ignore_errors=True)  # the primary's own

    def _settings(self) -> str:
        address = (
            f"host={HOST} port={self.primary.port} user={REPLICATION} "
            f"password={self.passwords[REPLICATION]} application_name={SLOT}"
        )
        return (
            configuration(self.binaries.major)
            + f"\nprimary_conninfo = '{address}'\nprimary_slot_name = '{SLOT}'\nhot_standby = on\n"
        )

    def login(self) -> bool:
        """As for the primary, with time for passwords that are new there to arrive."""
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while not super().login():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True
