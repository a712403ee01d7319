"""The paper's own numbers, and plans checked against a second implementation."""

from collections.abc import Callable

import numpy as np
import pytest

from sglang_cdsp.planner import (
    Coefficients,
    LatencyModel,
    Plan,
    PolicyOptions,
    PoolView,
    PromptView,
    make_policy,
)
from sglang_cdsp.planner.paper import plan_paper, plan_single_chunk
from sglang_cdsp.planner.problem import Candidate, Problem, make_problem
from tests.planner.absolute import plan_absolute
from tests.planner.pools import MODEL

K = 1024


def through(*points: tuple[int, float]) -> Coefficients:
    """Equation 1 through given (k tokens, seconds): the table itself, not a fit of it."""
    columns = [[1.0, k * K, (k * K) ** 2] for k, _ in points]
    if len(points) == 2:
        columns = [[row[0], row[2]] for row in columns]
    found = np.linalg.solve(np.array(columns), np.array([t for _, t in points])).tolist()
    a, b, d = found if len(points) == 3 else (found[0], 0.0, found[1])
    return Coefficients(a, b, 2 * d, d)


# The entries of Table I that the paper's two examples use.
EXACT = LatencyModel(
    (
        (8, through((16, 0.31), (32, 0.58), (128, 3.96))),
        (16, through((32, 0.53), (128, 2.31))),
    )
)


def two_requests(improvement_rate: float) -> list[float]:
    """TTFT of 32k, then 16k, on 16 instances that are busy for 1 s."""
    policy = make_policy(
        "single-chunk", PolicyOptions(EXACT, (8, 16), improvement_rate=improvement_rate)
    )
    policy.arrive(PromptView("A", 32 * K), 0.0)
    policy.arrive(PromptView("B", 16 * K), 0.0)
    plans = policy.step(PoolView((1.0,) * 16, None, 8), 0.0)
    assert [rid for rid, _ in plans] == ["A", "B"]
    return [plan.ttft_s for _, plan in plans]


def test_greedy_expansion_delays_the_request_behind() -> None:
    assert two_requests(0.0) == pytest.approx([1.53, 1.84], abs=0.005)


def test_regulated_requests_run_side_by_side() -> None:
    assert two_requests(0.1) == pytest.approx([1.58, 1.31], abs=0.005)


def test_request_granular_sp_idles_031_s_or_costs_134_s() -> None:
    pool = PoolView((0.0,) * 8 + (EXACT.predict(8, 0, 16 * K),) * 8, None, 8)
    wait = make_policy("fixed-sp:16", PolicyOptions(EXACT, (16,)))
    now = make_policy("fixed-sp:8", PolicyOptions(EXACT, (8,)))
    chunked = make_policy("cdsp-paper", PolicyOptions(EXACT, (8, 16)))
    prompt = PromptView("A", 128 * K)
    plans = [policy.plan(prompt, pool) for policy in (wait, now, chunked)]
    waited, at_once, best = (plan for plan in plans if plan is not None)
    assert waited.chunks[0].start_s == pytest.approx(0.31, abs=0.005)
    assert at_once.ttft_s - waited.ttft_s == pytest.approx(1.34, abs=0.005)
    # CDSP runs the first chunk on the eight idle ones and the rest on all sixteen.
    assert [chunk.sp_size for chunk in best.chunks] == [8, 16]
    assert best.chunks[1].start_s == pytest.approx(0.31, abs=0.005)
    assert best.ttft_s < waited.ttft_s


def four_instances(t0: float, t1: float, tokens: int) -> Problem:
    """The paper's walk-through: p0 and p1 busy until t1, p2 until t0, p3 idle."""
    pool = PoolView((t1, t1, t0, 0.0), None, 4)
    return make_problem(PromptView("r", tokens), pool, MODEL, (1, 2, 4))


