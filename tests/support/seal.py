"""What the tests of seals share: trails with a key, and a month in an archive."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from pydantic import SecretStr

from fwdb import config
from fwdb.audit import Audit
from fwdb.audit.seal import canonical
from fwdb.stores import PostgresStore
from support.sql import do


def audit_of(store: PostgresStore, key: str | None) -> Audit:
    secret = None if key is None else SecretStr(key)
    return Audit(store, settings=config.settings().model_copy(update={"audit_key": secret}))


def manifest(path: Path, rows: int) -> str:
    """Writes the manifest of an archive; the checksum of that."""
    digest = sha256(path.read_bytes()).hexdigest()
    said = {"file": path.name, "rows": rows, "sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(said))
    return digest


def archived(store: PostgresStore, path: Path, *, ago: int = 0) -> None:
    """Writes the rows of a month to a file, as the retention does; they are still in the table."""
    month = "date_trunc('month', now() - make_interval(months => :ago))"
    frame = store.frame(
        sa.text(
            f"SELECT {', '.join(canonical.FIELDS)} FROM audit.audit_logs WHERE created_at"
            f" >= {month} AND created_at < {month} + interval '1 month' ORDER BY created_at, id"
        ),
        ago=ago,
    )
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    digest = manifest(path, len(frame))
    do(
        store,
        "INSERT INTO audit.archives (month, path, rows, bytes, sha256, versions, dropped_at)"
        f" VALUES ({month}, :path, :rows, :bytes, :digest, 0, now())",
        ago=ago,
        path=path.name,
        rows=len(frame),
        bytes=path.stat().st_size,
        digest=digest,
    )
