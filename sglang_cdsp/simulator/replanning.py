"""The rest of a prompt between two of its chunks, as a policy may plan it anew."""

from __future__ import annotations

from dataclasses import replace

from sglang_cdsp.planner.rests import Placed, Rest, moved, seen_by_rest
from sglang_cdsp.planner.types import Plan, PlannedChunk, PromptView
from sglang_cdsp.simulator.prefill import PrefillPool
from sglang_cdsp.simulator.task import Task


def rest_of(now: float, task: Task, pool: PrefillPool, page_size: int) -> Rest:
    """The rest of a task whose last chunk has just ended, and the pool without its plan."""
    plan, bound_s = task.plan, task.bound_s
    assert plan is not None
    assert bound_s is not None
    placed = _placed(task, page_size)
    chunks = moved(plan.chunks[task.chunk :], bound_s + task.late_s - now)
    request = task.request

    def before_s(i: int) -> float:
        before = [other.expected_s for other in pool.order.queues[i] if other.seq < task.seq]
        return max(before, default=now) - now

    return Rest(
        PromptView(
            request.rid,
            request.prompt_tokens - placed.tokens,
            placed.tokens,
            placed.group,
            request.arrival_s,
        ),
        Plan(chunks, chunks[-1].end_s, plan.policy),
        seen_by_rest(
            pool.view(now), placed, task.slots, before_s, lambda i: pool.order.may_join(task, i)
        ),
    )


def rebind(now: float, task: Task, pool: PrefillPool, plan: Plan, page_size: int) -> None:
    """Put a plan for the rest of the task in force."""
    assert task.plan is not None
    assert task.bound_s is not None
    ran = tuple(
        PlannedChunk(c.tokens, c.instances, c.start_s - task.bound_s, c.end_s - task.bound_s)
        for c in task.ran
    )
    rest = moved(plan.chunks, now - task.bound_s)
    whole = replace(
        task.plan,
        chunks=ran + rest,
        ttft_s=rest[-1].end_s,
        policy=plan.policy,
        replanned=plan.replanned,
        passes=plan.passes,
    )
    task.replanned += 1
    slots = _placed(task, page_size).with_rest(plan.placement, page_size)
    pool.rebind(now, task, whole, slots)


def _placed(task: Task, page_size: int) -> Placed:
    assert task.plan is not None
    ran = tuple((c.tokens, c.instances) for c in task.ran)
    return Placed.after(task.plan.before(0) + ran, page_size)
