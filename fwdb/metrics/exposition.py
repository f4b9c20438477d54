"""What a registry holds, written out: Prometheus's text, OpenMetrics, JSON, a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from prometheus_client import Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample

from fwdb.metrics.families import Family

TEXT = CONTENT_TYPE_PLAIN_0_0_4

_END = b"# EOF\n"
_COUNTING = ("counter", "histogram", "summary", "gaugehistogram")


def negotiate(accept: str) -> str:
    """The content type for a client that sends `accept`: OpenMetrics if it asks for it.

    The client's own `choose_encoder` raises ValueError of versions that are no numbers.
    """
    return openmetrics.CONTENT_TYPE_LATEST if "application/openmetrics-text" in accept else TEXT


def write(families: Iterable[Metric], content_type: str = TEXT) -> bytes:
    """All families in the format of `content_type`, which `negotiate` gave."""
    is_open = content_type == openmetrics.CONTENT_TYPE_LATEST
    parts: list[bytes] = []
    for family in families:
        if isinstance(family, Family):
            parts.append(_open_head(family) if is_open else _head(family))
            parts += family.lines
        else:
            parts.append(_foreign(family, is_open=is_open))
    if is_open:
        parts.append(_END)
    return b"".join(parts)


def _head(family: Family) -> bytes:
    said = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    name = family.exposed
    return f"# HELP {name} {said}\n# TYPE {name} {family.type}\n".encode()


def _open_head(family: Family) -> bytes:
    said = family.documentation.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    name = family.name
    return f"# HELP {name} {said}\n# TYPE {name} {family.type}\n".encode()


def _foreign(family: Metric, *, is_open: bool) -> bytes:
    """A family that somebody else has registered, by the client's own writers."""
    one = _One(_without_created(family))
    if not is_open:
        return generate_latest(one)
    written: bytes = openmetrics.generate_latest(one)  # type: ignore[no-untyped-call]
    return written.removesuffix(_END)


@dataclass(frozen=True, slots=True)
class _One:
    """The least that the client's writers take for a registry."""

    family: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.family


def _without_created(family: Metric) -> Metric:
    """`family` without the time at which each child was made, which Prometheus would store as a
    series of its own. The client's switch for it is one for the whole process, hence not ours."""
    if family.type not in _COUNTING:
        return family
    kept = Metric(family.name, family.documentation, family.type, family.unit)
    kept.samples = _counted(family)
    return kept


def _counted(family: Metric) -> list[Sample]:
    return [sample for sample in family.samples if sample.name != f"{family.name}_created"]


def json(families: Iterable[Metric]) -> list[dict[str, Any]]:
    """The shape of prom-client's ``getMetricsAsJSON()``, ready for strict JSON.

    `le` is a number but for ``"+Inf"``; a value that is no finite number is None.
    """
    return [
        {
            "help": family.documentation,
            "name": _exposed(family),
            "type": "gauge" if family.type in {"info", "stateset"} else family.type,
            "values": [_value(family, sample) for sample in _shown(family)],
            "aggregator": "sum",
        }
        for family in families
    ]


def _exposed(family: Metric) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name + suffix


def _shown(family: Metric) -> list[Sample]:
    return _counted(family) if family.type in _COUNTING else family.samples


def _value(family: Metric, sample: Sample) -> dict[str, Any]:
    labels: dict[str, Any] = dict(sample.labels)
    value = sample.value if math.isfinite(sample.value) else None
    if family.type not in {"histogram", "summary", "gaugehistogram"}:
        return {"value": value, "labels": labels}
    found: dict[str, Any] = {"labels": labels, "value": value, "metricName": sample.name}
    for bound in ("le", "quantile"):
        if bound in labels and labels[bound] != "+Inf":
            labels[bound] = float(labels[bound])
    if sample.name.endswith("_bucket"):
        found["exemplar"] = None
    return found


COLUMNS = ("metric", "type", "database", "labels", "value")


def frame(families: Iterable[Metric]) -> pd.DataFrame:
    """One row per sample; see `Metrics.frame`."""
    rows = []
    for family in families:
        for sample in _shown(family):
            labels = dict(sample.labels)
            database = labels.pop("database", None)
            said = ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
            rows.append((sample.name, family.type, database, said, sample.value))
    made = pd.DataFrame(rows, columns=list(COLUMNS))
    return made.astype({"metric": "str", "type": "str", "database": "str", "labels": "str"})
