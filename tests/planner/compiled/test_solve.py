"""The compiled search finds the plan of the plain one: same chunks, same groups, same times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import (
    CorrectionOptions,
    OnlineCorrection,
    PolicyOptions,
    PoolView,
    PromptView,
    make_policy,
)
from sglang_cdsp.planner.paper import plan_paper, plan_single_chunk
from sglang_cdsp.planner.problem import Candidate, Problem, instance_seconds, timed
from sglang_cdsp.planner.search import plan_cdsp, price
from tests.planner.pools import MODEL, Case, cases, quick

PLAIN = {"single-chunk": plan_single_chunk, "cdsp-paper": plan_paper, "cdsp": plan_cdsp}


def cost(problem: Problem, candidate: Candidate) -> float:
    spent = instance_seconds(problem, candidate)
    return candidate.ttft_s + price(problem.improvement_rate) * spent


@pytest.mark.parametrize("name", PLAIN)
@quick
@given(cases())
def test_both_searches_find_the_same_plan(name: str, case: Case) -> None:
    problem = case.problem
    expected = PLAIN[name](problem)
    plan = make_policy(name, case.options).plan(case.prompt, case.pool)
    assert (plan is None) == (expected is None)
    if plan is None or expected is None:
        return
    chunks = tuple((chunk.tokens, chunk.instances) for chunk in plan.chunks)
    if chunks != expected.chunks:
        # Only where two plans cost the same to the last digits may the two differ.
        found = Candidate(chunks, plan.ttft_s)
        assert cost(problem, found) == pytest.approx(cost(problem, expected), rel=1e-12)
        return
    assert plan.chunks == timed(problem, expected)
    assert plan.ttft_s == expected.ttft_s
    single = plan_single_chunk(problem)
    assert single is not None
    assert plan.single_chunk_ttft_s == single.ttft_s


def test_a_changed_model_is_used_from_the_next_plan_on() -> None:
    correction = OnlineCorrection(MODEL, CorrectionOptions(gain=1.0, max_step=1.0))
    policy = make_policy("cdsp", PolicyOptions(MODEL, (1,), correction=correction))
    prompt, pool = PromptView("r", 10_000), PoolView((0.0,), None, 1)
    before = policy.plan(prompt, pool)
    correction.observe(1, 0, 10_000, 1.5 * MODEL.predict(1, 0, 10_000))
    after = policy.plan(prompt, pool)
    assert before is not None
    assert after is not None
    assert after.ttft_s == pytest.approx(1.5 * before.ttft_s)


@quick
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 60_000)), min_size=2, max_size=6))
def test_what_is_kept_of_a_pool_is_its_own(asked: list[tuple[int, int]]) -> None:
    """A policy that has planned in other pools before plans as one that has not."""
    pools = (
        PoolView((0.0, 2.0, 0.5, 0.0), None, 2),
        PoolView(
            (1.0, 0.0, 0.5, 0.3), (9_000, 70_000, 20_000, 4_000), 2, (True, True, False, True)
        ),
    )
    options = PolicyOptions(MODEL, (1, 2, 4))
    kept = make_policy("cdsp", options)
    for which, tokens in asked:
        prompt = PromptView("r", tokens)
        fresh = make_policy("cdsp", options).plan(prompt, pools[which])
        assert kept.plan(prompt, pools[which]) == fresh
