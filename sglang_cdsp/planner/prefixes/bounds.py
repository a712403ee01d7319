"""What a prompt costs at least, whatever plan a search would find for it.

A plan costs its TTFT and a price for each instance-second (`starts.py`). So a chunk of s instances
costs 1 + s * price for each of its seconds, which are Equation 1's:

    a + e C + b L + c C L + d L^2    for L tokens after a history of C.

The last chunk runs on the plan's largest group, and pays that size's a; no token costs less than at
the least b, c and d of the sizes up to it, all weighted. Several chunks are no way round d: on one
size, two of L1 and L2 tokens compute c L1 L2 where one of both computes 2 d L1 L2, so what stands
before L^2 is c / 2 if that is less. The bound is the least of this over all sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sglang_cdsp.planner.latency import Coefficients

Row = tuple[float, float, float, float, float]
"""a, b, c, d and e as Equation 1's, weighted."""


@dataclass(frozen=True, slots=True)
class LeastCost:
    """A lower bound of what plans cost, in seconds, once their first instance is free.

    Attributes:
        rows: by the size of the plan's largest group.
    """

    rows: tuple[Row, ...]

    def of(self, tokens: int, history: int) -> float:
        """For so many tokens after a history."""
        return min(
            [
                a + e * history + tokens * (b + c * history + d * tokens)
                for a, b, c, d, e in self.rows
            ]
        )


def least_cost(rows: Iterable[tuple[int, Coefficients]], asked: float) -> LeastCost:
    """The bound for plans on groups of some sizes.

    Args:
        rows: Equation 1 by SP size, ascending, at least one.
        asked: seconds of TTFT for an instance-second.
    """
    found: list[Row] = []
    b = c = d = float("inf")
    for size, row in rows:
        weight = 1.0 + asked * size
        b, c = min(b, weight * row.b), min(c, weight * row.c)
        d = min(d, weight * row.d, c / 2)
        found.append((weight * row.a, b, c, d, weight * row.e))
    return LeastCost(tuple(found))