@pytest.mark.parametrize("plan", [plan_paper, plan_absolute])
def test_the_four_instance_walk_through(
    plan: Callable[[Problem], Candidate | None],
) -> None:
    t0, t1, tokens = 0.5, 1.2, 64 * K
    problem = four_instances(t0, t1, tokens)
    single = plan_single_chunk(problem)
    found = plan(problem)
    assert single is not None
    assert found is not None
    assert single.group == (3, 2, 0, 1) or set(single.group) == {0, 1, 2, 3}
    groups = [group for _, group in found.chunks]
    assert groups == [(3,), (3, 2), (3, 2, 0, 1)]
    # The first chunk fills the gap until p2 is free, the second the one until p0 and p1 are.
    row = MODEL.coefficients(1)
    first = found.chunks[0][0]
    assert row.predict(0, first) <= t0 < row.predict(0, first + 1)
    second = found.chunks[1][0]
    row = MODEL.coefficients(2)
    start = MODEL.predict(1, 0, first)
    assert max(start, t0) + row.predict(first, second) <= t1
    assert t1 < max(start, t0) + row.predict(first, second + 1)
    assert found.ttft_s < single.ttft_s


def shape(plan: Plan) -> list[tuple[float, int]]:
    return [(round(chunk.tokens / K, 1), chunk.sp_size) for chunk in plan.chunks]


@pytest.mark.parametrize("policy", ["cdsp", "cdsp-paper"])
@pytest.mark.parametrize(
    ("busy", "single", "ttft", "chunks"),
    [
        (0.31, 2.556, 2.500, [(14.5, 8), (113.5, 16)]),
        (1.0, 3.246, 2.861, [(52.1, 8), (75.9, 16)]),
    ],
)
def test_the_cross_check_plans(
    policy: str, busy: float, single: float, ttft: float, chunks: list[tuple[float, int]]
) -> None:
    planner = make_policy(policy, PolicyOptions(MODEL, (1, 2, 4, 8, 16)))
    pool = PoolView((0.0,) * 8 + (busy,) * 8, None, 16)
    plan = planner.plan(PromptView("r", 128 * K), pool)
    assert plan is not None
    assert plan.ttft_s == pytest.approx(ttft, abs=0.0015)
    assert plan.single_chunk_ttft_s == pytest.approx(single, abs=0.0015)
    assert shape(plan) == chunks


@pytest.mark.parametrize(
    ("rate", "ttft", "size"),
    [(0.0, 0.563, 16), (0.05, 0.571, 8), (0.1, 0.571, 8), (0.3, 0.571, 8), (0.5, 0.896, 4)],
)
def test_the_improvement_rate_on_an_idle_pool(rate: float, ttft: float, size: int) -> None:
    for policy in ("cdsp", "cdsp-paper", "single-chunk"):
        planner = make_policy(policy, PolicyOptions(MODEL, (1, 2, 4, 8, 16), improvement_rate=rate))
        plan = planner.plan(PromptView("r", 32 * K), PoolView((0.0,) * 16, None, 16))
        assert plan is not None
        assert plan.ttft_s == pytest.approx(ttft, abs=0.0006)
        assert [chunk.sp_size for chunk in plan.chunks] == [size]


def test_cdsp_looks_past_the_base_plan_s_group() -> None:
    queue = (0.0,) * 10 + (0.6, 0.9, 1.2, 1.7, 2.0, 2.4)
    pool = PoolView(queue, None, 16)
    plans = {}
    for name in ("cdsp-paper", "cdsp"):
        planner = make_policy(name, PolicyOptions(MODEL, (1, 2, 4, 8, 16)))
        plans[name] = planner.plan(PromptView("r", 128 * K), pool)
    paper, ours = plans["cdsp-paper"], plans["cdsp"]
    assert paper is not None
    assert ours is not None
    assert paper.ttft_s == pytest.approx(3.88, abs=0.005)
    assert shape(paper) == [(128.0, 8)]
    assert ours.ttft_s < 3.57
    assert [chunk.sp_size for chunk in ours.chunks] == [8, 16]
