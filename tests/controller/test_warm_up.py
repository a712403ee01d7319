"""Every instance, every link and every SP size runs before the first request."""

from __future__ import annotations

from itertools import permutations

import pytest

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.warm_up import warm_up, warm_up_plans
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.planner.types import Plan
from tests.controller.cases import empty
from tests.controller.fake_pool import FakePool


@pytest.mark.parametrize("page", [1, 16, 64])
def test_every_pair_and_every_size_is_used(page: int) -> None:
    plans = list(warm_up_plans(4, (1, 2, 4), page, 4096))
    assert {len(c.instances) for plan in plans for c in plan.chunks} == {1, 2, 4}
    moves, rings = set(), set()
    for plan in plans:
        for layout in plan_layout([(c.tokens, list(c.instances)) for c in plan.chunks], page):
            assert all(layout.shard(member) for member in layout.group), "everybody computes"
            moves |= {(move.src, move.dst) for move in layout.moves}
            if len(layout.group) == 2:
                rings |= set(permutations(layout.group))
    assert rings == set(permutations(range(4), 2)), "each link, each way"
    assert {tuple(sorted(pair)) for pair in rings} == {tuple(sorted(pair)) for pair in moves}


def test_they_run_on_a_pool_and_leave_nothing() -> None:
    pool = FakePool(size=4, page_size=16, capacity=4096)
    phases: list[Phase] = []

    def run(plan: Plan) -> PoolRequest:
        request = PoolRequest("probe", None, plan.tokens, pool.now_s)
        pool.lifecycle.on_probe(request, plan)
        pool.settle()
        phases.append(request.phase)
        return request

    warm_up(warm_up_plans(4, (1, 2, 4), 16, 4096), run)
    assert phases == [Phase.ENDED] * 7
    assert empty(pool)


def test_one_that_fails_ends_the_start() -> None:
    def run(plan: Plan) -> PoolRequest:
        request = PoolRequest("probe", None, plan.tokens, 0.0, plan=plan)
        request.error = "no link" if plan.instances == (0, 2) else ""
        return request

    with pytest.raises(RuntimeError, match=r"instances \[0, 2\]: no link"):
        warm_up(warm_up_plans(3, (1, 2), 1, 4096), run)


def test_what_a_small_pool_cannot_hold_is_left_out() -> None:
    assert list(warm_up_plans(2, (1, 2), 64, 100)) == []
