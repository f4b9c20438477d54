"""A month of the trail as a Parquet file: written, found again, checked, read, and written anew.

Beside each file lies a manifest, JSON with the same facts. A file is named by its month and by the
first digits of its checksum, so that two databases that share a folder, or two exports of a month
that changed in between, never meet in one name. `audit.archives` has a row for each.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache, partial, reduce
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from fwdb.audit.seal import canonical
from fwdb.config import Settings
from fwdb.embedded.home import find_home
from fwdb.errors import ArchiveError, ConfigError
from fwdb.stores import PostgresStore

__all__ = ["ORDER", "Archive", "archives", "folder_of", "known_folder", "remove", "sweep"]

ORDER = ("created_at", "id")
_STALE_SECONDS = 24 * 3600  # no export takes a day: older parts were left by a process that died
_BATCH_ROWS = 10_000
_NAME = re.compile(r"audit_logs_(\d{4}_\d\d)\.[0-9a-f]{12}\.parquet")
# What histories look for. Ids are of all times, so that the bounds of a row group tell nothing.
_LOOKED_FOR = ("entity_id", "user_id")
# What a file that is damaged, or was made by somebody else, makes pyarrow raise.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, OverflowError, pa.ArrowException)

Line = tuple[tuple[int, str], bytes]  # transaction and id, and the row as it is sealed
Feed = Callable[[Callable[[pa.Table], None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A month in a file, as `audit.archives` knows it. `name` is that of the file in `folder`.

    `left` says that no row of it is in the trail: that its table was `dropped`, or is detached and
    waits for the next `retain` to drop it. `versions` tells whether a table is still what was
    exported; `replaced` are files in whose place this one is, None before that migration.
    """

    folder: Path
    month: date
    name: str
    rows: int
    bytes: int
    sha256: str
    versions: int | None = None
    dropped: bool = False
    left: bool = False
    replaced: Sequence[str] | None = ()

    @property
    def path(self) -> Path:
        """Where it is: in `folder`, whatever the database says."""
        return self.folder / self.name.replace("/", "?")

    @property
    def manifest(self) -> Path:
        """The file beside it."""
        return self.path.with_suffix(".json")

    # -- checks -------------------------------------------------------------------------------

    def check(self) -> Path:
        """Its path, if the file is there and is what was written; else raises `ArchiveError`.

        A file whose size, time and place are those of the last look is not read again.
        """
        path, month = self.path, _text(self.month)
        if path != self.folder / self.name or self.name in ("", ".", ".."):
            raise ArchiveError(
                f"audit.archives names '{self.name}', which is no file of the archive folder; fwdb "
                "never wrote that: find out who did, and put the right name there."
            )
        try:
            digest = _digest(path)
        except FileNotFoundError:
            raise ArchiveError(
                f"the archive of {month} is missing: there is no {self.name} in {self.folder}; put "
                "it back from a copy, or set FWDB_AUDIT_ARCHIVE to the folder that has it."
            ) from None
        except OSError as error:
            raise ArchiveError(
                f"the archive of {month} cannot be read: {path} ({error.strerror})."
            ) from error
        if digest != self.sha256:
            raise ArchiveError(
                f"the archive of {month} is damaged: {path} has the SHA-256 {digest[:12]}… and "
                f"was written with {self.sha256[:12]}…; put it back from a copy."
            )
        return path

    def fault(self) -> str | None:
        """What is wrong with file or manifest, as a sentence; the file is read for it each time."""
        name = f"archive of {_text(self.month)}, {self.path},"
        try:
            with self.path.open("rb") as file:
                digest, size = file_digest(file, "sha256").hexdigest(), file.tell()
            with pq.ParquetFile(self.path) as parquet:
                rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
        except FileNotFoundError:
            return (
                f"The {name} is missing; put it back from a copy, or set FWDB_AUDIT_ARCHIVE to the "
                "folder that has it."
            )
        except _DAMAGE:
            return f"The {name} cannot be read."
        faults = {
            "is not the file that was exported: its checksum differs": digest != self.sha256,
            "has a column twice": len(set(columns)) != len(columns),
            f"has {size:,} bytes where {self.bytes:,} are recorded": size != self.bytes,
            f"has {rows:,} rows where {self.rows:,} are recorded": rows != self.rows,
        }
        for fault in (fault for fault, there in faults.items() if there):
            return f"The {name} {fault}."
        try:
            found = json.loads(self.manifest.read_text(encoding="utf-8"))
            said = tuple(found.get(key) for key in ("file", "rows", "sha256"))
        except FileNotFoundError:
            return f"The {name} has lost the manifest beside it."
        except (OSError, ValueError, AttributeError, RecursionError):
            return f"The manifest of {name} cannot be read."
        if said != (self.path.name, self.rows, self.sha256):
            return f"The manifest of {name} does not say what the database says."
        return None

    # -- rows ---------------------------------------------------------------------------------

    @property
    def is_readable(self) -> bool:
        """Whether rows can be had from the file, changed or not."""
        try:
            with pq.ParquetFile(self.path) as parquet:
                columns = parquet.schema_arrow.names
                return len(set(columns)) == len(columns)
        except _DAMAGE:
            return False

    def batches(
        self, columns: Sequence[str] | None = None, **equal: str
    ) -> Iterator[pa.RecordBatch]:
        """Its rows in the order of the file, or those whose columns have the texts `equal`.

        Parts of the file in which no row has them are not read but for these columns. Raises
        `ArchiveError` for a file that cannot be read to its end.
        """
        with self._reading(), pq.ParquetFile(self.path) as file:
            read = partial(file.iter_batches, batch_size=_BATCH_ROWS)
            for group in range(file.num_row_groups):
                looked_at = read(row_groups=[group], columns=[*equal]) if equal else ()
                if equal and not any(pc.any(_fits(part, equal)).as_py() for part in looked_at):
                    continue
                for batch in read(row_groups=[group], columns=columns):
                    yield batch.filter(_fits(batch, equal)) if equal else batch

    def lines(self, **equal: str) -> Iterator[Line]:
        """The same as keys and lines in the form that is sealed."""
        with self._reading():
            for batch in self.batches(**equal):
                yield from canonical.keyed(batch)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise ArchiveError(
                f"{self.path} cannot be read to its end ({type(error).__name__})."
            ) from error

    # -- writing ------------------------------------------------------------------------------

    @classmethod
    def write(cls, folder: Path, month: date, feed: Feed, *, types: dict[str, str]) -> Archive:
        """Write the tables that `feed` gives, in the order of `ORDER`, and read the file back.

        `types` are the columns' types in PostgreSQL, which file and manifest keep. The file has
        its name only when it is whole and on the disk. Raises `ArchiveError` when what is read is
        not what was written, and for a folder that cannot be used.
        """
        stem = f"audit_logs_{_text(month).replace('-', '_')}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for stale in folder.glob(f".{stem}.*.part"):
                if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                    stale.unlink(missing_ok=True)
            part = _part(folder / stem)
            try:
                rows, digest = _write(part, feed, types)
                made = cls(
                    folder=folder,
                    month=month,
                    name=f"{stem}.{digest[:12]}.parquet",
                    rows=rows,
                    bytes=part.stat().st_size,
                    sha256=digest,
                )
                os.replace(part, made.path)
            finally:
                part.unlink(missing_ok=True)
            manifest = {
                "schema": 1,
                "table": "audit.audit_logs",
                "month": _text(month),
                "file": made.name,
                "rows": rows,
                "bytes": made.bytes,
                "sha256": digest,
                "order": list(ORDER),
                "columns": types,
                "exported_at": datetime.now(UTC).isoformat(),
            }
            place(made.manifest, json.dumps(manifest, indent=2))
            # The names too are on the disk before the database says that they are there.
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise ArchiveError(
                f"the month {_text(month)} cannot be written to {folder} "
                f"({error.strerror or error}); make room there, or set FWDB_AUDIT_ARCHIVE to "
                "another folder."
            ) from error
        return made

    def without(self, emptied: Sequence[str], **equal: str) -> Archive:
        """The same file under another name, with `emptied` columns in rows that have `equal`."""
        self.check()
        with pq.ParquetFile(self.path) as file:
            types = {f.name: f.metadata[b"postgres"].decode() for f in file.schema_arrow}

            def feed(consume: Callable[[pa.Table], None]) -> None:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    chosen = _fits(table, equal)
                    for place, field in enumerate(table.schema):
                        if field.name in emptied:
                            nothing = pa.scalar(None, field.type)
                            kept = pc.if_else(chosen, nothing, table.column(place))
                            table = table.set_column(place, field, kept)
                    consume(table)

            return self.write(self.folder, self.month, feed, types=types)


