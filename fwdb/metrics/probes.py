"""Questions to the servers at scrape time: each asked once for all scrapes, within a deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fwdb.errors import FwdbError
from fwdb.metrics.families import Labels

logger = logging.getLogger(__name__)

Values = Mapping[str, Mapping[Labels, float]]  # series, child, value

# A little longer than the health question gives the stores (1 s), so that its own answer, which
# says which of them is silent, still counts.
DEADLINE_SECONDS = 1.25

# Of two scrapes, of Prometheus and of a person who reloads a page, one asks.
MAX_AGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a question gave: `values`, empty when it failed; how long it took."""

    values: Values
    seconds: float
    answered: bool


class Probe:
    """One question, named `name`, about some of the databases.

    It runs in a thread of its own. One that is still open when the next is due is waited for
    instead, so a frozen server holds one thread, however often it is scraped.
    """

    def __init__(self, name: str, databases: tuple[str, ...], ask: Callable[[], Values]) -> None:
        self.name = name
        self.databases = databases
        self.answered_at: float | None = None
        self._ask = ask
        self._open: _Asked | None = None
        self._trouble = ""

    def start(self) -> None:
        """Ask, unless the last question is still open."""
        # After a fork its thread is the parent's.
        if self._open is None or not self._open.thread.is_alive():
            self._open = _Asked(self._ask, f"fwdb-metrics-{self.name}-{'-'.join(self.databases)}")
            self._open.thread.start()

    def outcome(self, deadline: float) -> Outcome:
        """What came back by `deadline`, a time of the monotonic clock."""
        asked = self._open
        assert asked is not None
        asked.done.wait(max(0.0, deadline - time.monotonic()))
        if not asked.done.is_set():
            self._say("no answer within the deadline")
            return Outcome({}, time.monotonic() - asked.started, answered=False)
        if asked.error is not None:
            self._say(str(asked.error), asked.error)
            return Outcome({}, asked.seconds, answered=False)
        self._trouble = ""
        self.answered_at = time.time()
        return Outcome(asked.values, asked.seconds, answered=True)

    def _say(self, trouble: str, error: BaseException | None = None) -> None:
        """Log the same trouble once."""
        if trouble != self._trouble:
            unforeseen = error if not isinstance(error, FwdbError) else None
            which = f"{self.name} of {' and '.join(self.databases)}"
            logger.warning("the metrics lack %s: %s", which, trouble, exc_info=unforeseen)
        self._trouble = trouble


class _Asked:
    """One question on its way; `done` is set when it has come back."""

    def __init__(self, ask: Callable[[], Values], name: str) -> None:
        self._ask = ask
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.started = time.monotonic()
        self.done = threading.Event()
        self.values: Values = {}
        self.error: BaseException | None = None
        self.seconds = 0.0

    def run(self) -> None:
        try:
            self.values = self._ask()
        except BaseException as error:  # noqa: BLE001  told by `outcome`; hides nothing else
            self.error = error
        self.seconds = time.monotonic() - self.started
        self.done.set()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The servers at one moment: the values of all probes that answered, and how each went."""

    values: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def put(self, name: str, labels: Labels, value: float) -> None:
        """Add one value."""
        self.values.setdefault(name, {})[labels] = value


class Probes:
    """All probes together, read at once."""

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        max_age: float = MAX_AGE_SECONDS,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._probes = probes
        self._max_age = max_age
        self._deadline = deadline
        self._lock = threading.Lock()
        self._last: tuple[float, Snapshot] | None = None

    def read(self) -> Snapshot:
        """The snapshot of the last second, else a new one.

        Whoever comes while one is made waits for it, which takes no longer than the deadline.
        """
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > self._max_age:
                made = self._ask()
                self._last = (time.monotonic(), made)  # its age counts from its end
            return self._last[1]

    def _ask(self) -> Snapshot:
        deadline = time.monotonic() + self._deadline
        for probe in self._probes:
            probe.start()
        made = Snapshot()
        for probe in self._probes:
            outcome = probe.outcome(deadline)
            for name, children in outcome.values.items():
                for labels, value in children.items():
                    made.put(name, labels, value)
            for database in probe.databases:
                key = (database, probe.name)
                made.put("fwdb_probe_success", key, float(outcome.answered))
                made.put("fwdb_probe_duration_seconds", key, outcome.seconds)
                if probe.answered_at is not None:
                    name = "fwdb_probe_last_success_timestamp_seconds"
                    made.put(name, key, probe.answered_at)
        return made
