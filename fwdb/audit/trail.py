"""Rows of the audit trail, and what each changed, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from fwdb.arguments import Count
from fwdb.audit import arguments, values
from fwdb.audit.context import Context
from fwdb.errors import ParameterError
from fwdb.models import Id, entity_uuid
from fwdb.timespan import Time

__all__ = [
    *("by_user", "diff", "history", "recent", "search", "timeline", "who_changed"),
]

Names = str | Sequence[str]


def history(self: Context, entity_type: str, id: Id) -> pd.DataFrame:
    """The life of one entity, oldest first; no rows when nothing is known of it.

    Columns, here as in all questions for rows: `id`, `created_at`, `action`, `entity_type`,
    `entity_id` (as it was given, a UUID or an ObjectId), `user_id`, `changed_fields` (names
    with commas), `old_values` and `new_values` (JSON text), `metadata`, `ip_address`,
    `user_agent`; and what the server knew: `transaction_id`, `origin` (``trigger``,
    ``follower`` or ``application``), `reason` (as the caller said), `db_user`,
    `application_name`, `client_address`. These are missing in rows from before fwdb.
    """
    arguments.askable(self.postgres, entity_type)
    return _rows(self, "audit_history", entity_type=entity_type, entity_id=entity_uuid(id))


def by_user(
    self: Context,
    user_id: Id,
    *,
    since: Time | None = None,
    until: Time | None = None,
    limit: Count | None = None,
) -> pd.DataFrame:
    """What one user did, newest first; everything without `limit`."""
    return search(self, since=since, until=until, user_id=user_id, limit=limit)


def recent(self: Context, limit: Count = 100) -> pd.DataFrame:
    """The newest `limit` rows, newest first."""
    return search(self, limit=limit)


def search(
    self: Context,
    *,
    since: Time | None = None,
    until: Time | None = None,
    actions: Names | None = None,
    entity_types: Names | None = None,
    users: Id | Sequence[Id] | None = None,
    changed_field: str | None = None,
    limit: Count | None = 1000,
    action: str | None = None,
    entity_type: str | None = None,
    user_id: Id | None = None,
) -> pd.DataFrame:
    """Rows that fit all that is given, newest first, at most `limit` (None: all).

    `actions`, `entity_types` and `users` let through what they list; `action`, `entity_type`
    and `user_id` are the same filters for one value. `changed_field` finds rows in which that
    field differs before and after, in the spelling of Python or of the service (`first_name`,
    `firstName`); a creation or deletion touches all fields it holds. Raises `UnknownName` for
    an entity type, action or field that there is not, `ParameterError` for times that do not
    make a window.
    """
    start, end = arguments.window(since, until)
    types = arguments.listed(
        "entity_types", entity_types, entity_type, partial(arguments.askable, self.postgres)
    )
    if changed_field is not None:
        arguments.field(self.postgres, changed_field, types)
    return _rows(
        self,
        "audit_search",
        since=start,
        until=end,
        entity_types=types,
        users=arguments.listed("users", users, user_id, arguments.user),
        actions=arguments.listed("actions", actions, action, arguments.action),
        changed_field=changed_field,
        changed_field_too=arguments.other_spelling(changed_field),
        row_limit=limit,
    )


def timeline(self: Context, entity_type: str, id: Id) -> pd.DataFrame:
    """The life of one entity to be read from top to bottom: one row per changed field.

    `changed_at`, `entity_type`, `entity_id`, `action`, `field`, `before` and `after` (JSON
    text; missing where the field was not there), `user_id`, `reason`, `origin`,
    `transaction_id`, `db_user`, `application_name`, `client_address`, `log_id` (the row of
    the trail). Oldest first. Readings are left out, and what follows every update
    (`updated_at`, `version`) is left out of updates.
    """
    arguments.askable(self.postgres, entity_type)
    return _shown(_changes(self, entity_type, id).iloc[::-1].reset_index(drop=True))


def who_changed(
    self: Context,
    field: str,
    *,
    entity_type: str | None = None,
    id: Id | None = None,
    since: Time | None = None,
    until: Time | None = None,
    limit: Count | None = 1000,
) -> pd.DataFrame:
    """Each change of a field, newest first, at most `limit` (None: all): columns of `timeline`.

    `field` is found in both spellings, `first_name` and `firstName`. Raises `UnknownName`
    with the nearest right name, `ParameterError` for an `id` without its `entity_type`.
    """
    start, end = arguments.window(since, until)
    arguments.askable(self.postgres, entity_type)
    if id is not None and entity_type is None:
        raise ParameterError("'id' needs 'entity_type' too.", name="entity_type")
    arguments.field(self.postgres, field, None if entity_type is None else [entity_type])
    return _shown(
        _changes(self, entity_type, id, field=field, since=start, until=end, row_limit=limit)
    )


def diff(self: Context, entity_type: str, id: Id, since: Time, until: Time = "now") -> pd.DataFrame:
    """What is different of one entity at `until` from what it was at `since`.

    One row per field, by name: `field`, `before`, `after` (JSON text; missing where the
    entity or the field was not there), `changes` (how often it changed in between),
    `changed_at` and `user_id` of the last one, and `reason`, `db_user`, `log_id` of it. A
    field that came back to its value has no row. Raises as `who_changed`, and
    `ParameterError` for a `since` from when on changes are in archives.
    """
    start, end = arguments.closed_window(since, until)
    arguments.askable(self.postgres, entity_type)
    self.source.require(start, "since", ", or ask with_archives()")
    changes = _changes(self, entity_type, id, since=start, until=end)
    counts = changes.groupby("field")["field"].transform("size").astype("int64")
    last = changes.assign(changes=counts).drop_duplicates("field", keep="first")
    first = changes.drop_duplicates("field", keep="last").set_index("field")["before"]
    found = last.assign(before=last["field"].map(first).astype("str"))
    same = found["before"].eq(found["after"]).fillna(False) | (
        found["before"].isna() & found["after"].isna()
    )
    columns = "field before after changes changed_at user_id reason db_user log_id"
    different = found.loc[~same.astype(bool), columns.split()]
    return _shown(different.sort_values("field", ignore_index=True))


def _changes(self: Context, entity_type: str | None, id: Id | None, **filters: Any) -> pd.DataFrame:
    given = dict.fromkeys(("field", "since", "until", "row_limit")) | filters
    return self.source.frame(
        "audit_changes",
        entity_type=entity_type,
        entity_id=None if id is None else entity_uuid(id),
        field_too=arguments.other_spelling(given["field"]),
        **given,
    )


def _rows(self: Context, query: str, **parameters: Any) -> pd.DataFrame:
    frame = self.source.frame(query, **parameters)
    for column in ("old_values", "new_values", "metadata"):
        stored = frame[column].tolist()
        if not values.may_hold_secret("\n".join(v for v in stored if isinstance(v, str))):
            continue
        shown = [values.redact_json(text) for text in stored]
        if any(one is not other for one, other in zip(shown, stored, strict=True)):
            frame[column] = pd.Series(shown, index=frame.index, dtype="str")
    return frame


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` of `field`, `before` and `after` with its secrets redacted."""
    both = list(zip(frame["field"], frame["before"], frame["after"], strict=True))
    before = [values.redact_json(old, field) for field, old, _ in both]
    after = [values.redact_json(new, field, old) for field, old, new in both]
    return frame.assign(
        before=pd.Series(before, index=frame.index, dtype="str"),
        after=pd.Series(after, index=frame.index, dtype="str"),
    )