def archives(store: PostgresStore, folder: Path | None) -> dict[date, Archive]:
    """All months that were ever exported, by month, oldest first; with files in `folder`."""
    known = store.rows(sa.text("SELECT to_regclass('audit.archives') AS name /* fwdb */"))
    if known[0]["name"] is None:
        return {}
    found = store.rows(_ARCHIVES)
    return {row["month"]: Archive(folder=folder or Path(), **row) for row in found}


# By the snapshot, as rows are read, and not by to_regclass(), which knows of later drops. The
# column `replaced` came with a later migration than the table.
_ARCHIVES = sa.text("""
SELECT least(greatest(month, '0001-01-01'), '9999-12-31') AS month, path AS name, rows, bytes,
    sha256, versions, dropped_at IS NOT NULL AS dropped, to_jsonb(a) -> 'replaced' AS replaced,
    dropped_at IS NOT NULL OR EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'audit' AND c.relname = 'audit_logs_' || to_char(month, 'YYYY_MM')
            AND NOT EXISTS (
                SELECT FROM pg_inherits WHERE inhrelid = c.oid AND NOT inhdetachpending)
    ) AS left
FROM audit.archives AS a ORDER BY month /* fwdb */
""")


def folder_of(settings: Settings) -> Path:
    """Where the files of this database are.

    FWDB_AUDIT_ARCHIVE; else, for the built-in server, `audit-archive` in its state folder. Raises
    `ConfigError` for a server of one's own without the setting: a folder of the moment's working
    directory would be nobody's.
    """
    if settings.audit_archive is not None:
        return Path(os.path.abspath(settings.audit_archive.expanduser()))
    if settings.postgres_url is not None:
        raise ConfigError(
            "there is no folder for archived months of the audit trail; set FWDB_AUDIT_ARCHIVE to "
            "one that is backed up."
        )
    return find_home() / "audit-archive"


