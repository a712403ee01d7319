"""Pairs of prompt and forced plan, drawn from seeds.

`SGLANG_CDSP_TEST_CASES=SEED:COUNT` adds so many pairs of drawn lengths to those of every run.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from itertools import pairwise

from tests.serving.client import Plan

LENGTHS = (1, 2, 3, 127, 128, 129, 251, 509, 1021, 2039, 4096, 4093, 8191)
PLANS_PER_LENGTH = 5
MORE_VAR = "SGLANG_CDSP_TEST_CASES"
LONGEST = 12_000


@dataclass(frozen=True)
class Case:
    """One pair; ``seed`` draws both."""

    length: int
    seed: int
    plan: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def raw_plan(self) -> Plan:
        """In the form that a request carries."""
        return [(tokens, list(group)) for tokens, group in self.plan]

    def __str__(self) -> str:
        chunks = " ".join(f"{tokens}@{''.join(map(str, group))}" for tokens, group in self.plan)
        return f"{self.length}:{chunks}:seed{self.seed}"


def draw_case(length: int, seed: int, pool_size: int) -> Case:
    """A plan of 1 to 5 chunks on groups that grow, on instances in any order."""
    rng = random.Random(f"{length}-{seed}")
    chunks = min(length, rng.randint(1, 5))
    cuts = sorted(rng.sample(range(1, length), chunks - 1)) if chunks > 1 else []
    sizes = sorted(rng.randint(1, pool_size) for _ in range(chunks))
    order = rng.sample(range(pool_size), pool_size)
    borders = [0, *cuts, length]
    plan = tuple(
        (stop - start, tuple(order[:size]))
        for (start, stop), size in zip(pairwise(borders), sizes, strict=True)
    )
    return Case(length, seed, plan)


def cases(pool_size: int) -> list[Case]:
    """The suite's pairs, the same in every run, and those that the environment asks for."""
    fixed = [(length, seed) for length in LENGTHS for seed in range(PLANS_PER_LENGTH)]
    return [draw_case(length, seed, pool_size) for length, seed in fixed + more_lengths()]


def more_lengths() -> list[tuple[int, int]]:
    """Length and seed of the further pairs; half of the lengths are below 1,000."""
    asked = os.environ.get(MORE_VAR)
    if not asked:
        return []
    seed, count = map(int, asked.split(":"))
    rng = random.Random(seed)
    return [
        (rng.randint(1, rng.choice((1_000, LONGEST))), rng.randrange(1 << 20)) for _ in range(count)
    ]
