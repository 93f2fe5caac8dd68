"""Prometheus exposition of metrics; the only importer of `prometheus_client`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from octaskly.metrics.table import METRICS, Metric, Values
from octaskly.ports.histogram import Histogram

_PROCESS: Final = ProcessCollector(registry=CollectorRegistry())
_NUMBERS: Final[Mapping[str, type[CounterMetricFamily | GaugeMetricFamily]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


class _ScrapeCollector(Collector):
    """The metrics of one scrape."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Family]:
        """Yield metrics with a value, in table order, then those of the process."""
        for metric in METRICS:
            if metric.name in self._values:
                yield _family(metric, self._values)
        yield from _PROCESS.collect()


def render_metrics(values: Values) -> bytes:
    """Return the metrics in the Prometheus text format, version 0.0.4."""
    return generate_latest(_ScrapeCollector(values))


def _family(metric: Metric, values: Values) -> Family:
    value = values[metric.name]
    samples = [((), value)] if isinstance(value, int | float | Histogram) else value
    text = f"{metric.help_text[0].upper()}{metric.help_text[1:]}."
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, text, labels=metric.labels)
        for labels, sample in samples:
            assert isinstance(sample, Histogram), metric.name
            histogram.add_metric(labels, _buckets(sample), sample.total)
        return histogram
    family = _NUMBERS[metric.kind](metric.name, text, labels=metric.labels)
    for labels, number in samples:
        assert not isinstance(number, Histogram), metric.name
        family.add_metric(labels, number)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    ends = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    return list(zip(ends, accumulate(histogram.counts), strict=True))
