"""Drawn plans, and what may take the place of their rests."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate, pairwise

from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.memory import fits
from sglang_cdsp.planner.types import Placement, Plan, PoolView, PromptView


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


class DrawnRests:
    """In the place of ``Policy.replan``: any plan that fits, now and then none."""

    def __init__(self, model: LatencyModel, page: int, seed: int) -> None:
        self._model, self._page = model, page
        self._draw = random.Random(seed)

    def __call__(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        assert current.tokens == rest.tokens
        assert pool.free_tokens is not None
        held = list(rest.history_instances)
        up = [i for i in range(pool.size) if (pool.up is None or pool.up[i]) and i not in held]
        if self._draw.random() < 0.3 or not (held or up):
            return None
        # A plan that has waited for a home has no history: somebody has to begin.
        group = held + self._draw.sample(up, self._draw.randint(0 if held else 1, len(up)))
        chunks = cut(rest.tokens, group, len(held), self._page, self._draw)
        if not fits(chunks, pool.free_tokens, self._page, rest.history_tokens, tuple(held)):
            return None
        plan = timed_plan(chunks, self._model, pool, rest.history_tokens)
        return replace(plan, replanned="drawn")
