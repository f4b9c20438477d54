"""`StatementQuestions`: what `Monitor` can tell about statements and commands."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from fwdb.arguments import Count, Seconds
from fwdb.config import Thresholds
from fwdb.errors import ParameterError
from fwdb.monitoring.asked import APPLICATION
from fwdb.monitoring.commands import CommandLedger
from fwdb.monitoring.history import History
from fwdb.monitoring.logged_plans import logged_plans
from fwdb.monitoring.plans import Plan, plan
from fwdb.monitoring.slow_queries import Order, SlowQueries, changed, ranked, window_before
from fwdb.stores import MongoStore, PostgresStore
from fwdb.timespan import Time


class StatementQuestions:
    """The part of `Monitor` that is about what the servers were asked, and how long it took."""

    thresholds: Thresholds
    _mongodb: MongoStore
    _store: PostgresStore
    _ledger: CommandLedger
    _history: History

    if TYPE_CHECKING:  # of Monitor

        @property
        def _mongodb_twin(self) -> MongoStore: ...
        def _window(self, since: Time, until: Time | None) -> tuple[datetime, datetime | None]: ...

    def slow_queries(
        self,
        since: Time = "24h",
        until: Time | None = None,
        *,
        min_ms: float | None = None,
        top: Count = 20,
        order: Order = "total",
        compare_since: Time | None = None,
        live_seconds: Seconds | None = None,
    ) -> pd.DataFrame:
        """Statements of both stores whose mean time in the window reaches `min_ms`.

        One row per statement shape, the first `top` of those by `order`: ``total`` or ``mean``
        time, ``calls``, ``io`` (time of reads, or blocks read where it is not measured), ``temp``,
        ``wal``, or ``growth`` of the total time over the window before (of the same length, or
        that from `compare_since`). `min_ms` is 100 unless FWDB_SLOW_QUERY_MS or the argument says
        otherwise. `mean_ms` and `stddev_ms` are times in the server for PostgreSQL and times of
        the client for MongoDB. `share_percent` is the part of its store's time in the window,
        those of statements below `min_ms` counted too. `lower_bound` marks statements whose
        counters began anew within the window.

        Source: difference of two readings of pg_stat_statements, the first one stored at or
        after `since`, the second taken now, or the last one stored before an `until` of more
        than a minute ago; timings of the clients for MongoDB, or its profiler when there are
        none. Statements inside functions are part of the one that called them, and fwdb's own
        questions are left out.

        ``attrs``: `status` and `reason`; `window`, the times the answer is about; `missing`,
        per store why it has no rows; `not_measured`, per store and column why it is missing;
        `coverage`, what part of the window the counters show; `totals`; `hidden`, what the role
        may not see. Raises `FeatureUnavailable` or another `FwdbError` when a store cannot be
        asked and the other has nothing either.
        """
        least = self.thresholds.slow_query_ms if min_ms is None else min_ms
        growing = order == "growth" or compare_since is not None
        if live_seconds is not None:
            if growing:
                raise ParameterError(
                    "a window watched live has none before it; leave 'live_seconds' out to "
                    "compare two of the history.",
                    name="live_seconds",
                )
            halves = self._queries.live(live_seconds)
            return ranked(halves, min_ms=least, top=top, order=order, asked={})
        start, end = self._window(since, until)
        before = window_before(start, end, compare_since, None) if growing else None
        return ranked(
            self._queries.past(start, end),
            min_ms=least,
            top=top,
            order=order,
            asked={"since": start, "until": end},
            before=self._queries.past(*before) if before else (),
        )

    def query_changes(
        self,
        since: Time = "24h",
        until: Time | None = None,
        *,
        compare_since: Time | None = None,
        compare_until: Time | None = None,
        top: Count = 20,
    ) -> pd.DataFrame:
        """What changed in the statements of both stores from another window to this one.

        The other window begins at `compare_since`, else as much earlier as this one is long, and
        is as long unless `compare_until` ends it. One row per statement, at most `top` of each
        `change`, which is one of

        - ``slower``: the lower 95 % bound of the ratio of the means exceeds 1.25, with 30 calls
          in both windows, and it cost 1 % of the window's time or more; `remark` names what
          changed with it,
        - ``new`` and ``vanished``: it ran in one of the windows only,
        - ``faster``: the opposite of slower,
        - ``unjudged``: too few calls, ``similar``: none of these.

        `extra_ms` is the change of the mean × the calls of this window. ``attrs`` are those of
        `slow_queries`, those of the other window as `before`, and `whole_server`: per store the
        factor by which it as a whole got slower, when more than half of the statements did alike;
        then only what slowed by more is ``slower``. Raises like `slow_queries`.
        """
        start, end = self._window(since, until)
        before = window_before(start, end, compare_since, compare_until)
        return changed(
            self._queries.past(*before),
            self._queries.past(start, end),
            top=top,
            asked={"since": start, "until": end},
        )

    def plan(self, query_id: str | int) -> Plan:
        """How PostgreSQL would run a statement it has recorded, without running it.

        By EXPLAIN (GENERIC_PLAN), in a read-only transaction with a short time limit. `status`
        is ``not_available`` before PostgreSQL 16 and for what has no plan, ``not_measured``
        when the role may not, ``no_data`` when nobody kept the text.
        """
        # In the CSV files of a report an apostrophe keeps spreadsheets from reading a formula.
        return plan(self._store, self._history, str(query_id).removeprefix("'"))

    def logged_plans(
        self,
        since: Time = "24h",
        until: Time | None = None,
        *,
        query_id: str | int | None = None,
        top: Count = 20,
    ) -> pd.DataFrame:
        """Plans that PostgreSQL itself logged in the window as statements ran, slowest first.

        Columns: ``logged_at`` (UTC, when the statement ended), ``query_id`` as in
        `slow_queries`, missing where the server computed none, ``duration_ms`` of this one run,
        ``application``, ``user_name``, ``statement`` and ``plan``, text without the values in it.
        At most `top` rows, of one `query_id` if it is given; statements of fwdb are left out.

        ``attrs["status"]`` and ``attrs["reason"]``: ``not_available`` when auto_explain is not
        loaded, off, or does not log text plans as JSON (PostgreSQL 15); ``not_measured`` when
        this role may not read them, with what a superuser does about it; ``no_data`` when there
        is none. ``attrs["remark"]`` says when the log was too long to be read whole.

        Source: messages of auto_explain in the server's JSON log, whose newest 8 MB are read.
        """
        start, end = self._window(since, until)
        wanted = None if query_id is None else str(query_id).removeprefix("'")
        return logged_plans(self._store, start, end, query_id=wanted, top=top)

    @cached_property
    def _queries(self) -> SlowQueries:
        return SlowQueries(
            self._store,
            self._mongodb,
            self._mongodb_twin,
            self._ledger,
            self._history,
            application=APPLICATION,
        )
