"""Plans that come with a request (``--cdsp-allow-request-plans``)."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView

ForcedPlan = tuple[tuple[int, tuple[int, ...]], ...]
"""``(tokens, instances)`` per chunk."""

PARAMETER = "cdsp_plan"
FORM = "[[tokens, [instance, ...]], ...]"


class ForcedPlanError(ValueError):
    """A request's plan cannot be run; says why."""


def parse_plan(raw: Any, prompt_tokens: int, pool_size: int, page_size: int) -> ForcedPlan:
    """Check a request's plan.

    Returns:
        ``(tokens, instances)`` per chunk.

    Raises:
        ForcedPlanError: it is not of the form, or not a plan of this prompt in this pool.
    """
    chunks: list[tuple[int, tuple[int, ...]]] = []
    try:
        for tokens, instances in raw:
            chunks.append((int(tokens), tuple(int(i) for i in instances)))
    except (TypeError, ValueError):
        raise ForcedPlanError(f"{PARAMETER} must have the form {FORM}, got {raw!r}") from None
    if not chunks:
        raise ForcedPlanError(f"{PARAMETER} has no chunks; give at least one")
    total = sum(tokens for tokens, _ in chunks)
    if any(tokens < 1 for tokens, _ in chunks) or total != prompt_tokens:
        raise ForcedPlanError(
            f"{PARAMETER}: the chunks have {total} tokens, the prompt has {prompt_tokens}; every "
            "chunk needs at least 1 and together they must be the prompt"
        )
    before: tuple[int, ...] = ()
    start = 0
    for tokens, group in chunks:
        if not group or len(set(group)) != len(group):
            raise ForcedPlanError(f"{PARAMETER}: group {list(group)} is empty or repeats itself")
        outside = [i for i in group if not 0 <= i < pool_size]
        if outside:
            raise ForcedPlanError(
                f"{PARAMETER}: instances {outside} are not in the pool 0..{pool_size - 1}"
            )
        if group[: len(before)] != before:
            raise ForcedPlanError(
                f"{PARAMETER}: group {list(group)} does not start with {list(before)}, the group "
                "before it"
            )
        if start % page_size:
            raise ForcedPlanError(
                f"{PARAMETER}: a chunk starts at token {start}, not on a page border; use "
                f"multiples of {page_size}"
            )
        before = group
        start += tokens
    return tuple(chunks)


def timed_plan(chunks: ForcedPlan, model: LatencyModel, pool: PoolView) -> Plan:
    """Put predicted times on a forced plan, given the pool's queues."""
    planned: list[PlannedChunk] = []
    at_s, history = 0.0, 0
    for tokens, group in chunks:
        start_s = max([at_s, *(pool.queue_s[i] for i in group)])
        at_s = start_s + model.predict(_profiled(model, len(group)), history, tokens)
        planned.append(PlannedChunk(tokens, group, start_s, at_s))
        history += tokens
    return Plan(chunks=tuple(planned), ttft_s=at_s, policy="request")


def _profiled(model: LatencyModel, size: int) -> int:
    """The SP size itself, or the nearest end of the profiled range (a forced plan may leave it)."""
    return min(max(size, model.sp_sizes[0]), model.sp_sizes[-1])


def fits(chunks: ForcedPlan, free: tuple[int, ...], page_size: int) -> bool:
    """Whether every instance has the slots that a plan needs of it."""
    return all(need <= free[i] for i, need in kv_demand(chunks, page_size).items())
