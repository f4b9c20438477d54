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
from fwdb.stores.timings import BOUNDS_SECONDS

Labels = tuple[str, ...]  # values in the order of the series' names
Children = Mapping[Labels, float]
Buckets = tuple[tuple[int, ...], float]  # a count per bucket, the last beyond all; sum of values

_BOUNDS = (*map(floatToGoString, BOUNDS_SECONDS), "+Inf")


def number(value: float) -> str:
    """`value` as the client writes it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


class Family(Metric):
    """A family with the lines of its samples as `body`."""

    def __init__(self, series: Series, body: str, make: Callable[[], list[Sample]]) -> None:
        super().__init__(series.name.removesuffix("_total"), series.help, series.kind)
        self.exposed = series.name
        self.body = body
        self._make = make
        del self.samples  # made when somebody asks

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """The same content as `body`."""
        return self._make()


class Families:
    """Makes families; keeps what does not change from one scrape to the next."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, Labels], str] = {}
        self._templates: dict[tuple[str, Labels], str] = {}
        self._blocks: dict[tuple[str, Labels], tuple[Buckets, str]] = {}

    def plain(self, series: Series, children: Children) -> Family:
        """A counter or gauge with one sample per child."""
        body = "".join(
            f"{self._head(series, labels)} {number(value)}\n" for labels, value in children.items()
        )
        return Family(series, body, lambda: list(_samples(series, children)))

    def histogram(self, series: Series, children: Iterable[tuple[Labels, Buckets]]) -> Family:
        """A histogram; `children` are in the order of `BOUNDS_SECONDS`."""
        found = list(children)
        body = "".join([self._block(series, labels, buckets) for labels, buckets in found])
        return Family(series, body, lambda: list(_histogram_samples(series, found)))

    def _head(self, series: Series, labels: Labels) -> str:
        key = (series.name, labels)
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = series.name + label_text(series.labels, labels)
        return head

    def _block(self, series: Series, labels: Labels, buckets: Buckets) -> str:
        """All lines of one child; those of the last scrape if nothing was added since."""
        key = (series.name, labels)
        before = self._blocks.get(key)
        if before is not None and before[0] == buckets:
            return before[1]
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = _template(series, labels)
        counts, total = buckets
        upto = tuple(accumulate(counts))
        block = template % (*upto, number(total), upto[-1])
        self._blocks[key] = (buckets, block)
        return block


def label_text(names: Labels, values: Labels) -> str:
    """``{database="postgres"}``, names in alphabetical order; nothing without labels."""
    pairs = sorted(zip(names, values, strict=True))
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _template(series: Series, labels: Labels) -> str:
    """The lines of one child of a histogram, ``%d`` for each count."""
    lines = [
        f"{series.name}_bucket{label_text((*series.labels, 'le'), (*labels, bound))}"
        for bound in _BOUNDS
    ]
    rest = label_text(series.labels, labels)
    lines = [line.replace("%", "%%") + " %d.0\n" for line in lines]
    rest = rest.replace("%", "%%")
    return "".join(lines) + f"{series.name}_sum{rest} %s\n{series.name}_count{rest} %d.0\n"


def _samples(series: Series, children: Children) -> Iterable[Sample]:
    for labels, value in children.items():
        yield Sample(series.name, dict(zip(series.labels, labels, strict=True)), value)


def _histogram_samples(
    series: Series, children: Iterable[tuple[Labels, Buckets]]
) -> Iterable[Sample]:
    for labels, (counts, total) in children:
        named = dict(zip(series.labels, labels, strict=True))
        upto = list(accumulate(counts))
        for bound, count in zip(_BOUNDS, upto, strict=True):
            yield Sample(f"{series.name}_bucket", {**named, "le": bound}, float(count))
        yield Sample(f"{series.name}_sum", named, total)
        yield Sample(f"{series.name}_count", named, float(upto[-1]))
