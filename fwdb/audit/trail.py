"""`Audit`: writes the trail in the transaction of the change, and answers questions about it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
import sqlalchemy as sa

from fwdb.audit import checks, retention, values
from fwdb.errors import FwdbError
from fwdb.models import ACTIONS, AuditLog, audit_logs, entity_uuid
from fwdb.stores import PostgresStore

__all__ = ["Audit"]

Id = str | UUID
Moment = str | datetime | timedelta

# An hour for each point of a chart up to a week, which is 168 points; days beyond.
_HOURLY_UP_TO = timedelta(days=7)
_BUCKETS = ("minute", "hour", "day", "week", "month")


class Audit:
    """Who did what to what, and when: the table `audit.audit_logs`.

    The `log_…` methods belong inside ``with db.transaction()`` beside the change they describe:
    they join it, so both are kept or neither is. They raise what the database says and never
    hide it. Outside a transaction each commits by itself. A design lives in MongoDB, which a
    PostgreSQL transaction cannot include.

    Questions come back as DataFrames whose columns and types do not depend on the answer. Times
    are UTC; `since` is part of a window, `until` is not. Rows written by other programs are read
    too, also those of other kinds; passwords and the like in them are shown as ``[redacted]``.
    """

    def __init__(self, postgres: PostgresStore, *, retention_days: int = 365) -> None:
        self._postgres = postgres
        self._retention_days = retention_days
        self._lock = threading.Lock()
        self._written = dict.fromkeys(ACTIONS, 0)
        self._failed = 0

    # -- recording ----------------------------------------------------------------------------

    def log_create(
        self,
        entity_type: str,
        id: Id,
        new: object,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog:
        """Record that `entity_type` `id` was made with the values `new`.

        `new` is an entity or a mapping; its secrets are not stored. `user_id` is who did it.
        Raises `UnknownName` for an entity type fwdb does not have, `ParameterError` for an id
        that is neither a UUID nor an ObjectId, `ForeignKeyViolation` for an unknown user.
        """
        return self._log(
            "CREATE", entity_type, id, None, values.image(new),
            user_id, ip_address, user_agent, metadata,
        )  # fmt: skip

    def log_update(
        self,
        entity_type: str,
        id: Id,
        old: object,
        new: object,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog | None:
        """Record that `entity_type` `id` changed from `old` to `new`: the fields that differ.

        Nothing is written, and None returned, when nothing but `updated_at` and `version`
        differs. The two values of each changed field are all that a history, a difference and
        going back in time need, at a fraction of two whole images. Raises as `log_create`.
        """
        checks.recordable(entity_type)
        differing = values.changes(old, new)
        if differing is None:
            return None
        return self._log(
            "UPDATE", entity_type, id, *differing, user_id, ip_address, user_agent, metadata
        )

    def log_delete(
        self,
        entity_type: str,
        id: Id,
        old: object,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog:
        """Record that `entity_type` `id`, whose values were `old`, was deleted, softly or not.

        Call it before the deletion of a user's row who deletes themself: afterwards there is
        no such user to name. Raises as `log_create`.
        """
        return self._log(
            "DELETE", entity_type, id, values.image(old), None,
            user_id, ip_address, user_agent, metadata,
        )  # fmt: skip

    def log_read(
        self,
        entity_type: str,
        id: Id,
        *,
        user_id: Id | None = None,
        ip_address: str | None = None,
        user_agent: str | None = None,
        metadata: str | Mapping[str, Any] | None = None,
    ) -> AuditLog:
        """Record that `entity_type` `id` was read; no values are stored. Raises as `log_create`."""
        return self._log(
            "READ", entity_type, id, None, None, user_id, ip_address, user_agent, metadata
        )

    def _log(
        self,
        action: str,
        entity_type: str,
        id: Id,
        old: values.Values | None,
        new: values.Values | None,
        user_id: Id | None,
        ip_address: str | None,
        user_agent: str | None,
        metadata: str | Mapping[str, Any] | None,
    ) -> AuditLog:
        if isinstance(metadata, Mapping):
            metadata = json.dumps(values.image(metadata), ensure_ascii=False)
        row: dict[str, Any] = {
            "user_id": checks.user(user_id),
            "entity_type": checks.recordable(entity_type),
            "entity_id": str(id) if entity_uuid(id) else None,
            "action": action,
            "old_values": old,
            "new_values": new,
            "metadata": values.text(metadata),
            "ip_address": checks.ip_address(ip_address),
            "user_agent": values.text(user_agent),
            # The moment of this change, where now() is the start of its transaction: so the
            # changes of one transaction keep their order.
            "created_at": sa.func.clock_timestamp(),
        }
        statement = (
            sa.insert(audit_logs)
            .values({name: value for name, value in row.items() if value is not None})
            .returning(*audit_logs.columns)
        )
        try:
            with self._postgres.connection() as connection:
                entry = AuditLog(**connection.execute(statement).mappings().one())
        except FwdbError:
            with self._lock:
                self._failed += 1
            raise
        with self._lock:
            self._written[action] += 1
        return entry

    def counts(self) -> tuple[dict[str, int], int]:
        """Entries written through this object, by action, and how many could not be.

        Those of a transaction that was rolled back later are among the written ones.
        """
        with self._lock:
            return dict(self._written), self._failed

    # -- asking for rows ----------------------------------------------------------------------

    def history(self, entity_type: str, id: Id) -> pd.DataFrame:
        """The life of one entity, oldest first; no rows when nothing is known of it.

        Columns, here as in all questions for rows: `id`, `created_at`, `action`, `entity_type`,
        `entity_id` (as it was given, a UUID or an ObjectId), `user_id`, `changed_fields` (names
        with commas), `old_values` and `new_values` (JSON text), `metadata`, `ip_address`,
        `user_agent`.
        """
        self._askable(entity_type)
        return self._rows("audit_history", entity_type=entity_type, entity_id=entity_uuid(id))

    def by_user(
        self,
        user_id: Id,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """What one user did, newest first; everything without `limit`."""
        return self.search(since=since, until=until, user_id=user_id, limit=limit)

    def recent(self, limit: int = 100) -> pd.DataFrame:
        """The newest `limit` rows, newest first."""
        return self.search(limit=limit)

    def search(
        self,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        entity_type: str | None = None,
        user_id: Id | None = None,
        action: str | None = None,
        changed_field: str | None = None,
        limit: int | None = 1000,
    ) -> pd.DataFrame:
        """Rows that fit all that is given, newest first, at most `limit` (None: all).

        `changed_field` finds rows in which that field differs before and after, in the spelling
        of Python or of the service (`first_name`, `firstName`); a creation or deletion touches
        all fields it holds. Raises `UnknownName` for an entity type, action or field that there
        is not, `ParameterError` for times that do not make a window.
        """
        start, end = checks.window(since, until)
        self._askable(entity_type)
        if changed_field is not None:
            checks.field(self._postgres, changed_field, entity_type)
        return self._rows(
            "audit_search",
            since=start,
            until=end,
            entity_type=entity_type,
            user_id=checks.user(user_id),
            action=checks.action(action),
            changed_field=changed_field,
            changed_field_too=checks.other_spelling(changed_field),
            row_limit=checks.count(limit, "limit"),
        )

    def _rows(self, query: str, **parameters: Any) -> pd.DataFrame:
        frame = self._postgres.frame(query, **parameters)
        for column in ("old_values", "new_values", "metadata"):
            stored = frame[column].tolist()
            shown = [values.redact_json(v) if isinstance(v, str) else v for v in stored]
            if any(one is not other for one, other in zip(shown, stored, strict=True)):
                frame[column] = pd.Series(shown, index=frame.index, dtype="str")
        return frame

    # -- asking for figures -------------------------------------------------------------------

    def activity(
        self,
        since: Moment = "7d",
        until: Moment = "now",
        bucket: str | None = None,
        *,
        entity_type: str | None = None,
        user_id: Id | None = None,
        action: str | None = None,
    ) -> pd.DataFrame:
        """How much was recorded: `bucket_at`, `entity_type`, `action`, `events`.

        `bucket` is ``minute``, ``hour``, ``day``, ``week`` (from Monday) or ``month``, in UTC; by
        default hours for a window of up to a week, else days. What did not happen has no row.
        """
        start, end = checks.closed_window(since, until)
        if bucket is None:
            bucket = "hour" if end - start <= _HOURLY_UP_TO else "day"
        return self._figures(
            "audit_activity", start, end, entity_type, user_id, action,
            bucket=checks.choice("bucket", bucket, _BUCKETS),
        )  # fmt: skip

    def actors(
        self,
        since: Moment = "7d",
        until: Moment = "now",
        *,
        top: int = 10,
        entity_type: str | None = None,
        user_id: Id | None = None,
        action: str | None = None,
    ) -> pd.DataFrame:
        """The `top` users by recorded events, most active first.

        `user_id` (missing: rows that do not say who), `events`, `creates`, `updates`, `reads`,
        `deletes`, `first_at`, `last_at`, `share_percent` (0 to 100, of all events that fit).
        """
        start, end = checks.closed_window(since, until)
        return self._figures(
            "audit_actors", start, end, entity_type, user_id, action,
            row_limit=checks.count(top, "top"),
        )  # fmt: skip

    def totals(
        self,
        since: Moment = "7d",
        until: Moment = "now",
        *,
        entity_type: str | None = None,
        user_id: Id | None = None,
        action: str | None = None,
    ) -> pd.DataFrame:
        """Events per action: `action`, `events`, `without_actor`, `first_at`, `last_at`.

        Always four rows, CREATE, UPDATE, DELETE and READ, also when there are none of one.
        """
        start, end = checks.closed_window(since, until)
        return self._figures("audit_totals", start, end, entity_type, user_id, action)

    def bursts(
        self,
        since: Moment = "7d",
        until: Moment = "now",
        *,
        entity_type: str | None = None,
        user_id: Id | None = None,
        action: str | None = None,
    ) -> pd.DataFrame:
        """Hours with far more events of one kind than is usual at that hour, oddest first.

        `bucket_at`, `entity_type`, `action`, `events`, `usual`, `times_usual` (missing when
        nothing is usual), `top_user_id`, `top_user_events`. Usual is the median of the same hour
        on the days up to 28 before and after, working days and weekends apart, as far as `until`.
        An hour is listed with at least 10 events, 3 times the usual and 6 robust standard
        deviations above it; the query file `audit_bursts` has the formula.
        """
        start, end = checks.closed_window(since, until)
        return self._figures("audit_bursts", start, end, entity_type, user_id, action)

    def _figures(
        self,
        query: str,
        since: datetime,
        until: datetime,
        entity_type: str | None,
        user_id: Id | None,
        action: str | None,
        **parameters: Any,
    ) -> pd.DataFrame:
        self._askable(entity_type)
        return self._postgres.frame(
            query,
            since=since,
            until=until,
            entity_type=entity_type,
            user_id=checks.user(user_id),
            action=checks.action(action),
            **parameters,
        )

    def _askable(self, entity_type: str | None) -> None:
        if entity_type is not None:
            checks.askable(self._postgres, entity_type)

    # -- retention ----------------------------------------------------------------------------

    def retain(
        self,
        older_than_days: int | None = None,
        *,
        batch: int = 5000,
        dry_run: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> retention.Retention:
        """Remove rows older than `older_than_days`, by default the retention of one year.

        Works on the existing unpartitioned table, `batch` rows per short transaction, so that
        writers wait for none of it; `progress` hears of each batch. `dry_run` counts and removes
        nothing. Raises `PermissionDenied`, with the GRANT that is missing.
        """
        return retention.retain(
            self._postgres,
            days=checks.count(
                self._retention_days if older_than_days is None else older_than_days,
                "older_than_days",
            ),
            batch=checks.count(batch, "batch"),
            dry_run=dry_run,
            progress=progress,
        )
