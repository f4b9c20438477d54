"""A month of the trail as a Parquet file: written, read back, found again and checked.

Beside each file lies a manifest, JSON with the same facts. A file is named by its month and by the
first digits of its checksum, so that two databases that share a folder, or two exports of a month
that changed in between, never meet in one name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from fwdb.config import Settings
from fwdb.embedded.home import find_home
from fwdb.errors import ArchiveError, ConfigError

__all__ = ["ORDER", "Archive", "check", "folder", "remove", "write"]

FOLDER = "audit-archive"
ORDER = ("created_at", "id")
_STALE_SECONDS = 24 * 3600  # no export takes a day: older parts were left by a process that died
_BLOCK = 1 << 20
_NAME = re.compile(r"audit_logs_(\d{4}_\d\d)\.[0-9a-f]{12}\.parquet")
# What histories look for. Ids are of all times, so that the bounds of a row group tell nothing.
_LOOKED_FOR = ("entity_id", "user_id")

Feed = Callable[[Callable[[pa.Table], None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A month in a file. `path` is its name in the archive folder, `bytes` its size."""

    month: str
    path: str
    rows: int
    bytes: int
    sha256: str


def folder(settings: Settings) -> Path:
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
    return find_home() / FOLDER


def write(folder: Path, month: str, feed: Feed, *, types: dict[str, str]) -> Archive:
    """Write the tables that `feed` gives, in the order of `ORDER`, and read the file back.

    `types` are the columns' types in PostgreSQL, which file and manifest keep. The file has its
    name only when it is whole and on the disk. Raises `ArchiveError` when what is read is not
    what was written, and for a folder that cannot be used.
    """
    stem = f"audit_logs_{month.replace('-', '_')}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clean(folder, stem)
        part = folder / f".{stem}.{secrets.token_hex(4)}.part"
        try:
            with part.open("xb") as file:
                rows, digest = _write(file, feed, types)
            _read_back(part, rows, digest)
            archive = Archive(
                month=month,
                path=f"{stem}.{digest[:12]}.parquet",
                rows=rows,
                bytes=part.stat().st_size,
                sha256=digest,
            )
            os.replace(part, folder / archive.path)
        finally:
            part.unlink(missing_ok=True)
        _manifest(folder, archive, types)
        _sync(folder)
    except OSError as error:
        raise ArchiveError(
            f"the month {month} cannot be written to {folder} ({error.strerror or error}); "
            "make room there, or set FWDB_AUDIT_ARCHIVE to another folder."
        ) from error
    return archive


def check(folder: Path, archive: Archive) -> Path:
    """The file of `archive`, if it is there and is what was written; else `ArchiveError`.

    A file whose size, time and place are those of the last look is not read again.
    """
    path = folder / archive.path
    if path.parent != folder or archive.path in ("", ".", ".."):
        raise ArchiveError(
            f"audit.archives names '{archive.path}', which is no file of the archive folder; fwdb "
            "never wrote that: find out who did, and put the right name there."
        )
    try:
        found = path.stat()
        digest = _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)
    except FileNotFoundError:
        raise ArchiveError(
            f"the archive of {archive.month} is missing: there is no {archive.path} in {folder}; "
            "put it back from a copy, or set FWDB_AUDIT_ARCHIVE to the folder that has it."
        ) from None
    except OSError as error:
        raise ArchiveError(
            f"the archive of {archive.month} cannot be read: {path} ({error.strerror})."
        ) from error
    if digest != archive.sha256:
        raise ArchiveError(
            f"the archive of {archive.month} is damaged: {path} has the SHA-256 {digest[:12]}… and "
            f"was written with {archive.sha256[:12]}…; put it back from a copy."
        )
    return path


def remove(folder: Path, month: str, name: str) -> None:
    """Remove a file that a newer export of the same month has replaced, and its manifest.

    Raises `ArchiveError` for a name that no export of `month` has.
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] != month.replace("-", "_"):
        raise ArchiveError(
            f"audit.archives notes '{name}' as an export of {month} that can go, and fwdb writes "
            "none of that name: nothing was removed. Find out who did, and take it out of there."
        )
    for path in (folder / name, _manifest_path(folder, name)):
        path.unlink(missing_ok=True)


class _Hashed:
    """A file for pyarrow that knows the checksum of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self.closed = True


def _write(file: BinaryIO, feed: Feed, types: dict[str, str]) -> tuple[int, str]:
    """Rows written and checksum of the file, which is on the disk."""
    hashed = _Hashed(file)
    writer: pq.ParquetWriter | None = None
    rows = 0

    def consume(table: pa.Table) -> None:
        nonlocal writer, rows
        if writer is None:
            described = [f.with_metadata({"postgres": types[f.name]}) for f in table.schema]
            writer = pq.ParquetWriter(
                pa.PythonFile(hashed, mode="w"),
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

    try:
        feed(consume)
    finally:
        if writer is not None:
            writer.close()
    file.flush()
    os.fsync(file.fileno())
    return rows, hashed.sha256.hexdigest()


def _read_back(path: Path, rows: int, digest: str) -> None:
    """The bytes are compared, and each value is decoded, batch by batch."""
    found = path.stat()
    same = _digest(path, found.st_size, found.st_mtime_ns, found.st_ino) == digest
    if same:
        with pq.ParquetFile(path) as file:
            same = sum(batch.num_rows for batch in file.iter_batches()) == rows
    if not same:
        raise ArchiveError(
            f"{path.parent} did not keep what was written to it ({rows:,} rows of the audit "
            "trail, which are still in their table); check the disk and run it again."
        )


def _manifest(folder: Path, archive: Archive, types: dict[str, str]) -> None:
    path = _manifest_path(folder, archive.path)
    part = folder / f".{path.name}.{secrets.token_hex(4)}.part"
    content = {
        "schema": 1,
        "table": "audit.audit_logs",
        "month": archive.month,
        "file": archive.path,
        "rows": archive.rows,
        "bytes": archive.bytes,
        "sha256": archive.sha256,
        "order": list(ORDER),
        "columns": types,
        "exported_at": datetime.now(UTC).isoformat(),
    }
    with part.open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _manifest_path(folder: Path, name: str) -> Path:
    return folder / f"{name.removesuffix('.parquet')}.json"


def _clean(folder: Path, stem: str) -> None:
    for part in folder.glob(f".{stem}.*.part"):
        if time.time() - part.stat().st_mtime > _STALE_SECONDS:
            part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """The names too are on the disk before the database says that they are there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed_ns: int, inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
