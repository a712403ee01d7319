"""What the comparison runs: loads, policies and seeds, one simulation a case."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sglang_cdsp.cli.progress import over
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import Summary, light_load, summarise, ttfts
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.sweep import variant
from sglang_cdsp.simulator.traces import read_trace
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import at_speed, merged, poisson

WARM_UP = 0.1
"""The first tenth of the requests meets an emptier pool and is left out of TTFT and TBT."""

PART_S = 590.0
"""Length of one part of a trace: Mooncake's 59 minutes give six, which stand for seeds."""


@dataclass(frozen=True)
class Load:
    """Requests at several rates: drawn (rate = requests/s), or a trace (rate = speed).

    background: a second trace, merged into every part of the first.
    """

    name: str
    rates: tuple[float, ...] = field(compare=False)
    requests: int = 0
    trace: Path | None = None
    background: Path | None = None

    def at(self, rate: float, seed: int) -> tuple[Request, ...]:
        """The requests of one run; of a trace, `seed` picks the part."""
        if self.trace is None:
            return poisson(self.name, rate, self.requests, seed)
        part = _part(self.trace, seed)
        if self.background is not None:
            part = merged(long=part, short=_part(self.background, 0))
        return at_speed(part, rate)


@lru_cache(maxsize=8)
def _part(path: Path, index: int) -> tuple[Request, ...]:
    start = index * PART_S
    return tuple(
        replace(r, arrival_s=r.arrival_s - start)
        for r in read_trace(path)
        if start <= r.arrival_s < start + PART_S
    )


PREEMPT_BUDGET = 0.0
"""The comparison is without passing, as the paper's system."""


@dataclass(frozen=True)
class Case:
    """One simulation. improvement_rate: 0 for policies that have none.

    table: what the regulator reads, (arrival rate, improvement rate) each; () = no regulator.
    preempt_budget: as in PolicyOptions.
    """

    load: Load
    rate: float
    policy: str
    improvement_rate: float
    seed: int
    table: tuple[tuple[str, float], ...] = ()
    preempt_budget: float = PREEMPT_BUDGET


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a case, without the warm-up: its figures, and the TTFTs.

    ttfts: seconds, float32, in arrival order, shape (n,).
    """

    summary: Summary
    ttfts: np.ndarray


def run_case(case: Case) -> tuple[Case, Outcome]:
    """Simulates the paper's set-up for LLaMA3-8B with one policy."""
    setup = replace(
        variant(Setup(), case.policy),
        improvement_rate=case.improvement_rate,
        improvement_rates=dict(case.table) or None,
        preempt_budget=case.preempt_budget,
    )
    result = simulate(setup, case.load.at(case.rate, case.seed))
    kept = result.records[int(len(result.records) * WARM_UP) :]
    return case, Outcome(summarise(result, warm_up=WARM_UP), ttfts(kept).astype(np.float32))


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, max(10, os.getpriority(os.PRIO_PROCESS, 0)))


def run_cases(
    cases: Iterable[Case], processes: int, cache: Path | None, name: str = "runs"
) -> dict[Case, Outcome]:
    """Every case once, on some processes that give way to all others; known ones from the cache.

    `name`: what the runs are for, in the progress.
    """
    known = read_cache(cache)
    wanted = set(cases)
    todo = sorted(wanted - known.keys(), key=lambda c: -c.rate)  # the slowest first
    if todo:
        with multiprocessing.get_context("spawn").Pool(processes, _give_way) as pool:
            done = pool.imap_unordered(run_case, todo, chunksize=4)
            known |= dict(over(done, name, len(todo)))
        if cache is not None:
            cache.write_bytes(pickle.dumps(known))
    return {case: known[case] for case in wanted}


class CacheError(ValueError):
    """The cache cannot be used; names the file and the remedy."""


def read_cache(cache: Path | None) -> dict[Case, Outcome]:
    """The runs in the cache; none if there is no such file yet.

    Raises:
        CacheError: the file is not a cache of this version's runs.
    """
    if cache is None or not cache.exists() or not cache.stat().st_size:
        return {}
    try:
        known = pickle.loads(cache.read_bytes())
        if not isinstance(known, dict) or not all(isinstance(case, Case) for case in known):
            raise TypeError("it holds something else")
    except Exception as error:  # what a file that is no pickle raises is anything
        raise CacheError(
            f"--cache {cache}: not the runs of an earlier call ({type(error).__name__}); name "
            "another file, or remove it"
        ) from None
    return known


def forget(cache: Path, policy: str) -> None:
    """Drops a policy's runs from the cache: it has changed."""
    known = read_cache(cache)
    kept = {case: outcome for case, outcome in known.items() if case.policy != policy}
    cache.write_bytes(pickle.dumps(kept))


def light(load: Load, seed: int) -> Summary:
    """The figures of a run's requests, each alone in the pool (metrics.light_load)."""
    return light_load(Setup(), load.at(load.rates[0], seed))
