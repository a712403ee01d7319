"""The requests of the measurements on real servers: many short prompts, some long ones."""

from __future__ import annotations

import random
from collections.abc import Iterator

SHORT = (64, 1024)
LONG = (4000, 8000)
"""Tokens; uniform in each range."""

LONG_SHARE = 0.2


def lengths(seed: int, count: int) -> list[int]:
    """``count`` prompt lengths in tokens; exactly the long share of them are long."""
    rng = random.Random(seed)
    long = round(count * LONG_SHARE)
    drawn = [rng.randint(*LONG) for _ in range(long)]
    drawn += [rng.randint(*SHORT) for _ in range(count - long)]
    rng.shuffle(drawn)
    return drawn


def is_long(tokens: int) -> bool:
    """Whether a prompt belongs to the long ones."""
    return tokens > SHORT[1]


def poisson(seed: int, rate: float) -> Iterator[float]:
    """Arrival times in seconds, for ever."""
    rng, at_s = random.Random(seed), 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield at_s
