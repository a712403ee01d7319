"""From single runs to what is reported: best improvement rates, curves, loads, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bench.paper.cases import Case, Load, Outcome
from sglang_cdsp.simulator.metrics import Summary

SLO = 25.0
BEARABLE = 5.0
Read = Callable[[Summary], float]


@dataclass(frozen=True)
class Point:
    """One policy at one rate: its improvement rate and one outcome a seed."""

    improvement_rate: float
    outcomes: tuple[Outcome, ...]

    def figures(self, read: Read) -> np.ndarray:
        """One figure of every seed, shape (seeds,)."""
        return np.array([read(outcome.summary) for outcome in self.outcomes])

    def mean(self, read: Read) -> float:
        """Its mean over the seeds."""
        return float(self.figures(read).mean())


def p50(summary: Summary) -> float:
    """P50 of TTFT in seconds."""
    return summary.ttft_s.p50


def p99(summary: Summary) -> float:
    """P99 of TTFT in seconds."""
    return summary.ttft_s.p99


def mean_ttft(summary: Summary) -> float:
    """Mean TTFT in seconds."""
    return summary.ttft_s.mean


def tbt_p50(summary: Summary) -> float:
    """P50 of the time between tokens in seconds."""
    return summary.tbt_s.p50


def tbt_p99(summary: Summary) -> float:
    """P99 of the time between tokens in seconds."""
    return summary.tbt_s.p99


def throughput(summary: Summary) -> float:
    """Completed requests per second."""
    return summary.throughput_rps


@dataclass(frozen=True, eq=False)
class Study:
    """All runs of one load. lights: the figures at light load, one a seed.

    tuning: the seed on which improvement rates are chosen; it is not one of `seeds`.
    critical: critical rates by baseline, once they are known.
    """

    load: Load
    policies: tuple[str, ...]
    outcomes: Mapping[Case, Outcome]
    seeds: tuple[int, ...]
    tuning: int
    lights: tuple[Summary, ...]
    critical: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _tuned(self) -> dict[tuple[str, float], dict[float, Outcome]]:
        found: dict[tuple[str, float], dict[float, Outcome]] = {}
        for case, outcome in self.outcomes.items():
            if case.seed == self.tuning and not case.table:
                by_rate = found.setdefault((case.policy, case.rate), {})
                by_rate[case.improvement_rate] = outcome
        return found

    def tuned(self, policy: str, rate: float) -> dict[float, float]:
        """Mean TTFT in seconds on the tuning seed by improvement rate; empty if it has none."""
        found = self._tuned.get((policy, rate), {})
        return {r: mean_ttft(outcome.summary) for r, outcome in sorted(found.items())}

    def improvement_rate(self, policy: str, rate: float) -> float:
        """The one with the least mean TTFT on the tuning seed; 0 for policies without."""
        means = self.tuned(policy, rate)
        return min(means, key=lambda r: means[r]) if means else 0.0

    def best(self, policy: str, rate: float) -> Point:
        """Every seed at the tuned improvement rate."""
        return self._point(policy, rate, self.improvement_rate(policy, rate), ())

    def regulated(self, policy: str, rate: float) -> Point:
        """Every seed with the regulator reading `table`."""
        return self._point(policy, rate, 0.0, self.table(policy))

    def _point(
        self, policy: str, rate: float, r: float, table: tuple[tuple[str, float], ...]
    ) -> Point:
        cases = (Case(self.load, rate, policy, r, seed, table) for seed in self.seeds)
        return Point(r, tuple(self.outcomes[case] for case in cases if case in self.outcomes))

    def table(self, policy: str) -> tuple[tuple[str, float], ...]:
        """The tuned improvement rate at each of the load's rates."""
        return tuple((f"{r:g}", self.improvement_rate(policy, r)) for r in self.load.rates)

    def light(self, read: Read) -> np.ndarray:
        """A figure at light load, shape (seeds,)."""
        return np.array([read(light) for light in self.lights])

    def _over_light(self, policy: str, rate: float, read: Read) -> np.ndarray:
        figures = self.best(policy, rate).figures(read)
        return figures / self.light(read)[: len(figures)]

    def max_load(self, policy: str) -> np.ndarray:
        """Per seed the rate at which P50 or P99 of TTFT or TBT is 25 times that at light load.

        Between two rates of the sweep it is interpolated, linear in log(latency).
        """
        ratios = [
            [self._over_light(policy, rate, read) for rate in self.load.rates]
            for read in (p50, p99, tbt_p50, tbt_p99)
        ]
        seeds = min(len(r) for r in ratios[0])  # a critical rate in the sweep has more
        factors = np.max([[r[:seeds] for r in each] for each in ratios], axis=0)  # (rates, seeds)
        return np.array([crossing(self.load.rates, f, SLO) for f in factors.T])


def critical_rate(study: Study, policy: str) -> float:
    """The highest rate, in steps of 0.05, with P50 TTFT at most 5 times that at light load.

    Where the sweep does not tell, because runs are too short for a queue to grow or every rate is
    too high, it is the sweep's last or first rate.
    """
    light = study.light(p50).mean()
    rates = study.load.rates
    factors = np.array([study.best(policy, r).mean(p50) / light for r in rates])
    found = crossing(rates, factors, BEARABLE)
    if math.isinf(found):
        return rates[-1] if found > 0 else rates[0]
    return math.floor(found * 20) / 20


def critical_is_known(study: Study, policy: str) -> bool:
    """Whether the policy's critical rate lies inside the sweep."""
    return study.load.rates[0] < study.critical[policy] < study.load.rates[-1]


def crossing(rates: Sequence[float], factors: np.ndarray, limit: float) -> float:
    """Where a curve that rises crosses the limit, linear in log(factor); +-inf if beyond."""
    above = np.flatnonzero(factors > limit)
    if not len(above):
        return math.inf
    i = int(above[0])
    if i == 0:
        return -math.inf
    low, high, target = np.log(factors[i - 1]), np.log(factors[i]), np.log(limit)
    return float(rates[i - 1] + (rates[i] - rates[i - 1]) * (target - low) / (high - low))


def ratio(rival: Point, mine: Point, read: Read) -> tuple[float, float, float]:
    """Geometric mean over the seeds of rival / mine, the least and the greatest."""
    each = rival.figures(read) / mine.figures(read)
    return float(np.exp(np.log(each).mean())), float(each.min()), float(each.max())
