"""The metrics as `prometheus_client` keeps them, and a stand-in where nobody scrapes.

SGLang runs it in its multiprocess mode: each process writes files of its own into
``PROMETHEUS_MULTIPROC_DIR``, which the HTTP process reads when it is scraped. All of the pool's are
the controller's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from sglang_cdsp.controller.exported.definitions import METRICS, Kind

logger = logging.getLogger(__name__)


class Instruments(Protocol):
    """Where values go, by the name of a metric without its prefix. Nothing of it raises."""

    def count(self, name: str, amount: float = 1.0, **labels: object) -> None:
        """Add to a counter; with 0 the series is there from now on."""

    def put(self, name: str, value: float, **labels: object) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, **labels: object) -> None:
        """Add a value to a histogram."""


class NoInstruments:
    """Implements ``Instruments`` where metrics are not asked for."""

    def count(self, name: str, amount: float = 1.0, **labels: object) -> None:
        """Nothing."""

    def put(self, name: str, value: float, **labels: object) -> None:
        """Nothing."""

    def observe(self, name: str, value: float, **labels: object) -> None:
        """Nothing."""


class PrometheusInstruments:
    """Implements ``Instruments`` in this process's part of SGLang's registry."""

    def __init__(self, common: Mapping[str, str], registry: Any = None) -> None:
        """Make every metric of the table.

        Args:
            common: labels that all of them have.
            registry: a ``CollectorRegistry``; the process's own by default.
        """
        # It looks for its folder when it is imported, which SGLang has named by now.
        import prometheus_client as client

        self._common = {name: str(value) for name, value in common.items()}
        self._warned = False
        kinds = {Kind.COUNTER: client.Counter, Kind.HISTOGRAM: client.Histogram}
        where = {} if registry is None else {"registry": registry}
        self._made: dict[str, Any] = {}
        for metric in METRICS:
            labels = (*metric.labels, *(name for name in self._common if name not in metric.labels))
            args = (metric.full_name, metric.text, labels)
            if metric.kind is Kind.GAUGE:
                self._made[metric.name] = client.Gauge(
                    *args, multiprocess_mode="mostrecent", **where
                )
            elif metric.kind is Kind.HISTOGRAM:
                self._made[metric.name] = client.Histogram(*args, buckets=metric.buckets, **where)
            else:
                self._made[metric.name] = kinds[metric.kind](*args, **where)

    def count(self, name: str, amount: float = 1.0, **labels: object) -> None:
        """Add to a counter."""
        self._try(name, "inc", amount, labels)

    def put(self, name: str, value: float, **labels: object) -> None:
        """Set a gauge."""
        self._try(name, "set", value, labels)

    def observe(self, name: str, value: float, **labels: object) -> None:
        """Add a value to a histogram."""
        self._try(name, "observe", value, labels)

    def _try(self, name: str, method: str, value: float, labels: Mapping[str, object]) -> None:
        """A metric that cannot be kept costs a warning, never the pool."""
        try:
            texts = {label: str(text) for label, text in labels.items()}
            getattr(self._made[name].labels(**{**self._common, **texts}), method)(value)
        except Exception as error:
            if not self._warned:
                self._warned = True
                logger.warning("the metric %s and maybe others are not kept: %r", name, error)


def make_instruments(common: Mapping[str, str], *, enabled: bool) -> Instruments:
    """The process's instruments; without ``enabled``, or where they cannot be made, none."""
    if not enabled:
        return NoInstruments()
    try:
        return PrometheusInstruments(common)
    except Exception as error:
        logger.warning("no metrics of the pool: %r", error)
        return NoInstruments()
