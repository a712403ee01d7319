"""The grid of chunks that `profile` measures, and what counts of the times of a point."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglang_cdsp.planner.fit import Sample

MOST_PER_LENGTH = 8
"""Chunks of one length that count: short ones would else outnumber the long ones in the fit."""


@dataclass(frozen=True)
class Point:
    """One cell of the grid: a chunk of ``tokens`` after ``history`` on ``size`` instances."""

    size: int
    history: int
    tokens: int


@dataclass(frozen=True)
class Chain:
    """A prompt of ``count`` chunks of ``tokens`` tokens on groups of ``size`` instances."""

    size: int
    tokens: int
    count: int

    def plan(self, group: int) -> list[tuple[int, list[int]]]:
        """The forced plan on the pool's ``group``-th group of this size."""
        members = list(range(group * self.size, (group + 1) * self.size))
        return [(self.tokens, members)] * self.count

    def points(self) -> dict[int, Point]:
        """The grid points that it measures, by chunk index: evenly spread over the prompt."""
        stride = -(-self.count // MOST_PER_LENGTH)
        return {
            index: Point(self.size, index * self.tokens, self.tokens)
            for index in range(0, self.count, stride)
        }


def chains(sizes: Sequence[int], longest: int, steps: int) -> list[Chain]:
    """Prompts of up to ``longest`` tokens; lengths fall by a quarter and by a third in turn.

    The grid is the triangle that one prompt can reach: history and chunk together are never
    longer than ``longest``.
    """
    halves = [longest >> step for step in range((steps + 1) // 2)]
    lengths = [length for half in halves for length in (half, half * 3 // 4)][:steps]
    return [Chain(s, t, longest // t) for s in sizes for t in lengths if t]


def typical(found: Mapping[Point, Sequence[float]]) -> list[Sample]:
    """One sample a point: the first quartile of its runs.

    Other work on the machine only ever adds time; the quartile bears up to half of the runs being
    disturbed, and unlike the minimum does not chase the luckiest one.
    """
    return [Sample(p.size, p.history, p.tokens, _quartile(s)) for p, s in found.items()]


def noise(found: Mapping[Point, Sequence[float]]) -> float:
    """Median deviation of single runs from what counts for their point, as a share of it."""
    return statistics.median(
        abs(value / _quartile(values) - 1) for values in found.values() for value in values
    )


def _quartile(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]
