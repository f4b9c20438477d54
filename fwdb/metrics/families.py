"""Series and their values as families of prometheus_client whose lines are ready.

The client makes each line anew from a dictionary of labels: 300 ms for 2,000 histograms. Here
the beginning of each line is kept, so that a scrape puts numbers behind it; the samples that
other users of a registry ask for are made only for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from fwdb.metrics.series import Series
from fwdb.stores import BOUNDS_MS as POOL_BOUNDS_MS
from fwdb.stores import Durations, QueryStats
from fwdb.stores.timings import BOUNDS_SECONDS, Timed

Labels = tuple[str, ...]  # values in the order of the series' names
Children = Mapping[Labels, float]

_BOUNDS = (*map(floatToGoString, BOUNDS_SECONDS), "+Inf")
_POOL_BOUNDS = (*map(floatToGoString, [bound / 1000 for bound in POOL_BOUNDS_MS]), "+Inf")
_PLAIN_BELOW = 1e6  # from here on the client writes an exponent


def number(value: float) -> str:
    """`value` as the client writes it."""
    if -_PLAIN_BELOW < value < _PLAIN_BELOW:
        return repr(value)
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


class Family(Metric):
    """A family with its samples as `lines`, in UTF-8."""

    def __init__(
        self, series: Series, lines: list[bytes], make: Callable[[], list[Sample]]
    ) -> None:
        super().__init__(series.name.removesuffix("_total"), series.help, series.kind)
        self.exposed = series.name
        self.lines = lines
        self._make = make
        del self.samples  # made when somebody asks

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """The same content as `lines`."""
        return self._make()


class Families:
    """Makes families; keeps what does not change from one scrape to the next."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, Labels], str] = {}
        self._blocks: dict[tuple[str, str, str], _Block] = {}

    def plain(self, series: Series, children: Children) -> Family:
        """A counter or gauge with one sample per child."""
        lines = "".join(
            [f"{self._head(series, child)} {number(children[child])}\n" for child in children]
        )
        return Family(series, [lines.encode()], lambda: list(_samples(series, children)))

    def durations(self, series: Series, stats: Mapping[str, QueryStats]) -> Family:
        """The histogram of what the stores counted; the labels are store, operation, status."""
        blocks, lines = self._blocks, []
        for database, found in stats.items():
            for timed in found.series:
                key = (database, timed.operation, timed.status)
                block = blocks.get(key)
                if block is None:
                    block = blocks[key] = _Block(_template(series, key))
                # The store gives the same object as long as nothing is added.
                lines.append(block.text if block.timed is timed else block.write(timed))
        return Family(series, lines, lambda: list(_histogram_samples(series, stats)))

    def pools(self, series: Series, durations: Mapping[str, Durations]) -> Family:
        """A histogram with one child per store, in the bounds of `Durations`."""
        samples = [
            sample
            for database, found in durations.items()
            for sample in _buckets(
                series, (database,), _POOL_BOUNDS, found.counts, found.total_ms / 1000
            )
        ]
        lines = "".join(
            f"{one.name}{label_text(tuple(one.labels), tuple(one.labels.values()))} "
            f"{number(one.value)}\n"
            for one in samples
        )
        return Family(series, [lines.encode()], lambda: samples)

    def _head(self, series: Series, labels: Labels) -> str:
        key = (series.name, labels)
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = series.name + label_text(series.labels, labels)
        return head


class _Block:
    """All lines of one child of a histogram, as they were last written."""

    __slots__ = ("template", "text", "timed")

    def __init__(self, template: str) -> None:
        self.template = template.encode()  # put together as bytes in half the time of text
        self.timed: Timed | None = None
        self.text = b""

    def write(self, timed: Timed) -> bytes:
        """Put the numbers of `timed` into the template."""
        upto = tuple(accumulate(timed.counts))
        self.text = self.template % (*upto, timed.seconds, upto[-1])
        self.timed = timed
        return self.text


def label_text(names: Labels, values: Labels) -> str:
    """``{database="postgres"}``, names in alphabetical order; nothing without labels."""
    pairs = sorted(zip(names, values, strict=True))
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _template(series: Series, labels: Labels) -> str:
    """The lines of one child of a histogram, ``%d`` for each count and ``%a`` for the sum."""
    lines = [
        f"{series.name}_bucket{label_text((*series.labels, 'le'), (*labels, bound))}"
        for bound in _BOUNDS
    ]
    rest = label_text(series.labels, labels)
    lines = [line.replace("%", "%%") + " %d.0\n" for line in lines]
    rest = rest.replace("%", "%%")
    return "".join(lines) + f"{series.name}_sum{rest} %a\n{series.name}_count{rest} %d.0\n"


def _samples(series: Series, children: Children) -> Iterable[Sample]:
    for labels, value in children.items():
        yield Sample(series.name, dict(zip(series.labels, labels, strict=True)), value)


def _histogram_samples(series: Series, stats: Mapping[str, QueryStats]) -> Iterable[Sample]:
    for database, found in stats.items():
        for timed in found.series:
            child = (database, timed.operation, timed.status)
            yield from _buckets(series, child, _BOUNDS, timed.counts, timed.seconds)


def _buckets(
    series: Series, child: Labels, bounds: Iterable[str], counts: Iterable[int], total: float
) -> Iterable[Sample]:
    named = dict(zip(series.labels, child, strict=True))
    upto = list(accumulate(counts))
    for bound, count in zip(bounds, upto, strict=True):
        yield Sample(f"{series.name}_bucket", {**named, "le": bound}, float(count))
    yield Sample(f"{series.name}_sum", named, total)
    yield Sample(f"{series.name}_count", named, float(upto[-1]))
