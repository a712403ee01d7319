"""Drawn plans for rests of prompts: whatever a policy may answer, often."""

from __future__ import annotations

import random
from dataclasses import replace

from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.memory import fits
from sglang_cdsp.planner.types import Plan, PoolView, PromptView
from tests.planner.drawn_plans import cut


class DrawnRests:
    """In the place of ``Policy.replan``: any plan that fits, now and then none."""

    def __init__(self, model: LatencyModel, page: int, seed: int) -> None:
        self._model, self._page = model, page
        self._draw = random.Random(seed)

    def __call__(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        assert current.tokens == rest.tokens
        assert pool.up is not None
        assert pool.free_tokens is not None
        held = list(rest.history_instances)
        up = [i for i, ok in enumerate(pool.up) if ok and i not in held]
        if self._draw.random() < 0.3:
            return None
        group = held + self._draw.sample(up, self._draw.randint(0, len(up)))
        chunks = cut(rest.tokens, group, len(held), self._page, self._draw)
        if not fits(chunks, pool.free_tokens, self._page, rest.history_tokens, tuple(held)):
            return None
        plan = timed_plan(chunks, self._model, pool, rest.history_tokens)
        return replace(plan, replanned="drawn")
