"""Metrics that object to what Prometheus would refuse, or would take without a word."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from sglang_cdsp.controller.exported.definitions import METRICS, Kind

DEFINED = {metric.name: metric for metric in METRICS}


class StrictInstruments:
    """Implements ``Instruments``; everything must be as the table of metrics has it.

    Attributes:
        counted: counters, by name and the values of their labels in the table's order.
        shown: gauges, in the same way.
        observed: values of histograms, by name, whatever their labels.
    """

    def __init__(self) -> None:
        self.counted: Counter[tuple[str, ...]] = Counter()
        self.shown: dict[tuple[str, ...], float] = {}
        self.observed: defaultdict[str, list[float]] = defaultdict(list)

    def count(self, name: str, amount: float = 1.0, **labels: object) -> None:
        key = self._key(name, Kind.COUNTER, amount, labels)
        assert amount >= 0, f"{name} goes back by {-amount}"
        self.counted[key] += amount  # type: ignore[assignment]  # floats add up as well

    def put(self, name: str, value: float, **labels: object) -> None:
        self.shown[self._key(name, Kind.GAUGE, value, labels)] = value

    def observe(self, name: str, value: float, **labels: object) -> None:
        self._key(name, Kind.HISTOGRAM, value, labels)
        assert value >= 0, f"{name} of {value}"
        self.observed[name].append(value)

    def total(self, name: str) -> float:
        """A counter over all its labels."""
        return sum(value for key, value in self.counted.items() if key[0] == name)

    def _key(
        self, name: str, kind: Kind, value: float, labels: dict[str, object]
    ) -> tuple[str, ...]:
        metric = DEFINED[name]
        assert metric.kind is kind
        assert math.isfinite(value), f"{name} of {value}"
        assert set(labels) == set(metric.labels), f"{name} with {sorted(labels)}"
        return (name, *(str(labels[label]) for label in metric.labels))
