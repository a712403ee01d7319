"""Pool views made from others: what a plan takes from the pool, and what an empty pool has."""

import dataclasses

from hypothesis import assume, given

from sglang_cdsp.planner import kv_demand, make_policy
from sglang_cdsp.planner.views import after_plan, empty_pool
from tests.planner.pools import Case, cases, quick


@quick
@given(cases())
def test_a_plan_leaves_its_members_busy_and_its_slots_promised(case: Case) -> None:
    prompt, pool, page = case.prompt, case.pool, case.options.page_size
    plan = make_policy("cdsp", case.options).plan(prompt, pool)
    assume(plan is not None)
    assert plan is not None
    left = after_plan(pool, plan, prompt, page)
    for i in range(pool.size):
        assert left.queue_s[i] == (plan.ttft_s if i in plan.instances else pool.queue_s[i])
    if pool.free_tokens is None:
        assert left.free_tokens is None
    else:
        assert left.free_tokens is not None
        need = kv_demand(plan.placement, page, prompt.history_tokens, prompt.history_instances)
        taken = {i: pool.free_tokens[i] - left.free_tokens[i] for i in range(pool.size)}
        assert {i: n for i, n in taken.items() if n} == {i: n for i, n in need.items() if n}
        assert min(left.free_tokens) >= 0
    assert (left.up, left.capacity_tokens) == (pool.up, pool.capacity_tokens)


@quick
@given(cases())
def test_an_empty_pool_has_all_but_the_prompts_own_history(case: Case) -> None:
    prompt = case.prompt
    pool = dataclasses.replace(case.pool, capacity_tokens=case.pool.free_tokens)
    empty = empty_pool(prompt, pool, case.options.page_size)
    assert empty.queue_s == (0.0,) * pool.size
    assert empty.up is None
    assert empty.capacity_tokens == pool.capacity_tokens
    if pool.capacity_tokens is None:
        assert empty.free_tokens is None
        return
    assert empty.free_tokens is not None
    for i, (free, capacity) in enumerate(zip(empty.free_tokens, pool.capacity_tokens, strict=True)):
        assert (free < capacity) == (i in prompt.history_instances and capacity > 0)
