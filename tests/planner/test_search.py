"""`cdsp` against the optimum, and the price of growth."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.paper import plan_paper
from sglang_cdsp.planner.problem import Candidate, instance_seconds, make_problem
from sglang_cdsp.planner.search import PRICE_LIMIT, SATURATED_RATE, plan_cdsp, price
from tests.planner.pools import MODEL, Case, cases, quick

SIZES = (1, 2, 4, 8)
queues = st.lists(st.one_of(st.just(0.0), st.floats(0, 2.5)), min_size=8, max_size=8)


def grid_optimum(queue: list[float], tokens: int, grid: int) -> float:
    """The least TTFT over all chains of sizes with chunk boundaries on a grid, by exhaustion."""
    free = {size: sorted(queue)[size - 1] for size in SIZES}
    best = float("inf")
    cuts = [tokens * at // grid for at in range(1, grid)]
    for count in range(1, len(SIZES) + 1):
        for chain in itertools.combinations(SIZES, count):
            for ends in itertools.combinations(cuts, count - 1):
                clock, placed = 0.0, 0
                for size, end in zip(chain, (*ends, tokens), strict=True):
                    clock = max(clock, free[size]) + MODEL.predict(size, placed, end - placed)
                    placed = end
                best = min(best, clock)
    return best


@quick
@given(queues, st.sampled_from((8_000, 40_000, 120_000)), st.sampled_from((2, 8)))
def test_no_plan_on_a_grid_of_boundaries_is_faster(
    queue: list[float], tokens: int, per_node: int
) -> None:
    options = PolicyOptions(MODEL, SIZES, min_chunk=1, spread_cost=0.0)
    plan = make_policy("cdsp", options).plan(
        PromptView("r", tokens), PoolView(tuple(queue), None, per_node)
    )
    assert plan is not None
    assert plan.ttft_s <= grid_optimum(queue, tokens, 12) + 1e-4


@quick
@given(cases())
def test_growth_pays_its_price(case: Case) -> None:
    problem = case.problem
    base, found = plan_paper(problem), plan_cdsp(problem)
    if base is None or found is None:
        assert base is None
        assert found is None
        return
    extra = instance_seconds(problem, found) - instance_seconds(problem, base)
    gain = base.ttft_s - found.ttft_s
    assert gain >= 0
    assert gain >= price(problem.improvement_rate) * extra - 1e-9
    if problem.improvement_rate >= SATURATED_RATE:
        assert found == base


@quick
@given(queues, st.sampled_from((40_000, 120_000)))
def test_a_higher_price_never_takes_more_of_the_pool(queue: list[float], tokens: int) -> None:
    problem = make_problem(
        PromptView("r", tokens), PoolView(tuple(queue), None, 8), MODEL, SIZES, min_chunk=256
    )
    base = plan_paper(problem)
    spent = []
    for rate in (0.0, 0.1, 0.3, 0.5):
        # Same base plan at each price: the plan is chosen among the chains faster than it.
        regulated = dataclasses.replace(problem, improvement_rate=rate)
        found = plan_cdsp(regulated)
        assert found is not None
        if plan_paper(regulated) == base:
            spent.append(instance_seconds(problem, Candidate(found.chunks, found.ttft_s)))
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(spent))


def test_the_price_is_0_at_rate_0_and_rises_to_its_limit() -> None:
    prices = [price(rate / 100) for rate in range(100)]
    assert prices[0] == 0
    assert prices == sorted(prices)
    assert 0 < price(0.05) < price(0.1) < price(0.5) == PRICE_LIMIT


def test_a_straddling_group_is_weighed_by_its_cost() -> None:
    # Two idle instances on each of two nodes of four: a group of four must straddle or wait.
    pool = PoolView((0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5), None, 4)
    plain = MODEL.predict(4, 0, 32_000)
    for cost, ttft, group in (
        (0.0, plain, (0, 1, 4, 5)),
        (0.05, 1.05 * plain, (0, 1, 4, 5)),
        (10.0, 0.5 + plain, (0, 1, 2, 3)),
    ):
        policy = make_policy("cdsp", PolicyOptions(MODEL, (4,), spread_cost=cost))
        plan = policy.plan(PromptView("r", 32_000), pool)
        assert plan is not None
        assert plan.ttft_s == pytest.approx(ttft)
        assert plan.instances == group
