"""Prefixes that are copied first: when that pays, to where, and what many ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.policies.chunkwise import Chunkwise
from sglang_cdsp.planner.prefixes.copies import (
    FIXED_S,
    PRIOR_BYTES_PER_S,
    CopyCost,
    CopyTimes,
    copy_to_start_from,
)
from sglang_cdsp.planner.prefixes.hot import (
    DECAY_S,
    MOST_KNOWN,
    PrefixUses,
    Turnover,
    target_of_copy,
    wants_copy,
)
from sglang_cdsp.planner.prefixes.starts import cost
from sglang_cdsp.planner.types import HeldPrefix, Plan, PrefixCopy
from tests.planner.pools import MODEL, Case, cases, quick

N = 4
DECODES = PoolView((0.0,) * N, None, N, (True, True, True, False))
"""Instance 3 takes no chunks."""
FAST = CopyCost(0.01, 1e-7)
OPTIONS = PolicyOptions(
    MODEL, (1, 2, 4), page_size=16, improvement_rate=0.1, copy_costs=lambda: FAST
)


def with_prefixes(*held: HeldPrefix, name: str = "cdsp", slow_s: float = 1e-7) -> Chunkwise:
    """A policy that knows of these prefixes, whatever the prompt."""
    options = replace(OPTIONS, prefixes=lambda rid: held, copy_costs=lambda: CopyCost(0.01, slow_s))
    policy = make_policy(name, options)
    assert isinstance(policy, Chunkwise)
    return policy


def planned(policy: Chunkwise, tokens: int, pool: PoolView = DECODES) -> Plan:
    plan = policy.plan(PromptView("r", tokens), pool)
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", ["cdsp", "cdsp-late"])
def test_what_lies_where_no_chunk_runs_is_copied(name: str) -> None:
    plan = planned(with_prefixes(HeldPrefix(3, 32_000), name=name), 33_000)
    assert plan.copy is not None
    assert (plan.copy.source, plan.copy.tokens) == (3, 32_000)
    assert (plan.reused, plan.cached, plan.tokens) == (32_000, 32_000, 1000)
    assert 3 not in plan.instances
    assert plan.chunks[0].start_s == plan.copy.seconds == FAST.seconds(32_000)
    assert plan.ttft_s < 0.5 * planned(with_prefixes(name=name), 33_000).ttft_s
    told = f"32000 cached tokens on instance {plan.home}, 32000 of them copied from instance 3"
    assert plan.choice.startswith(told)
    assert plan.to_dict()["copy"] == {"from": 3, "tokens": 32_000, "seconds": plan.copy.seconds}


def test_nothing_is_copied_that_is_computed_sooner() -> None:
    plan = planned(with_prefixes(HeldPrefix(3, 32_000), slow_s=1.0), 33_000)
    assert (plan.copy, plan.reused) == (None, 0)
    assert plan.choice.startswith("computed whole; 32000 cached tokens on instance")


def test_nothing_is_copied_where_nothing_can_be() -> None:
    policy = with_prefixes(HeldPrefix(3, 32_000))
    policy.options = replace(policy.options, copy_costs=None)
    assert planned(policy, 33_000).copy is None
    held = HeldPrefix(3, 32_000, ready=0)
    assert planned(with_prefixes(held), 33_000).copy is None


def test_what_the_target_has_does_not_travel() -> None:
    held = HeldPrefix(3, 32_000), HeldPrefix(1, 30_000)
    plan = planned(with_prefixes(*held, slow_s=1e-5), 33_000)
    assert plan.copy == PrefixCopy(3, 2000, CopyCost(0.01, 1e-5).seconds(2000))
    assert (plan.home, plan.reused) == (1, 32_000)


def test_a_free_holder_reads_it_in_place() -> None:
    held = HeldPrefix(3, 32_000), HeldPrefix(1, 32_000)
    plan = planned(with_prefixes(*held), 33_000)
    assert (plan.copy, plan.home, plan.reused) == (None, 1, 32_000)


def test_a_busy_holder_is_left_for_a_copy() -> None:
    pool = PoolView((0.0, 1000.0, 1000.0, 1000.0), None, N)
    plan = planned(with_prefixes(HeldPrefix(1, 32_000)), 33_000, pool)
    assert plan.copy is not None
    assert (plan.copy.source, plan.home) == (1, 0)


def test_a_prompt_that_will_be_cached_is_not_sent_before_it_is() -> None:
    pool = PoolView((0.0, 1000.0, 1000.0, 1000.0), None, N)
    held = HeldPrefix(1, 32_000, ready=16_000)
    plan = planned(with_prefixes(held), 33_000, pool)
    assert plan.copy is not None
    assert plan.copy.tokens == plan.reused == 16_000


def test_late_binds_a_plan_when_its_copy_is_to_begin() -> None:
    policy = with_prefixes(HeldPrefix(3, 32_000), name="cdsp-late", slow_s=1e-5)
    policy.arrive(PromptView("a", 33_000), 0.0)
    ((rid, plan),) = policy.step(DECODES, 0.0)
    assert rid == "a"
    assert plan.copy is not None
    assert plan.chunks[0].start_s == plan.copy.seconds > 0.3
    assert policy.waiting() == ()


def test_an_explanation_has_the_starts_with_and_without_the_copy() -> None:
    policy = with_prefixes(HeldPrefix(3, 32_000))
    plan, considered = policy.explain(PromptView("r", 33_000), DECODES)
    assert plan is not None
    assert plan.copy is not None
    assert considered[0].chosen
    assert considered[0].reused == 32_000
    assert {one.reused for one in considered} == {0, 32_000}


@given(cases(history=False), st.data())
@quick
def test_a_copy_starts_no_sooner_than_it_has_come_and_pays(case: Case, data: st.DataObject) -> None:
    n, page = case.pool.size, case.options.page_size
    seats = data.draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True))
    held = []
    for i in seats:
        pages = data.draw(st.integers(1, 2000))
        ready = data.draw(st.none() | st.integers(0, pages))
        held.append(HeldPrefix(i, pages * page, 0, None if ready is None else ready * page))
    fixed, token = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1e-3))
    options = replace(
        case.options,
        prefixes=lambda rid: tuple(held),
        copy_costs=lambda: CopyCost(fixed, token),
    )
    policy, without = (make_policy("cdsp", o) for o in (options, replace(options, copy_costs=None)))
    assert isinstance(policy, Chunkwise)
    plan, plain = policy.plan(case.prompt, case.pool), without.plan(case.prompt, case.pool)
    if plan is None:
        assert plain is None
        return
    if plan.copy is None:
        return
    copy, home = plan.copy, plan.home
    source = next(h for h in held if h.instance == copy.source)
    own = max([h.sendable for h in held if h.instance == home], default=0)
    assert home != copy.source
    assert plan.reused == source.sendable < case.prompt.tokens
    assert copy.tokens == source.sendable - min(own, source.sendable)
    assert plan.chunks[0].start_s >= copy.seconds == fixed + token * copy.tokens
    assert case.pool.up is None or case.pool.up[home]
    if plain is not None:
        asked = policy._asked(None)
        assert cost(plan, case.pool, asked) <= cost(plain, case.pool, asked) * (1 + 1e-9)


def test_the_target_has_the_room_to_be_home() -> None:
    pool = replace(DECODES, free_tokens=(4999, 5000, 4999, 9000))
    held, prompt = (HeldPrefix(3, 3200, 5000),), PromptView("r", 4000)
    found = copy_to_start_from(held, prompt, pool, FAST)
    assert found == (HeldPrefix(1, 3200, 5000), PrefixCopy(3, 3200, FAST.seconds(3200)))
    pool = replace(pool, free_tokens=(4999,) * 4)
    assert (
        copy_to_start_from((HeldPrefix(3, 3200, 5000),), PromptView("r", 4000), pool, FAST) is None
    )


def test_what_copies_take_is_learnt() -> None:
    times = CopyTimes(1000)
    assert times.cost() == CopyCost(FIXED_S, 1000 / PRIOR_BYTES_PER_S)
    for _ in range(50):
        times.observe(10_000, FIXED_S + 10_000 * 3e-6)
    assert times.cost().token_s == pytest.approx(3e-6, rel=1e-3)
    before = times.cost()
    times.observe(16, 100.0)
    assert times.cost() == before, "a short one says nothing about tokens"


# -- what many ask for ------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_uses_decay(gaps: list[float]) -> None:
    uses, now, expected = PrefixUses(), 0.0, 0.0
    for gap in gaps:
        now += gap
        expected = expected * math.exp(-gap / DECAY_S) + 1
        assert uses.used(7, now) == pytest.approx(expected)
    assert uses.used(8, now) == 1


def test_what_was_used_long_ago_is_forgotten() -> None:
    uses = PrefixUses()
    uses.used(-1, 0.0)
    for name in range(MOST_KNOWN):
        uses.used(name, 0.0)
    assert uses.used(-1, 0.0) == 1


@given(st.floats(0, 1000), st.integers(0, 16))
def test_each_copy_is_used_often_enough(uses: float, copies: int) -> None:
    assert wants_copy(uses, copies) == (uses / (copies + 1) >= 2)


def test_a_copy_goes_where_what_it_pushes_out_is_used_least() -> None:
    ages, queue = (10.0, 100.0, math.inf, math.inf), (0.0, 0.0, 5.0, 1.0)
    assert target_of_copy(4.0, 1, ages, queue, {0, 1, 2, 3}) == 3
    assert target_of_copy(4.0, 1, ages, queue, {0, 1}) == 1
    assert target_of_copy(4.0, 1, ages, queue, {0}) is None, "of lower use than what is there"
    assert target_of_copy(4.0, 1, ages, queue, set()) is None


def test_a_cache_with_room_pushes_nothing_out() -> None:
    turnover = Turnover(2)
    turnover.stored(0, 6000, 0.0)
    assert turnover.age_s(0, 4000, 4000, 0.0) == pytest.approx(40.0)
    assert turnover.age_s(0, 4000, 9000, 0.0) == math.inf
    assert turnover.age_s(1, 4000, 4000, 0.0) == math.inf
    assert turnover.age_s(0, 4000, 4000, DECAY_S) == pytest.approx(40.0 * math.e)
