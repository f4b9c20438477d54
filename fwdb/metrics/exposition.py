"""What a registry holds, written out: Prometheus's text, OpenMetrics, JSON, a table."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from prometheus_client import CollectorRegistry, Metric, generate_latest, write_to_textfile
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from fwdb.errors import MetricsError

TEXT = CONTENT_TYPE_PLAIN_0_0_4
OPEN = openmetrics.CONTENT_TYPE_LATEST

COLUMNS = ("metric", "type", "database", "labels", "value")


class Exposition(Collector):
    """A registry, without the times at which its children were made.

    Prometheus would store each of them as a series of its own. The client's switch for it is one
    for the whole process, hence not ours.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """The families of the registry at this moment."""
        for family in self._registry.collect():
            shown = copy.copy(family)
            created = f"{family.name}_created"
            shown.samples = [sample for sample in family.samples if sample.name != created]
            yield shown

    def text(self) -> str:
        """Prometheus's text format."""
        return generate_latest(self).decode()

    def negotiated(self, accept: str) -> tuple[str, bytes]:
        """Content type and text for a client that sends `accept`: OpenMetrics if it asks for it.

        The client's own `choose_encoder` raises errors of versions that are no numbers.
        """
        if "application/openmetrics-text" not in accept:
            return TEXT, generate_latest(self)
        return OPEN, openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]

    def json(self) -> list[dict[str, Any]]:
        """The shape of prom-client's ``getMetricsAsJSON()``, ready for strict JSON.

        `le` is a number but for ``"+Inf"``; a value that is no finite number is None.
        """
        return [
            {
                "help": family.documentation,
                "name": family.name + {"counter": "_total", "info": "_info"}.get(family.type, ""),
                "type": "gauge" if family.type in {"info", "stateset"} else family.type,
                "values": [_value(family, sample) for sample in family.samples],
                "aggregator": "sum",
            }
            for family in self.collect()
        ]

    def frame(self) -> pd.DataFrame:
        """One row per sample; see `Metrics.frame`."""
        rows = []
        for family in self.collect():
            for sample in family.samples:
                labels = dict(sample.labels)
                database = labels.pop("database", None)
                said = ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
                rows.append((sample.name, family.type, database, said, sample.value))
        made = pd.DataFrame(rows, columns=list(COLUMNS))
        return made.astype({"metric": "str", "type": "str", "database": "str", "labels": "str"})


def write(path: Path, collector: Collector) -> Path:
    """Put the text of `collector` at `path` by one rename; where it is. Raises `MetricsError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), collector, escaping=openmetrics.UNDERSCORES)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MetricsError(
            f"the metrics cannot be written to {path} ({reason}); choose another file."
        ) from error
    return path


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
