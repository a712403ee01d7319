"""The rest of a prompt between two of its chunks, as a policy may plan it anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sglang_cdsp.planner.memory import held_after, history_share, kv_demand
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView, PromptView
from sglang_cdsp.simulator.prefill import PrefillPool
from sglang_cdsp.simulator.task import Task


@dataclass(frozen=True, slots=True)
class Rest:
    """What `Policy.replan` is asked."""

    prompt: PromptView
    current: Plan
    pool: PoolView


def rest_of(now: float, task: Task, pool: PrefillPool, page_size: int) -> Rest:
    """The rest of a task whose last chunk has just ended, and the pool without its plan.

    On its own instances the rest keeps its place in the order, so only what stands before it
    counts. It may not join an instance where a prompt that was bound later waits.
    """
    plan, bound_s = task.plan, task.bound_s
    assert plan is not None
    assert bound_s is not None
    done = sum(chunk.tokens for chunk in task.ran)
    group = task.ran[-1].instances
    moved = bound_s + task.late_s - now
    chunks = tuple(
        replace(chunk, start_s=chunk.start_s + moved, end_s=chunk.end_s + moved)
        for chunk in plan.chunks[task.chunk :]
    )
    request = task.request
    seen = pool.view(now)
    queue, free = list(seen.queue_s), list(seen.free_tokens or ())
    held = _held(task, page_size)
    for i in plan.instances:
        before = [other.expected_s for other in pool.order.queues[i] if other.seq < task.seq]
        queue[i] = max(0.0, max(before, default=now) - now)
        free[i] += task.slots.get(i, 0)
    for i in group:
        # The planner counts an even share of the history as there already.
        free[i] -= max(held, history_share(done, len(group), page_size))
    up = tuple(
        ok and (i in plan.instances or pool.order.may_join(task, i)) for i, ok in enumerate(pool.up)
    )
    return Rest(
        PromptView(request.rid, request.prompt_tokens - done, done, group, request.arrival_s),
        Plan(chunks, chunks[-1].end_s, plan.policy),
        replace(seen, queue_s=tuple(queue), free_tokens=tuple(free), up=up),
    )


def rebind(now: float, task: Task, pool: PrefillPool, plan: Plan, page_size: int) -> None:
    """Put a plan for the rest of the task in force."""
    assert task.plan is not None
    assert task.bound_s is not None
    done = sum(chunk.tokens for chunk in task.ran)
    group = task.ran[-1].instances
    held = max(_held(task, page_size), history_share(done, len(group), page_size))
    slots = kv_demand(plan.placement, page_size, done, group)
    for i in group:
        slots[i] += held
    past = now - task.bound_s
    ran = tuple(
        PlannedChunk(c.tokens, c.instances, c.start_s - task.bound_s, c.end_s - task.bound_s)
        for c in task.ran
    )
    rest = tuple(
        replace(chunk, start_s=chunk.start_s + past, end_s=chunk.end_s + past)
        for chunk in plan.chunks
    )
    whole = replace(plan, chunks=ran + rest, ttft_s=rest[-1].end_s)
    task.replanned += 1
    pool.rebind(now, task, whole, slots)


def _held(task: Task, page_size: int) -> int:
    """KV slots that each member of the last group holds of what ran."""
    return held_after([(chunk.tokens, chunk.instances) for chunk in task.ran], page_size)
