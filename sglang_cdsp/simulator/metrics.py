"""What a run amounts to, and what "within 25 times the light-load latency" means.

- TTFT: arrival to first token, of every request that got one.
- TBT: every gap between two neighbouring output tokens of one request, of all requests together.
- Throughput: completed requests over the time from the first arrival to the last end.
- Idle fraction: the share of prefill instances' time, from 0 s to the run's end, without a chunk.
- SP histogram: how many chunks ran on each SP size.
- Light load: the same requests, each alone in the pool, on its fastest group.

The papers divide every latency by 25 times its light-load value and call the highest rate that
stays below 1 the maximum load. Here a rate holds if no request failed and P50 and
P99 of both TTFT and TBT are at most 25 times the same figure at light load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sglang_cdsp.simulator.engine import Result, simulate
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.types import Record, Request, gaps

ALONE_S = 1e4
"""Between two requests at light load: far beyond what any of them takes."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles in seconds; NaN where there was nothing to measure."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """Of values of shape (n,)."""
        if not len(values):
            return cls(*[float("nan")] * 4)
        return cls(float(values.mean()), *np.percentile(values, (50, 90, 99)).tolist())

    def to_dict(self) -> dict[str, float | None]:
        """JSON has no NaN: None."""
        return {name: value if value == value else None for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one policy's run.

    longest_wait_s: the longest time from an arrival to the start of its first chunk.
    """

    ttft_s: Spread
    tbt_s: Spread
    throughput_rps: float
    completed: int
    failed: int
    idle_fraction: float
    longest_wait_s: float
    sp_histogram: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "ttft_s": self.ttft_s.to_dict(),
            "tbt_s": self.tbt_s.to_dict(),
            "sp_histogram": {str(size): n for size, n in self.sp_histogram.items()},
        }


def ttfts(records: Iterable[Record]) -> np.ndarray:
    """TTFT in seconds of the requests that got a token, in the order given; shape (n,)."""
    return np.array([r.ttft_s for r in records if r.ttft_s is not None], dtype=float)


def token_gaps(records: Iterable[Record]) -> np.ndarray:
    """Every gap between two neighbouring output tokens of a request, in seconds; shape (n,)."""
    runs = np.array([run for r in records for run in gaps(r)], dtype=float).reshape(-1, 2)
    return np.repeat(runs[:, 0], runs[:, 1].astype(np.int64))


def summarise(result: Result, *, warm_up: float = 0.0) -> Summary:
    """A run's figures; TTFT, TBT and waits leave out the first `warm_up` share of the requests."""
    records = result.records
    kept = records[int(len(records) * warm_up) :]
    ends = [r.end_s for r in records if r.end_s is not None and not r.error]
    span = max(ends) - records[0].request.arrival_s if ends else 0.0
    sizes = Counter(chunk.sp_size for r in records for chunk in r.chunks)
    waits = [r.chunks[0].start_s - r.request.arrival_s for r in kept if r.chunks]
    return Summary(
        ttft_s=Spread.of(ttfts(kept)),
        tbt_s=Spread.of(token_gaps(kept)),
        throughput_rps=len(ends) / span if span > 0 else 0.0,
        completed=len(ends),
        failed=sum(bool(r.error) for r in records),
        idle_fraction=result.idle_fraction,
        longest_wait_s=max(waits, default=0.0),
        sp_histogram=dict(sorted(sizes.items())),
    )


def light_load(setup: Setup, requests: Iterable[Request]) -> Summary:
    """The figures of the same requests, each alone in the pool, on its fastest group."""
    apart = tuple(replace(r, arrival_s=i * ALONE_S) for i, r in enumerate(requests))
    alone = replace(
        setup, policy="single-chunk", improvement_rate=0.0, improvement_rates=None, noise=0.0
    )
    return summarise(simulate(alone, apart))


def within(summary: Summary, light: Summary, factor: float) -> bool:
    """Whether a run holds: no request failed, and P50 and P99 of TTFT and of TBT are at most
    `factor` times those of `light`. What was not measured holds."""
    return not summary.failed and all(
        getattr(mine, name) <= factor * getattr(base, name) or mine.mean != mine.mean
        for mine, base in ((summary.ttft_s, light.ttft_s), (summary.tbt_s, light.tbt_s))
        for name in ("p50", "p99")
    )
