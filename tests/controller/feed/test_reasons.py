"""Why a plan was chosen, beside one chunk at each SP size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.controller.feed.reasons import Reasons, reasons
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import builtin_model
from sglang_cdsp.planner.policies import PolicyOptions, make_policy
from sglang_cdsp.planner.types import Placement, Plan, PoolView, PromptView

MODEL = builtin_model()
SIZES = (1, 2, 4)
TOKENS = 60_000


def pool(*queue_s: float, free: int = 1_000_000) -> PoolView:
    return PoolView(queue_s, (free,) * len(queue_s), len(queue_s))


def of(plan: Plan, view: PoolView, tokens: int = TOKENS) -> Reasons:
    return reasons(
        plan,
        view,
        tokens=tokens,
        model=MODEL,
        sizes=SIZES,
        page_size=1,
        improvement_rate=0.1,
    )


def placed(placement: Placement, view: PoolView, policy: str = "cdsp") -> Plan:
    plan = timed_plan(placement, MODEL, view)
    return Plan(plan.chunks, plan.ttft_s, policy)


def test_a_plan_that_widens_is_told_step_by_step() -> None:
    view = pool(9.0, 0.0, 9.0, 9.0)
    found = of(placed(((TOKENS // 2, (1,)), (TOKENS // 2, (1, 0))), view), view)
    assert "Instance 1 can start at once, instance 0 joins at 9.00 s." in found.words
    chosen, *others = found.options
    assert chosen.words == ""
    assert [len(option.placement[0][1]) for option in others] == [1, 2, 4]
    assert others[0].placement == ((TOKENS, (1,)),)


def test_a_sooner_plan_that_takes_more_is_told_with_its_price() -> None:
    view = pool(0.0, 0.0, 0.0, 0.0)
    found = of(placed(((TOKENS, (0,)),), view), view)
    chosen, two, four = found.options
    assert two.ttft_s < chosen.ttft_s
    assert "sooner, for" in two.words or "sooner, but" in two.words
    assert four.ttft_s < two.ttft_s
    assert "not worth what it takes from others" in found.words


def test_the_plan_itself_is_not_named_twice() -> None:
    view = pool(0.0, 0.0)
    found = of(placed(((TOKENS, (1, 0)),), view), view)
    assert [option.placement for option in found.options[1:] if option.placement] == [
        ((TOKENS, (0,)),)
    ]


def test_what_does_not_fit_says_so() -> None:
    view = pool(0.0, 0.0, free=TOKENS // 2)
    found = of(placed(((TOKENS, (0, 1)),), view), view)
    words = {option.words for option in found.options if not option.placement}
    assert words == {f"SP {size}: too few instances that are up and have room" for size in (1, 4)}


def test_plans_of_other_origin_say_whose_they_are() -> None:
    view = pool(0.0, 5.0)
    plan = placed(((TOKENS, (1,)),), view, policy="request")
    assert of(plan, view).words == "The request brought this plan."
    passing = Plan(plan.chunks, plan.ttft_s, "cdsp-late", passes=True)
    assert of(passing, view).words.startswith("It passes: it runs between the layers")


@given(
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=6),
    st.integers(1, 200_000),
    st.sampled_from(["cdsp", "cdsp-late", "cdsp-paper", "single-chunk"]),
)
@settings(max_examples=60, deadline=None)
def test_every_option_is_a_plan_of_the_prompt_in_this_pool(
    queue_s: list[float], tokens: int, name: str
) -> None:
    view = pool(*queue_s)
    sizes = tuple(size for size in SIZES if size <= len(queue_s))
    plan = make_policy(name, PolicyOptions(MODEL, sizes, improvement_rate=0.1)).plan(
        PromptView("p", tokens), view
    )
    assert plan is not None
    found = of(plan, view, tokens)
    for option in found.options:
        if option.placement:
            assert sum(length for length, _ in option.placement) == tokens
            assert option.instance_seconds >= 0
            assert option.start_s >= max(queue_s[i] for i in option.placement[0][1]) - 1e-9
    best = min(option.ttft_s for option in found.options if option.placement)
    if best < found.options[0].ttft_s - 0.01:
        assert "sooner" in found.words, "who could have been sooner is named"
    assert found.to_dict()["queue_s"] == [pytest.approx(q, abs=1e-4) for q in queue_s]
