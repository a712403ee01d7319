"""Plans that start from cached prefixes: the cheapest start wins, and says why."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.policies.chunkwise import Cdsp, Chunkwise
from sglang_cdsp.planner.policies.late import CdspLate
from sglang_cdsp.planner.prefixes.starts import MOST_SEARCHES, best_start, cost, starts, usable
from sglang_cdsp.planner.types import HeldPrefix, Plan, Running
from sglang_cdsp.planner.views import after_plan
from tests.planner.pools import MODEL, Case, cases, quick

N = 4
IDLE = PoolView((0.0,) * N, None, N)
OPTIONS = PolicyOptions(MODEL, (1, 2, 4), page_size=16, improvement_rate=0.1)


def with_prefixes(*held: HeldPrefix, name: str = "cdsp") -> Chunkwise:
    """A policy that knows of these prefixes, whatever the prompt."""
    policy = make_policy(name, replace(OPTIONS, prefixes=lambda rid: held))
    assert isinstance(policy, Chunkwise)
    return policy


def planned(policy: Chunkwise, tokens: int, pool: PoolView = IDLE) -> Plan:
    plan = policy.plan(PromptView("r", tokens), pool)
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_a_long_prefix_is_read_where_it_is(name: str) -> None:
    plan = planned(with_prefixes(HeldPrefix(2, 32_000), name=name), 33_000)
    assert (plan.reused, plan.cached, plan.home) == (32_000, 32_000, 2)
    assert plan.tokens == 1000
    assert plan.ttft_s < 0.5 * planned(with_prefixes(name=name), 33_000).ttft_s
    assert plan.choice.startswith("32000 cached tokens on instance 2; computed whole would cost")
    assert plan.before(0) == ((32_000, (2,)),)
    assert plan.before(1) == ((32_000, (2,)), plan.placement[0])


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_what_is_computed_sooner_elsewhere_does_not_wait_for_its_holder(name: str) -> None:
    pool = replace(IDLE, queue_s=(0.0, 0.0, 1000.0, 0.0))
    plan = planned(with_prefixes(HeldPrefix(2, 32_000), name=name), 33_000, pool)
    assert (plan.reused, plan.cached) == (0, 32_000)
    assert 2 not in plan.instances
    assert plan.choice.startswith("computed whole; 32000 cached tokens on instance 2 would cost")


def test_of_equal_prefixes_that_of_the_idle_instance_is_taken() -> None:
    pool = replace(IDLE, queue_s=(0.5, 0.0, 0.5, 0.5))
    held = [HeldPrefix(i, 32_000) for i in range(3)]
    assert planned(with_prefixes(*held), 33_000, pool).home == 1


def test_a_shorter_prefix_on_an_idle_instance_may_win() -> None:
    pool = replace(IDLE, queue_s=(100.0, 0.0, 100.0, 100.0))
    held = HeldPrefix(0, 32_000), HeldPrefix(1, 16_000)
    plan = planned(with_prefixes(*held), 33_000, pool)
    assert (plan.home, plan.reused, plan.cached) == (1, 16_000, 32_000)


def test_holders_that_are_down_or_have_no_room_to_be_home_are_left_out() -> None:
    held = HeldPrefix(0, 3200, 5000), HeldPrefix(1, 1600, 5000), HeldPrefix(2, 1600, 5000)
    pool = PoolView((0.0,) * 4, (4999, 5000, 90_000, 90_000), 4, (True, True, False, True))
    assert usable(held, PromptView("r", 4000), pool) == [held[1]]


@pytest.mark.parametrize("name", ["cdsp-paper", "single-chunk", "loongserve", "data-parallel"])
def test_policies_for_comparison_reuse_nothing(name: str) -> None:
    options = replace(OPTIONS, prefixes=lambda rid: (HeldPrefix(2, 32_000),))
    plan = make_policy(name, options).plan(PromptView("r", 33_000), IDLE)
    assert plan is not None
    assert (plan.reused, plan.tokens) == (0, 33_000)


def test_cache_aware_routing_takes_one_instance_and_what_it_has() -> None:
    options = replace(OPTIONS, prefixes=lambda rid: (HeldPrefix(2, 32_000),))
    policy, prompt = make_policy("cache-aware", options), PromptView("r", 33_000)
    plan = policy.plan(prompt, IDLE)
    assert plan is not None
    assert (plan.reused, plan.instances) == (32_000, (2,))
    elsewhere = policy.plan(prompt, replace(IDLE, queue_s=(0.0, 0.0, 1000.0, 0.0)))
    assert elsewhere is not None
    assert (elsewhere.reused, elsewhere.tokens) == (0, 33_000)


def test_beside_decode_a_holder_costs_what_its_requests_lose() -> None:
    busy = Running(requests=40, tokens_left=1000.0, pace=0.5, stretch_s=0.5)
    pool = replace(IDLE, running=(Running(), Running(), busy, Running()))
    plan = planned(with_prefixes(HeldPrefix(2, 1024)), 33_000, pool)
    assert plan.reused == 0
    alone = planned(with_prefixes(HeldPrefix(2, 1024)), 33_000)
    assert alone.reused == 1024


@pytest.mark.parametrize("policy_type", [Cdsp, CdspLate])
@given(case=cases(history=False), data=st.data())
@quick
def test_the_chosen_start_is_the_cheapest_of_all(
    policy_type: type[Chunkwise], case: Case, data: st.DataObject
) -> None:
    n, page = case.pool.size, case.options.page_size
    pages = data.draw(st.lists(st.integers(0, 2000), min_size=n, max_size=n))
    instances = data.draw(st.lists(st.integers(0, n - 1), max_size=MOST_SEARCHES - 1, unique=True))
    held = [HeldPrefix(i, pages[i] * page, data.draw(st.integers(0, 90_000))) for i in instances]
    policy = policy_type(case.options)
    late = isinstance(policy, CdspLate)
    price = data.draw(st.floats(0.0, 10.0)) if late else None
    asked = policy._asked(price)
    ways = starts(held, case.prompt, case.pool, policy._least_cost(asked), asked)
    chosen = best_start(ways, case.pool, lambda s: policy._from_start(s, case.pool, price), asked)
    found = [policy._from_start(way, case.pool, price) for way in ways]
    costs = [cost(plan, case.pool, asked) for plan in found if plan is not None]
    for way, plan in zip(ways, found, strict=True):
        assert plan is None or way.least <= cost(plan, case.pool, asked) * (1 + 1e-9) + 1e-12
    if not costs:
        assert chosen is None
        return
    assert chosen is not None
    assert cost(chosen, case.pool, asked) <= min(costs) * (1 + 1e-9)
    assert chosen.reused + chosen.tokens == case.prompt.tokens
    if chosen.reused:
        prefix = next(h for h in held if h.instance == chosen.home)
        assert chosen.reused == prefix.tokens <= chosen.cached
        assert chosen.reused % page == 0
        room = case.pool.free_tokens
        assert room is None or room[chosen.home] >= prefix.home_tokens
    after = after_plan(case.pool, chosen, case.prompt, page)
    assert after.free_tokens is None or min(after.free_tokens) >= 0


def test_late_keeps_a_busy_holder_and_lets_others_go_on() -> None:
    policy = with_prefixes(HeldPrefix(2, 32_000), name="cdsp-late")
    pool = PoolView((0.0, 0.0, 0.05, 0.0), (200_000,) * 4, 4)
    policy.arrive(PromptView("a", 33_000), 0.0)
    policy.options = replace(policy.options, prefixes=None)
    policy.arrive(PromptView("b", 40_000), 0.0)
    policy.options = replace(
        policy.options, prefixes=lambda rid: (HeldPrefix(2, 32_000),) if rid == "a" else ()
    )
    bound = dict(policy.step(pool, 0.0))
    assert policy.waiting() == ("a",)
    assert bound["b"].chunks[0].start_s == 0.0
    assert 2 not in bound["b"].instances
    pool = replace(after_plan(pool, bound["b"], PromptView("b", 40_000), 16))
    pool = replace(pool, queue_s=(*pool.queue_s[:2], 0.0, pool.queue_s[3]))
    bound = dict(policy.step(pool, 0.05))
    assert (bound["a"].reused, bound["a"].home) == (32_000, 2)


def test_late_orders_by_what_is_left_to_compute() -> None:
    held = (HeldPrefix(2, 99_968),)
    options = replace(OPTIONS, prefixes=lambda rid: held if rid == "long" else ())
    policy = make_policy("cdsp-late", options)
    policy.arrive(PromptView("short", 20_000), 0.0)
    policy.arrive(PromptView("long", 100_000), 0.0)
    assert policy.waiting() == ("long", "short")


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_an_explanation_weighs_all_starts(name: str) -> None:
    policy = with_prefixes(HeldPrefix(2, 32_000), HeldPrefix(1, 16_000), name=name)
    plan, considered = policy.explain(PromptView("r", 33_000), IDLE)
    assert plan is not None
    assert considered[0].chosen
    assert considered[0].chunks == plan.chunks
    assert considered[0].reused == plan.reused == 32_000
    assert {one.reused for one in considered} == {0, 16_000, 32_000}
    assert sum(one.chosen for one in considered) == 1
    assert any("its start is not the cheapest" in one.reason for one in considered)
