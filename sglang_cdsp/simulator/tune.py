"""Improvement rates by arrival rate: for each the one with the least TTFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang_cdsp.planner.regulator import MAPPING_KEY
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import ttfts
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.types import Request

IMPROVEMENT_RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
"""What the paper explored reaches from about 0.05 to 0.75."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """One arrival rate (requests/s): the best improvement rate, and what each one gave.

    mean_ttft_s: (improvement rate, mean TTFT in seconds over all runs), ascending by rate.
    """

    arrival_rate: float
    improvement_rate: float
    mean_ttft_s: tuple[tuple[float, float], ...]


def tune(
    setup: Setup,
    arrival_rate: float,
    runs: Sequence[tuple[Request, ...]],
    improvement_rates: Sequence[float] = IMPROVEMENT_RATES,
) -> Tuned:
    """Simulates every run (one a seed, say) at every improvement rate; ties go to the lowest."""
    tried = []
    for rate in sorted(improvement_rates):
        fixed = replace(setup, improvement_rate=rate, improvement_rates=None)
        means = [float(ttfts(simulate(fixed, run).records).mean()) for run in runs]
        tried.append((rate, sum(means) / len(means)))
    best = min(tried, key=lambda entry: entry[1])[0]
    return Tuned(arrival_rate, best, tuple(tried))


def table(tuned: Sequence[Tuned]) -> dict[str, Any]:
    """What `/cdsp/update` takes and `--cdsp-improvement-rates` reads."""
    return {MAPPING_KEY: {f"{t.arrival_rate:g}": t.improvement_rate for t in tuned}}
