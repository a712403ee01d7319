"""A policy that raises, or plans what does not wait, costs nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sglang_cdsp.controller.policy_guard import GuardedPolicy
from sglang_cdsp.planner.errors import PromptTooLongError
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.policies import Policy, PolicyOptions, make_policy
from sglang_cdsp.planner.types import Plan, PoolView, PromptView

MODEL = LatencyModel(((1, Coefficients(1.0, 0.01, 0.0, 0.0)),))
OPTIONS = PolicyOptions(model=MODEL, sp_sizes=(1,), page_size=16)
POOL = PoolView(queue_s=(0.0, 0.0), instances_per_node=2, free_tokens=(64, 640))


def broken(method: str, *, after: int = 0) -> Policy:
    """A policy one of whose methods raises at its call number ``after``."""
    policy = make_policy("data-parallel", OPTIONS)
    right: Callable[..., object] = getattr(policy, method)
    calls = [0]

    def wrong(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] > after:
            raise ZeroDivisionError("of its own")
        return right(*arguments)

    setattr(policy, method, wrong)
    return policy


def guard(policy: Policy) -> GuardedPolicy:
    return GuardedPolicy(policy, lambda: make_policy("single-chunk", OPTIONS))


@pytest.mark.parametrize(
    "method",
    ["arrive", "take_back", "finish", "step", "waiting", "check", "could_run", "plan", "explain"],
)
@pytest.mark.parametrize("after", [0, 1])
def test_every_prompt_is_planned_all_the_same(
    method: str, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = guard(broken(method, after=after))
    prompts = [PromptView(f"p{i}", 48) for i in range(4)]
    for prompt in prompts:
        guarded.check(prompt, POOL)
        guarded.arrive(prompt, 0.0)
        guarded.could_run(prompt, POOL)
        guarded.plan(prompt, POOL)
        guarded.explain(prompt, POOL)
    guarded.finish("p1", 0.5)
    guarded.finish("unknown", 0.5)
    planned = [rid for rid, _ in guarded.step(POOL, 1.0)]
    guarded.take_back(prompts[0], 1.5)
    guarded.take_back(prompts[2], 1.5)
    assert guarded.waiting()
    planned += [rid for rid, _ in guarded.step(POOL, 2.0)]
    assert guarded.waiting() == ()
    assert sorted(planned) == ["p0", "p0", "p2", "p2", "p3"]
    assert guarded.name == "single-chunk"
    assert guarded.error == "policy data-parallel raised ZeroDivisionError: of its own"
    (record,) = [r for r in caplog.records if "sglang-cdsp" in r.getMessage()]
    assert record.exc_info is not None, "its author needs the traceback"


def test_answers_are_no_faults() -> None:
    guarded = guard(make_policy("data-parallel", OPTIONS))
    full = replace(POOL, capacity_tokens=(64, 640))
    with pytest.raises(PromptTooLongError):
        guarded.check(PromptView("long", 10_000), full)
    assert (guarded.name, guarded.error) == ("data-parallel", "")


def test_a_plan_for_a_prompt_that_does_not_wait_is_a_fault() -> None:
    policy = make_policy("data-parallel", OPTIONS)

    def invented(pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        plan = policy.plan(PromptView("invented", 16), pool)
        assert plan is not None
        return [("invented", plan)]

    policy.step = invented  # type: ignore[method-assign]
    guarded = guard(policy)
    guarded.arrive(PromptView("real", 16), 0.0)
    assert [rid for rid, _ in guarded.step(POOL, 1.0)] == ["real"]
    assert "'invented', which does not wait" in guarded.error


def test_a_plan_that_is_none_is_a_fault() -> None:
    policy = make_policy("data-parallel", OPTIONS)
    whole = policy.step

    def halved(pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        return [
            (rid, replace(plan, chunks=tuple(replace(c, tokens=8) for c in plan.chunks)))
            for rid, plan in whole(pool, now_s)
        ]

    policy.step = halved  # type: ignore[method-assign]
    guarded = guard(policy)
    guarded.arrive(PromptView("real", 16), 0.0)
    ((rid, plan),) = guarded.step(POOL, 1.0)
    assert (rid, plan.tokens, plan.policy) == ("real", 16, "single-chunk")
    assert "it planned 'real' as chunks of [8] tokens, which has 16" in guarded.error


def test_a_rest_that_is_no_plan_is_a_fault() -> None:
    policy = make_policy("data-parallel", OPTIONS)
    rest = PromptView("real", 32, 16, (1,))
    current = policy.plan(rest, POOL)
    assert current is not None
    elsewhere = replace(current.chunks[0], instances=(0,))

    def moved(rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        return replace(current, chunks=(elsewhere,))

    policy.replan = moved  # type: ignore[method-assign]
    guarded = guard(policy)
    assert guarded.replan(rest, current, POOL) is None
    assert "which does not begin with [1]" in guarded.error


def test_the_second_one_is_not_replaced() -> None:
    guarded = GuardedPolicy(broken("step"), lambda: broken("step"))
    with pytest.raises(ZeroDivisionError):
        guarded.step(POOL, 0.0)
