"""Plans that come with a request (`--cdsp-allow-request-plans`): read, checked and timed.

The controller starts them as the policies' own, so what a plan must be is checked here: chunks
that partition the prompt, nested groups of this pool's instances, chunk boundaries on page borders.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from sglang_cdsp.planner.errors import ForcedPlanError
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.types import Placement, Plan, PlannedChunk, PoolView

PARAMETER = "cdsp_plan"
"""Its name in `sampling_params.custom_params`."""

FORM = "[[tokens, [instance, ...]], ...]"


def parse_plan(raw: Any, prompt_tokens: int, pool_size: int, page_size: int) -> Placement:
    """A request's plan from its JSON form, checked.

    Raises:
        ForcedPlanError: it is not of the form, or not a plan of this prompt in this pool.
    """
    chunks = _read(raw)
    tokens = [length for length, _ in chunks]
    if min(tokens) < 1 or sum(tokens) != prompt_tokens:
        raise ForcedPlanError(
            f"{PARAMETER}: the chunks have {sum(tokens)} tokens, the prompt has {prompt_tokens}; "
            "every chunk needs at least 1 and together they must be the prompt"
        )
    groups = [group for _, group in chunks]
    for group in groups:
        if not group or len(set(group)) != len(group):
            raise ForcedPlanError(f"{PARAMETER}: group {list(group)} is empty or repeats itself")
        outside = [i for i in group if not 0 <= i < pool_size]
        if outside:
            raise ForcedPlanError(
                f"{PARAMETER}: instances {outside} are not in the pool 0..{pool_size - 1}"
            )
    for before, group in pairwise(groups):
        if group[: len(before)] != before:
            raise ForcedPlanError(
                f"{PARAMETER}: group {list(group)} does not start with {list(before)}, the group "
                "before it"
            )
    for start in accumulate(tokens[:-1]):
        if start % page_size:
            raise ForcedPlanError(
                f"{PARAMETER}: a chunk starts at token {start}, not on a page border; use "
                f"multiples of {page_size}"
            )
    return chunks


def timed_plan(chunks: Placement, model: LatencyModel, pool: PoolView) -> Plan:
    """The plan with predicted times: each chunk starts when its whole group is free.

    A group may be smaller or larger than any profiled SP size; it is timed as the nearest one.
    """
    planned: list[PlannedChunk] = []
    clock, placed = 0.0, 0
    for tokens, group in chunks:
        start = max(clock, *(pool.queue_s[i] for i in group))
        size = min(max(len(group), model.sp_sizes[0]), model.sp_sizes[-1])
        clock = start + model.predict(size, placed, tokens)
        planned.append(PlannedChunk(tokens, group, start, clock))
        placed += tokens
    return Plan(tuple(planned), clock, "request")


def _read(raw: Any) -> Placement:
    try:
        chunks = tuple((int(tokens), tuple(int(i) for i in group)) for tokens, group in raw)
    except (TypeError, ValueError):
        raise ForcedPlanError(f"{PARAMETER} must have the form {FORM}, got {raw!r}") from None
    if not chunks:
        raise ForcedPlanError(f"{PARAMETER} has no chunks; give at least one")
    return chunks
