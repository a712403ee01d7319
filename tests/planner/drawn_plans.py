"""Drawn plans, and what may take the place of their rests."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

from sglang_cdsp.planner.types import Placement


def cut(tokens: int, group: list[int], least: int, page: int, draw: random.Random) -> Placement:
    """One to three chunks on groups that grow up to ``group``, the first of ``least`` at least."""
    pages = -(-tokens // page)
    count = min(draw.randint(1, 3), pages)
    borders = [n * page for n in sorted(draw.sample(range(1, pages), count - 1))]
    sizes = sorted(draw.randint(max(1, least), len(group)) for _ in range(count))
    lengths = [stop - start for start, stop in pairwise([0, *borders, tokens])]
    return tuple((n, tuple(group[:size])) for n, size in zip(lengths, sizes, strict=True))


def drawn_rest(
    chunks: Placement, ran: int, page: int, instances: int, draw: random.Random
) -> Placement:
    """What may follow the first ``ran`` chunks of a plan, one at least."""
    held = list(chunks[ran - 1][1])
    others = [i for i in range(instances) if i not in held]
    group = held + draw.sample(others, len(others))
    return cut(sum(tokens for tokens, _ in chunks[ran:]), group, len(held), page, draw)


def drawn_rests(
    chunks: Placement, page: int, instances: int, draw: random.Random
) -> list[Placement]:
    """Rests that a request may bring with a plan, each from a border of the one before it."""
    rests: list[Placement] = []
    at = 0
    while draw.random() < 0.6:
        ends = list(accumulate(tokens for tokens, _ in chunks))
        borders = [number for number, end in enumerate(ends[:-1], 1) if end > at]
        if not borders:
            break
        ran = draw.choice(borders)
        at = ends[ran - 1]
        rest = drawn_rest(chunks, ran, page, instances, draw)
        rests.append(rest)
        chunks = chunks[:ran] + rest
    return rests
