"""Plans that come with a request: what is refused, and their times."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import assume, given

from sglang_cdsp.planner.errors import ForcedPlanError
from sglang_cdsp.planner.forced import parse_forced, parse_plan, timed_plan
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.policies import make_policy
from sglang_cdsp.planner.types import PoolView
from tests.planner.pools import Case, cases, quick

MODEL = LatencyModel(
    ((1, Coefficients(1.0, 0.01, 0.0, 0.0)), (2, Coefficients(2.0, 0.005, 1e-4, 0.0)))
)


def test_a_plan_is_read() -> None:
    assert parse_plan([[32, [2]], [68, [2, 0]]], 100, 3, 16) == ((32, (2,)), (68, (2, 0)))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("half", "must have the form [[tokens, [instance, ...]], ...], got 'half'"),
        (7, "must have the form"),
        ([[32]], "must have the form"),
        ([["x", [0]]], "must have the form"),
        ([[100, 0]], "must have the form"),
        ([], "has no chunks; give at least one"),
        ([[90, [0]]], "have 90 tokens, the prompt has 100"),
        ([[0, [0]], [100, [0]]], "needs at least 1 and together they must be the prompt"),
        ([[-4, [0]], [104, [0]]], "needs at least 1"),
        ([[100, []]], "group [] is empty or repeats itself"),
        ([[100, [1, 1]]], "group [1, 1] is empty or repeats itself"),
        ([[100, [0, 3]]], "instances [3] are not in the pool 0..2"),
        ([[100, [-1]]], "instances [-1] are not in the pool 0..2"),
        ([[32, [0, 1]], [68, [0]]], "group [0] does not start with [0, 1], the group before it"),
        ([[32, [0]], [68, [1, 0]]], "does not start with [0]"),
        ([[30, [0]], [70, [0]]], "starts at token 30, not on a page border; use multiples of 16"),
    ],
)
def test_every_error_says_what_is_wrong_and_what_is_expected(raw: Any, says: str) -> None:
    with pytest.raises(ForcedPlanError) as caught:
        parse_plan(raw, 100, 3, 16)
    assert str(caught.value).startswith("cdsp_plan")
    assert says in str(caught.value)


def test_a_plan_brings_plans_for_its_rest() -> None:
    """Each goes on from the one before it: the second from the first's chunks."""
    raw = {
        "plan": [[32, [2]], [68, [2, 0]]],
        "rests": [[[32, [2]], [36, [2, 1]]], [[36, [2, 1, 0]]]],
    }
    forced = parse_forced(raw, 100, 3, 16)
    assert forced.chunks == ((32, (2,)), (68, (2, 0)))
    assert forced.rest_at(32) == ((32, (2,)), (36, (2, 1)))
    assert forced.rest_at(64) == ((36, (2, 1, 0)),)
    assert forced.rest_at(0) is forced.rest_at(100) is None
    assert parse_forced(raw["plan"], 100, 3, 16).rests == ()
    # Who joins takes its share of what is held, then its own of the chunk.
    binding, first, second = forced.demands(16)
    assert binding == {2: 32 + 64, 0: 16 + 64}
    assert first == {2: 64 + 32, 1: 32 + 32}
    assert second == {2: 64 + 32, 1: 32 + 32, 0: 32 + 32}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"plan": [[100, [0]]]}, 'or {"plan": ..., "rests": [...]}, got'),
        ({"plan": [[100, [0]]], "rests": 7}, 'or {"plan": ..., "rests": [...]}, got'),
        ({"plan": [[100, [0]]], "rests": [], "more": 1}, 'or {"plan": ..., "rests": [...]}, got'),
        ({"plan": [[90, [0]]], "rests": []}, "have 90 tokens, the prompt has 100"),
        ({"plan": [[32, [0]], [68, [0]]], "rests": ["x"]}, "must have the form"),
        (
            {"plan": [[32, [0]], [68, [0]]], "rests": [[[60, [0]]]]},
            "a rest begins at token 40, which is not where a chunk begins that may get another "
            "plan; use one of [32]",
        ),
        (
            {"plan": [[32, [0]], [68, [0]]], "rests": [[[68, [0]]], [[68, [0]]]]},
            "a rest begins at token 32, which is not where a chunk begins that may get another "
            "plan; use one of []",
        ),
        (
            {"plan": [[32, [0, 1]], [68, [0, 1]]], "rests": [[[68, [1, 0]]]]},
            "group [1, 0] does not start with [0, 1], the group before it",
        ),
        (
            {"plan": [[32, [0]], [68, [0]]], "rests": [[[30, [0]], [38, [0]]]]},
            "starts at token 62, not on a page border",
        ),
    ],
)
def test_every_error_of_a_rest_says_what_is_expected(raw: Any, says: str) -> None:
    with pytest.raises(ForcedPlanError) as caught:
        parse_forced(raw, 100, 3, 16)
    assert str(caught.value).startswith("cdsp_plan")
    assert says in str(caught.value)


def test_a_rest_is_timed_after_what_ran() -> None:
    pool = PoolView((3.0, 9.0), None, 2)
    plan = timed_plan(((200, (0, 1)),), MODEL, pool, 100)
    assert plan.ttft_s == pytest.approx(9.0 + MODEL.predict(2, 100, 200))


def test_times_follow_queues_and_the_latency_model() -> None:
    """Chunk 0 waits 3 s for instance 0 and takes 1 + 0.01 * 100 s; chunk 1 is ready at 5 s, waits
    for instance 1 until 9 s and takes 2 + 0.005 * 200 + 1e-4 * 100 * 200 s."""
    pool = PoolView((3.0, 9.0), None, 2)
    plan = timed_plan(((100, (0,)), (200, (0, 1))), MODEL, pool)
    times = [(chunk.start_s, chunk.end_s) for chunk in plan.chunks]
    assert times == [pytest.approx((3.0, 5.0)), pytest.approx((9.0, 14.0))]
    assert plan.ttft_s == pytest.approx(14.0)
    assert plan.policy == "request"


def test_a_group_outside_the_profiled_sizes_is_timed_by_the_nearest() -> None:
    plan = timed_plan(((100, (0, 1, 2)),), MODEL, PoolView((0.0,) * 3, None, 3))
    assert plan.ttft_s == pytest.approx(MODEL.predict(2, 0, 100))


@quick
@given(cases(history=False))
def test_a_policys_plan_can_be_forced_and_gets_the_same_times(case: Case) -> None:
    options = dataclasses.replace(case.options, spread_cost=0.0)
    plan = make_policy("cdsp", options).plan(case.prompt, case.pool)
    assume(plan is not None)
    assert plan is not None
    raw = json.loads(json.dumps(plan.placement))
    chunks = parse_plan(raw, case.prompt.tokens, case.pool.size, options.page_size)
    assert chunks == plan.placement
    assert timed_plan(chunks, options.model, case.pool).chunks == plan.chunks
