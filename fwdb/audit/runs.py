"""One at a time: the session that follows, or retains and erases, as audit.runs names it.

No advisory lock: every role may take any, and one that a stranger holds would stop the work for
good and say that it is done. The table belongs to the owner of the trail. A session is known by
its pid, its role and its start, so the row of one that is gone says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fwdb.errors import Conflict, FeatureUnavailable, StoreUnavailable
from fwdb.stores import PostgresStore

__all__ = ["alone"]

# The start of another role's session is told to members of pg_monitor only.
_LIVES = "a.pid = r.pid AND a.usename = r.role AND coalesce(a.backend_start = r.since, true)"
_THERE = sa.text("SELECT to_regclass('audit.runs') IS NOT NULL AS there /* fwdb */")
_BEGIN = sa.text(f"""
INSERT INTO audit.runs AS r (name, pid, role, since)
SELECT :name, pid, usename, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()
ON CONFLICT (name) DO UPDATE
    SET pid = EXCLUDED.pid, role = EXCLUDED.role, since = EXCLUDED.since
    WHERE NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE {_LIVES}) /* fwdb */
""")
_END = sa.text("DELETE FROM audit.runs WHERE name = :name AND pid = pg_backend_pid() /* fwdb */")
_RIVAL = sa.text(f"""
SELECT a.pid, a.application_name AS program, r.since
FROM audit.runs AS r JOIN pg_stat_activity AS a ON {_LIVES} WHERE r.name = :name /* fwdb */
""")
_SESSION = " (session {pid}, program '{program}', since {since:%Y-%m-%dT%H:%MZ})"


@contextmanager
def alone(store: PostgresStore, name: str, rival: str) -> Iterator[None]:
    """The only run of `name`; it ends with the session at the latest, however that ends.

    Raises `Conflict` while there is another, which the sentence `rival` says of it; a role that
    may not write the trail gets `PermissionDenied`, `FeatureUnavailable` is before `fwdb migrate`.
    """
    if not store.rows(_THERE)[0]["there"]:
        raise FeatureUnavailable("this database has no table audit.runs; run 'fwdb migrate' first.")
    with store.connection(naming=False) as connection:
        if not connection.execute(_BEGIN, {"name": name}).rowcount:
            sessions = "".join(_SESSION.format(**row) for row in store.rows(_RIVAL, name=name))
            raise Conflict(rival.format(sessions))
        try:
            yield
        except StoreUnavailable as error:
            if error.database == store.name:
                connection.invalidate()  # to give the turn back would be to wait once more
            raise
        finally:
            if not connection.invalidated:
                connection.execute(_END, {"name": name})
