"""The URL of a store, with its password: for a second store, a child process, another server."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from fwdb.stores import MongoStore, PostgresStore


def url_of(store: PostgresStore | MongoStore, **changes: Any) -> str:
    """The URL that `store` was given; of PostgreSQL's with other parts, such as ``username``."""
    if isinstance(store, MongoStore):
        return store._given.get_secret_value()
    return text(store.url.set(drivername="postgresql", **changes))


def text(url: sa.URL) -> str:
    """`url` with its password."""
    return url.render_as_string(hide_password=False)
