"""From single runs to what is reported: best improvement rates, curves, loads, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
        return float(self.figures(read).mean())


def p50(summary: Summary) -> float:
    return summary.ttft_s.p50


def p99(summary: Summary) -> float:
    return summary.ttft_s.p99


def mean_ttft(summary: Summary) -> float:
    return summary.ttft_s.mean


def tbt_p50(summary: Summary) -> float:
    return summary.tbt_s.p50


def tbt_p99(summary: Summary) -> float:
    return summary.tbt_s.p99


@dataclass(frozen=True, eq=False)
class Study:
    """All runs of one load. lights: the figures at light load, one a seed."""

    load: Load
    policies: tuple[str, ...]
    outcomes: Mapping[Case, Outcome]
    seeds: tuple[int, ...]
    lights: tuple[Summary, ...]

    @cached_property
    def _points(self) -> dict[tuple[str, float], list[Point]]:
        found: dict[tuple[str, float, float], dict[int, Outcome]] = {}
        for case, outcome in self.outcomes.items():
            if not case.table:
                key = (case.policy, case.rate, case.improvement_rate)
                found.setdefault(key, {})[case.seed] = outcome
        out: dict[tuple[str, float], list[Point]] = {}
        for (policy, rate, r), by_seed in sorted(found.items()):
            point = Point(r, tuple(by_seed[seed] for seed in self.seeds))
            out.setdefault((policy, rate), []).append(point)
        return out

    def every(self, policy: str, rate: float) -> list[Point]:
        """Every improvement rate that was run, ascending."""
        return self._points[policy, rate]

    def best(self, policy: str, rate: float) -> Point:
        """At the improvement rate with the least mean TTFT, as the regulation's table holds it."""
        return min(self.every(policy, rate), key=lambda point: point.mean(mean_ttft))

    def regulated(self, policy: str, rate: float) -> Point:
        """With the regulator reading `table`."""
        found = {
            case.seed: outcome
            for case, outcome in self.outcomes.items()
            if case.table and (case.policy, case.rate) == (policy, rate)
        }
        return Point(float("nan"), tuple(found[seed] for seed in self.seeds))

    def table(self, policy: str) -> tuple[tuple[str, float], ...]:
        """The best improvement rate at each of the load's rates."""
        return tuple((f"{r:g}", self.best(policy, r).improvement_rate) for r in self.load.rates)

    def light(self, read: Read) -> np.ndarray:
        """A figure at light load, shape (seeds,)."""
        return np.array([read(light) for light in self.lights])

    def max_load(self, policy: str) -> np.ndarray:
        """Per seed the rate at which P50 or P99 of TTFT or TBT is 25 times that at light load.

        Between two rates of the sweep it is interpolated, linear in log(latency). NaN if even the
        highest rate holds, or the lowest does not.
        """
        ratios = [
            [self.best(policy, rate).figures(read) / self.light(read) for rate in self.load.rates]
            for read in (p50, p99, tbt_p50, tbt_p99)
        ]
        factors = np.max(ratios, axis=0)  # shape (rates, seeds)
        return np.array([crossing(self.load.rates, f, SLO) for f in factors.T])


def critical_rate(study: Study, policy: str) -> float:
    """The highest rate, in steps of 0.05, with P50 TTFT at most 5 times that at light load."""
    light = study.light(p50).mean()
    factors = np.array([study.best(policy, r).mean(p50) / light for r in study.load.rates])
    return math.floor(crossing(study.load.rates, factors, BEARABLE) * 20) / 20


def crossing(rates: Sequence[float], factors: np.ndarray, limit: float) -> float:
    """Where a curve that rises crosses the limit, linear in log(factor); NaN if it does not."""
    above = np.flatnonzero(factors > limit)
    if not len(above) or above[0] == 0:
        return float("nan")
    i = int(above[0])
    low, high, target = np.log(factors[i - 1]), np.log(factors[i]), np.log(limit)
    return float(rates[i - 1] + (rates[i] - rates[i - 1]) * (target - low) / (high - low))


def ratio(rival: Point, mine: Point, read: Read) -> tuple[float, float, float]:
    """Geometric mean over the seeds of rival / mine, the least and the greatest."""
    each = rival.figures(read) / mine.figures(read)
    return float(np.exp(np.log(each).mean())), float(each.min()), float(each.max())
