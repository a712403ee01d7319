"""When `cdsp-late` lets a prompt pass, and when a policy plans the rest of a prompt anew."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import Plan, PlannedChunk, PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.policies.chunkwise import REPLAN_S
from sglang_cdsp.planner.types import Passable
from tests.planner.pools import MODEL, quick

N, NODE = 8, 4
OPTIONS = PolicyOptions(MODEL, (1, 2, 4, 8), improvement_rate=0.1)


def busy(**changes: object) -> PoolView:
    """Two rings of four in the middle of long prompts, both with time to spare."""
    rings = tuple(
        Passable(tuple(range(at, at + 4)), 12.0, 6.0, 6.0, 0.05, 0.05, 2.4, (0.0,) * 4)
        for at in (0, 4)
    )
    view = PoolView((6.0,) * N, None, NODE, passable=rings)
    return dataclasses.replace(view, **changes)  # type: ignore[arg-type]


def started(pool: PoolView, *tokens: int, **options: object) -> list[Plan]:
    policy = make_policy("cdsp-late", dataclasses.replace(OPTIONS, **options))  # type: ignore[arg-type]
    for number, length in enumerate(tokens):
        policy.arrive(PromptView(str(number), length), 0.0)
    return [plan for _, plan in policy.step(pool, 0.0)]


def test_a_short_prompt_passes_long_ones_where_nobody_is_free() -> None:
    [plan] = started(busy(), 2000)
    assert plan.passes
    [chunk] = plan.chunks
    assert chunk.tokens == 2000
    assert chunk.start_s == 0.05
    assert plan.ttft_s == chunk.end_s < 6.0
    assert plan.to_dict()["passes"] is True


def test_a_late_prompt_is_passed_by_very_short_ones_only() -> None:
    """What may still wait lets a prompt of 30,000 tokens pass; what is late, one of 200."""

    def waited(seconds: float) -> PoolView:
        rings = tuple(dataclasses.replace(ring, waited_s=seconds) for ring in busy().passable)
        return busy(queue_s=(1.2,) * N, passable=rings)

    for tokens, since_s, passes in ((30_000, 0.0, 1), (30_000, 60.0, 0), (200, 60.0, 1)):
        assert sum(plan.passes for plan in started(waited(since_s), tokens)) == passes


def test_with_an_idle_instance_nobody_passes() -> None:
    [plan] = started(busy(queue_s=(*(6.0,) * 7, 0.0), passable=busy().passable[:1]), 2000)
    assert (plan.passes, plan.instances) == (False, (7,))


def test_nobody_passes_without_a_budget_or_where_chunks_do_not_give_way() -> None:
    assert started(busy(), 2000, preempt_budget=0.0) == []
    assert started(busy(passable=()), 2000) == []


def test_nobody_passes_what_is_nearly_done() -> None:
    soon = tuple(dataclasses.replace(ring, left_s=0.06) for ring in busy().passable)
    assert started(busy(queue_s=(0.06,) * N, passable=soon), 20_000) == []


def test_nobody_passes_beyond_what_is_left_of_the_budget() -> None:
    spent = tuple(dataclasses.replace(ring, budget_s=0.01) for ring in busy().passable)
    assert started(busy(passable=spent), 2000) == []


def test_short_prompts_that_pass_together_share_a_stall() -> None:
    """Two of one length pass side by side, at the same layer: the ring stands still once."""
    first, second, *others = started(busy(passable=busy().passable[:1]), *(2000,) * 4)
    assert set(first.instances).isdisjoint(second.instances)
    assert first.ttft_s == second.ttft_s
    longest = max(plan.ttft_s for plan in (first, second, *others))
    alone = MODEL.predict(len(first.instances), 0, 2000)
    assert longest < 0.05 + 4 * alone


@quick
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=12))
def test_what_passes_in_one_step_keeps_to_the_budget(tokens: list[int]) -> None:
    delays = [0.0, 0.0]
    for plan in started(busy(), *tokens):
        assert plan.passes
        for number in {i // 4 for i in plan.instances}:
            delays[number] = max(delays[number], plan.ttft_s - 0.05)
    assert max(delays) <= 2.4 + 1e-9


def rest(tokens: int, done: int = 8_000, group: tuple[int, ...] = (0,)) -> PromptView:
    return PromptView("r", tokens, done, group)


def as_plan(*chunks: tuple[int, tuple[int, ...], float, float]) -> Plan:
    made = tuple(PlannedChunk(*chunk) for chunk in chunks)
    return Plan(made, made[-1].end_s, "cdsp")


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_a_rest_joins_instances_that_came_free(name: str) -> None:
    policy = make_policy(name, dataclasses.replace(OPTIONS, improvement_rate=0.0))
    prompt, pool = rest(60_000), PoolView((0.0,) * N, None, NODE)
    current = as_plan((60_000, (0,), 0.0, MODEL.predict(1, 8_000, 60_000)))
    plan = policy.replan(prompt, current, pool)
    assert plan is not None
    assert plan.ttft_s < current.ttft_s
    assert plan.instances[0] == 0
    assert plan.tokens == 60_000
    assert "s sooner" in plan.replanned
    assert "joins 1-" in plan.replanned
    assert plan.to_dict()["replanned"] == plan.replanned


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_a_rest_stays_where_nothing_came_free(name: str) -> None:
    policy = make_policy(name, OPTIONS)
    pool = PoolView((0.0, *(9.0,) * (N - 1)), None, NODE)
    current = as_plan((20_000, (0,), 0.0, MODEL.predict(1, 8_000, 20_000)))
    assert policy.replan(rest(20_000), current, pool) is None


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_the_plan_in_force_is_kept_unless_the_new_one_saves_enough(name: str) -> None:
    policy = make_policy(name, dataclasses.replace(OPTIONS, improvement_rate=0.0))
    prompt, pool = rest(60_000), PoolView((0.0,) * N, None, NODE)
    best = policy.plan(prompt, pool)
    assert best is not None
    assert policy.replan(prompt, best, pool) is None
    for later, replans in ((REPLAN_S / 2, False), (2 * REPLAN_S, True)):
        current = dataclasses.replace(best, ttft_s=best.ttft_s + later)
        assert (policy.replan(prompt, current, pool) is not None) is replans


@quick
@given(
    st.lists(st.floats(0, 4), min_size=N, max_size=N),
    st.integers(300, 90_000),
    st.sampled_from([(0,), (0, 1), (2, 5)]),
    st.floats(0, 10),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from(["cdsp", "cdsp-late"]),
)
def test_a_new_rest_is_whole_goes_on_where_the_prompt_is_and_ends_no_later(
    queue: list[float],
    tokens: int,
    group: tuple[int, ...],
    longer: float,
    rate: float,
    name: str,
) -> None:
    policy = make_policy(name, dataclasses.replace(OPTIONS, improvement_rate=rate))
    pool = PoolView(tuple(0.0 if i in group else q for i, q in enumerate(queue)), None, NODE)
    prompt = rest(tokens, group=group)
    end = MODEL.predict(len(group), 8_000, tokens) + longer
    plan = policy.replan(prompt, as_plan((tokens, group, 0.0, end)), pool)
    if plan is not None:
        assert plan.ttft_s <= end
        assert plan.tokens == tokens
        assert plan.chunks[0].instances[: len(group)] == group


@pytest.mark.parametrize(
    "name",
    ["cdsp-paper", "single-chunk", "fixed-sp:4", "loongserve", "threshold:9", "data-parallel"],
)
def test_the_others_bind_once(name: str) -> None:
    policy = make_policy(name, OPTIONS)
    current = as_plan((60_000, (0,), 0.0, 100.0))
    assert not policy.replans
    assert policy.replan(rest(60_000), current, PoolView((0.0,) * N, None, NODE)) is None
