"""Archives without what was erased: a file that holds it is written anew, and the old one goes.

The new file is whole before the transaction that records it in audit.archives; the old one is noted
there until it is removed. Whatever stops a run, the database names files that are there, and the
next `erase` or `retain` removes what is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from fwdb.audit import archives, canonical, partitions
from fwdb.audit.archives import Archive
from fwdb.errors import ArchiveError, FeatureUnavailable, SealError
from fwdb.stores import PostgresStore

__all__ = ["Wanted", "anew", "dropped", "is_ready", "lines", "record", "require", "sweep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Rows whose columns `equal` have these texts, and the columns that are emptied in them."""

    equal: Mapping[str, str]
    emptied: tuple[str, ...]


def dropped(store: PostgresStore) -> dict[date, Archive]:
    """Months that are in a file only, by their first day."""
    if not partitions.recorded(store):
        return {}
    found = store.rows(
        sa.text(
            "SELECT month AS day, to_char(month, 'YYYY-MM') AS month, path, rows, bytes, sha256"
            " FROM audit.archives WHERE dropped_at IS NOT NULL ORDER BY month /* fwdb */"
        )
    )
    return {row.pop("day"): Archive(**row) for row in map(dict, found)}


def lines(folder: Path, archive: Archive, wanted: Wanted) -> list[bytes]:
    """Rows of the file that hold something to erase, as `canonical.lines`.

    Raises `ArchiveError` for a file that is missing or damaged.
    """
    found: list[bytes] = []
    with pq.ParquetFile(archives.check(folder, archive)) as file:
        needed = [n for n in (*wanted.equal, *wanted.emptied) if n in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            if pc.any(_fits(file.read_row_group(group, columns=needed), wanted)).as_py():
                table = file.read_row_group(group)
                found += canonical.lines(table.filter(_fits(table, wanted)))
    return found


@contextmanager
def anew(
    store: PostgresStore,
    folder: Path | None,
    files: Mapping[date, Archive],
    wanted: Wanted,
    say: Callable[[str], None],
) -> Iterator[Mapping[date, Archive]]:
    """`files` written anew, for a block that calls `record` for each; the old ones go after it.

    What was written goes again when a file cannot be, or when the block refuses by a `SealError`.
    After any other error it may be what the database names by now, and stays.
    """
    if folder is None:
        yield {}
        return
    if files or is_ready(store):
        require(store)
        sweep(store, folder)
    written: dict[date, Archive] = {}
    try:
        for month, file in files.items():
            say(f"writing the archive of {file.month} anew")
            written[month] = _rewrite(folder, file, wanted)
        yield written
    except (ArchiveError, SealError):
        for file in written.values():
            archives.remove(folder, file.month, file.path)
        raise
    if written:
        sweep(store, folder)


def _rewrite(folder: Path, archive: Archive, wanted: Wanted) -> Archive:
    """The file without what is to be erased, under another name."""
    with pq.ParquetFile(archives.check(folder, archive)) as file:
        types = {f.name: f.metadata[b"postgres"].decode() for f in file.schema_arrow}

        def feed(consume: Callable[[pa.Table], None]) -> None:
            for group in range(file.num_row_groups):
                consume(_without(file.read_row_group(group), wanted))

        return archives.write(folder, archive.month, feed, types=types)


def record(store: PostgresStore, old: Archive, new: Archive) -> None:
    """Let the database name `new`, and `old` as a file to be removed."""
    store.execute(
        sa.text(
            "UPDATE audit.archives SET path = :path, bytes = :bytes, sha256 = :sha256,"
            " replaced = array_append(replaced, path) WHERE path = :old"
        ),
        {"path": new.path, "bytes": new.bytes, "sha256": new.sha256, "old": old.path},
    )


def sweep(store: PostgresStore, folder: Path) -> None:
    """Remove files that were replaced, if those in their place are whole.

    Raises `ArchiveError` for one that is not, and for one that cannot be removed.
    """
    files = dropped(store)
    noted = sa.text(
        "SELECT month, replaced FROM audit.archives WHERE cardinality(replaced) > 0 /* fwdb */"
    )
    named = {row["path"] for row in store.rows(sa.text("SELECT path FROM audit.archives"))}
    for row in store.rows(noted):
        file = files.get(row["month"])
        if file is None or named & {*row["replaced"]}:
            raise ArchiveError(
                f"audit.archives notes files of {row['month']:%Y-%m} as replaced that are not: "
                "nothing was removed. Find out who did, and take them out of there."
            )
        archives.check(folder, file)
        for name in row["replaced"]:
            try:
                archives.remove(folder, file.month, name)
            except OSError as error:
                raise ArchiveError(
                    f"{folder / name} holds what was erased and cannot be removed "
                    f"({error.strerror}); let it be removed, and run 'fwdb audit retain'."
                ) from error
        done = "UPDATE audit.archives SET replaced = DEFAULT WHERE month = :month"
        store.execute(sa.text(done), {"month": row["month"]})


def require(store: PostgresStore) -> None:
    """Raises `FeatureUnavailable` before the migration that replaces files."""
    if not is_ready(store):
        raise FeatureUnavailable(
            "this database cannot note yet which archives were replaced; run 'fwdb migrate'."
        )


def is_ready(store: PostgresStore) -> bool:
    """Whether the migration was run that lets files be replaced."""
    column = sa.text(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('audit.archives')"
        " AND attname = 'replaced' AND NOT attisdropped) AS found /* fwdb */"
    )
    return bool(store.rows(column)[0]["found"])


def _fits(table: pa.Table, wanted: Wanted) -> pa.ChunkedArray:
    """Which rows are wanted and have anything to be emptied."""
    there = table.schema.names
    equal = [
        pc.equal(pc.cast(table.column(name), pa.string()), text)
        for name, text in wanted.equal.items()
    ]
    held = [pc.is_valid(table.column(name)) for name in wanted.emptied if name in there]
    return pc.fill_null(pc.and_(reduce(pc.and_, equal), reduce(pc.or_, held)), False)


def _without(table: pa.Table, wanted: Wanted) -> pa.Table:
    chosen = _fits(table, wanted)
    for place, field in enumerate(table.schema):
        if field.name in wanted.emptied:
            kept = pc.if_else(chosen, pa.scalar(None, field.type), table.column(place))
            table = table.set_column(place, field, kept)
    return table
