"""Pool views made from others: as a plan leaves the pool to the next prompt, and emptied."""

from __future__ import annotations

from dataclasses import replace

from sglang_cdsp.planner.memory import history_share, kv_demand
from sglang_cdsp.planner.passing import passed
from sglang_cdsp.planner.types import Plan, PoolView, PromptView


def after_plan(pool: PoolView, plan: Plan, prompt: PromptView, page_size: int) -> PoolView:
    """The pool as the next prompt must see it: the last group is busy until the plan ends.

    A plan that passes puts off the groups that stand still for it, by as much as they do. A group
    that another plan waits for is not passed any more: what may delay that plan is not known here.
    """
    queue = list(pool.queue_s)
    rings = pool.passable
    if plan.passes:
        rings, late, delay = passed(pool, plan.instances, plan.ttft_s)
        for i in late:
            queue[i] += delay
        for i in plan.instances:
            queue[i] = max(queue[i], plan.ttft_s)
    else:
        for i in plan.instances:
            queue[i] = plan.ttft_s
        rings = tuple(r for r in rings if set(r.instances).isdisjoint(plan.instances))
    free = pool.free_tokens
    if free is not None:
        history, holders = prompt.history_tokens, prompt.history_instances
        if plan.reused:
            history, holders = plan.reused, (plan.home,)
        demand = kv_demand(plan.placement, page_size, history, holders)
        free = tuple(f - demand.get(i, 0) for i, f in enumerate(free))
    return replace(pool, queue_s=tuple(queue), free_tokens=free, passable=rings)


def empty_pool(prompt: PromptView, pool: PoolView, page_size: int) -> PoolView:
    """The pool with every instance up and nothing in it but the prompt's own history."""
    free = pool.capacity_tokens
    if free is not None and prompt.history_instances:
        share = history_share(prompt.history_tokens, len(prompt.history_instances), page_size)
        free = tuple(
            max(0, f - share) if i in prompt.history_instances else f for i, f in enumerate(free)
        )
    return PoolView((0.0,) * pool.size, free, pool.instances_per_node, None, pool.capacity_tokens)
