"""What is wrong with a policy's plan. A policy may be anybody's code, and its plans are run."""

from __future__ import annotations

from itertools import pairwise

from sglang_cdsp.planner.types import Plan, PoolView, PromptView


def plan_fault(plan: Plan, prompt: PromptView, pool: PoolView) -> str:
    """The first rule that a plan breaks, in words that follow "it planned"; "" for a sound one.

    A plan's chunks partition the prompt's uncached tokens, those that it reuses left out, and its
    groups are nested instances of the pool that are up, the first of them beginning with the
    holders of the history. Page borders and free slots are the policy's to respect: what a group
    cannot hold fails where it is allocated.
    """
    tokens = [chunk.tokens for chunk in plan.chunks]
    left = prompt.tokens - plan.reused
    if not tokens or min(tokens) < 1 or plan.reused < 0 or sum(tokens) != left:
        return f"{prompt.rid!r} as chunks of {tokens} tokens, which has {left}"
    groups = (prompt.history_instances, *(chunk.instances for chunk in plan.chunks))
    for group in groups[1:]:
        if not group or len(set(group)) != len(group):
            return f"{prompt.rid!r} on the group {list(group)}, which is empty or repeats itself"
        if not all(0 <= i < pool.size for i in group):
            return f"{prompt.rid!r} on {list(group)}, beyond the pool of {pool.size} instances"
        if pool.up is not None and not all(pool.up[i] for i in group):
            return f"{prompt.rid!r} on {list(group)}, some of which are down"
    for before, group in pairwise(groups):
        if group[: len(before)] != before:
            return (
                f"{prompt.rid!r} on {list(group)}, which does not begin with {list(before)}, the "
                "instances that hold what comes before"
            )
    return ""