def known_folder(settings: Settings) -> Path | None:
    """The same, None where nobody said; that files are missing there is then a finding."""
    with suppress(ConfigError):
        return folder_of(settings)
    return None


def remove(folder: Path, month: date, name: str) -> None:
    """Remove a file that a newer export of the same month has replaced, and its manifest.

    Raises `ArchiveError` for a name that no export of `month` has.
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] != _text(month).replace("-", "_"):
        raise ArchiveError(
            f"audit.archives notes '{name}' as an export of {_text(month)} that can go, and fwdb "
            "writes none of that name: nothing was removed. Find out who did, and take it out of "
            "there."
        )
    for path in (folder / name, (folder / name).with_suffix(".json")):
        path.unlink(missing_ok=True)


def sweep(store: PostgresStore, folder: Path) -> None:
    """Remove files that were replaced, if those in their place are whole.

    Raises `ArchiveError` for one that is not, and for one that cannot be removed.
    """
    known = archives(store, folder).values()
    names = {archive.name for archive in known}
    for archive in known:
        if not archive.replaced:
            continue
        if not archive.dropped or names & {*archive.replaced}:
            raise ArchiveError(
                f"audit.archives notes files of {_text(archive.month)} as replaced that are not: "
                "nothing was removed. Find out who did, and take them out of there."
            )
        archive.check()
        for name in archive.replaced:
            try:
                remove(folder, archive.month, name)
            except OSError as error:
                raise ArchiveError(
                    f"{folder / name} holds what was erased and cannot be removed "
                    f"({error.strerror}); let it be removed, and run 'fwdb audit retain'."
                ) from error
        done = "UPDATE audit.archives SET replaced = DEFAULT WHERE month = :month"
        store.execute(sa.text(done), {"month": archive.month})


def _text(month: date) -> str:
    return month.isoformat()[:7]


def place(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all."""
    part = _part(path)
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _fits(rows: pa.RecordBatch | pa.Table, equal: dict[str, str]) -> Any:
    """Which rows have the texts `equal`."""
    parts = [pc.equal(pc.cast(rows.column(name), pa.string()), equal[name]) for name in equal]
    return pc.fill_null(reduce(pc.and_, parts), False)


class _Hashed(io.BufferedWriter):
    """A new file that knows the checksum of what goes through it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "x"))
        self.sha256 = sha256()

    def write(self, data: Any, /) -> int:
        self.sha256.update(data)
        return super().write(data)


def _write(path: Path, feed: Feed, types: dict[str, str]) -> tuple[int, str]:
    """Rows written and checksum of the file, which is on the disk and was read back."""
    writer: pq.ParquetWriter | None = None
    rows = 0

    def consume(table: pa.Table) -> None:
        nonlocal writer, rows
        if writer is None:
            described = [f.with_metadata({"postgres": types[f.name]}) for f in table.schema]
            writer = pq.ParquetWriter(
                pa.PythonFile(file, mode="w"),
                pa.schema(described),
                compression="zstd",
                # The first table is a full one, or the only one.
                bloom_filter_options={
                    name: {"ndv": max(1024, len(table)), "fpp": 0.01}
                    for name in _LOOKED_FOR
                    if name in table.column_names
                },
            )
        if len(table):
            writer.write_table(table.cast(writer.schema), row_group_size=len(table))
        rows += len(table)

    with _Hashed(path) as file:
        try:
            feed(consume)
        finally:
            if writer is not None:
                writer.close()
        file.flush()
        os.fsync(file.fileno())
        digest = file.sha256.hexdigest()
    # The bytes are compared, and each value is decoded, batch by batch.
    same = _digest(path) == digest
    if same:
        with pq.ParquetFile(path) as written:
            same = sum(batch.num_rows for batch in written.iter_batches()) == rows
    if not same:
        raise ArchiveError(
            f"{path.parent} did not keep what was written to it ({rows:,} rows of the audit "
            "trail, which are still in their table); check the disk and run it again."
        )
    return rows, digest


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_once(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _digest_once(path: Path, size: int, changed_ns: int, inode: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
