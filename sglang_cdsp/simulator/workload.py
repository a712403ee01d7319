"""Drawn workloads: Poisson arrivals and lengths in the ranges and with the means of the paper.

The paper's traces are not public; it gives the least, greatest and mean prompt length of three
("k" read as 1024 tokens) and scales their timestamps to change the load. Here prompt
lengths are the range's lower end plus an exponential cut at its upper end, with exactly that mean.
Output lengths, of which the paper says nothing, are drawn the same way from 1 to 2,000 tokens with
mean 343, the range and mean of Mooncake's conversation trace.

Draws do not depend on the arrival rate: a seed gives the same prompts at every rate, only closer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sglang_cdsp.simulator.types import Request


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths in tokens: their range, both ends included, and their mean.

    The mean lies below the middle of the range, as the paper's do.
    """

    low: int
    high: int
    mean: float

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` lengths, int64: low + an exponential cut at `high`, rounded."""
        width, scale = self.high - self.low, self.scale()
        cut = -np.expm1(-width / scale)  # the exponential's share below the cut
        drawn: np.ndarray = self.low - scale * np.log1p(-rng.random(count) * cut)
        return np.rint(drawn).astype(np.int64)

    def scale(self) -> float:
        """The exponential's scale in tokens that gives the mean, by bisection."""
        width, mean = self.high - self.low, self.mean - self.low
        least, greatest = mean, 1e4 * width
        for _ in range(100):
            scale = (least * greatest) ** 0.5
            if scale - width / np.expm1(width / scale) < mean:
                least = scale
            else:
                greatest = scale
        return least


WORKLOADS = {
    "short": Lengths(4 * 1024, 95 * 1024, 23.6 * 1024),
    "medium": Lengths(8 * 1024, 142 * 1024, 32.8 * 1024),
    "long": Lengths(16 * 1024, 190 * 1024, 50.1 * 1024),
}
OUTPUTS = Lengths(1, 2000, 343)


def poisson(workload: str, rate: float, count: int, seed: int) -> tuple[Request, ...]:
    """`count` requests of a workload named in WORKLOADS, at `rate` requests/s on average."""
    rng = np.random.default_rng(seed)
    prompts = WORKLOADS[workload].draw(rng, count).tolist()
    outputs = OUTPUTS.draw(rng, count).tolist()
    arrivals = (np.cumsum(rng.exponential(1.0, count)) / rate).tolist()
    return tuple(
        Request(str(index), *request)
        for index, request in enumerate(zip(arrivals, prompts, outputs, strict=True))
    )


def at_speed(requests: Iterable[Request], speed: float) -> tuple[Request, ...]:
    """The same requests `speed` times as fast."""
    return tuple(replace(r, arrival_s=r.arrival_s / speed) for r in requests)


def merged(**sources: Iterable[Request]) -> tuple[Request, ...]:
    """All requests in order of arrival; their ids start with their source's name.

    Blocks of different sources have nothing in common.
    """
    named = (
        replace(r, rid=f"{name}-{r.rid}", blocks=tuple((b << 8) + number for b in r.blocks))
        for number, name in enumerate(sources)
        for r in sources[name]
    )
    return tuple(sorted(named, key=lambda r: r.arrival_s))


def arrival_rate(requests: tuple[Request, ...]) -> float:
    """Requests per second between the first arrival and the last; 0 where that is one moment."""
    span = requests[-1].arrival_s - requests[0].arrival_s
    return (len(requests) - 1) / span if span > 0 else 0.0
