"""Plans that come with a request (`--cdsp-allow-request-plans`): read, checked and timed.

The controller starts them as the policies' own, so what a plan must be is checked here: chunks
that partition the prompt, nested groups of this pool's instances, chunk boundaries on page borders.
A request may also bring plans for its rest, which take the place of what is left of its plan when
they are due, as a policy's would.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from sglang_cdsp.planner.errors import ForcedPlanError
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.rests import Placed
from sglang_cdsp.planner.types import Group, Placement, Plan, PlannedChunk, PoolView

PARAMETER = "cdsp_plan"
"""Its name in `sampling_params.custom_params`."""

FORM = "[[tokens, [instance, ...]], ...]"

GIVEN = "request"
"""In place of a policy's name: a plan that keeps its groups as they are."""

PLAN, RESTS = "plan", "rests"
"""The keys of the form with plans for the rest."""


@dataclass(frozen=True, slots=True)
class ForcedPlan:
    """A request's own plan.

    `rests`: by the prompt position at which they begin, plans for what is left from there on; each
    goes on from the one before it, the first from `chunks`.
    """

    chunks: Placement
    rests: tuple[tuple[int, Placement], ...] = ()

    @property
    def instances(self) -> Group:
        """Every instance of its plan before any rest takes over."""
        return self.chunks[-1][1]

    def rest_at(self, position: int) -> Placement | None:
        """The plan that is due when so many tokens have run, None if none is."""
        return dict(self.rests).get(position)

    def demands(self, page_size: int) -> Iterable[dict[int, int]]:
        """KV slots by instance: what the plan needs at binding, and what with each rest."""
        yield Placed(0, (), 0).with_rest(self.chunks, page_size)
        chunks = self.chunks
        for position, rest in self.rests:
            ran = _until(chunks, position)
            yield Placed.after(ran, page_size).with_rest(rest, page_size)
            chunks = ran + rest


def parse_forced(raw: Any, prompt_tokens: int, pool_size: int, page_size: int) -> ForcedPlan:
    """A request's plan, with plans for its rest if it brings any, from the JSON form, checked.

    The form is that of a plan, or `{"plan": PLAN, "rests": [PLAN, ...]}`. A rest has as many tokens
    as are left where it begins: at a chunk border of the plan that it goes on from.

    Raises:
        ForcedPlanError: it is not of the form, or not a plan of this prompt in this pool.
    """
    if not isinstance(raw, dict):
        return ForcedPlan(parse_plan(raw, prompt_tokens, pool_size, page_size))
    if raw.keys() != {PLAN, RESTS} or not isinstance(raw[RESTS], list | tuple):
        raise ForcedPlanError(
            f'{PARAMETER} must have the form {FORM} or {{"{PLAN}": ..., "{RESTS}": [...]}}, '
            f"got {raw!r}"
        )
    chunks = first = parse_plan(raw[PLAN], prompt_tokens, pool_size, page_size)
    rests: list[tuple[int, Placement]] = []
    at = 0
    for raw_rest in raw[RESTS]:
        rest = _read(raw_rest)
        position = prompt_tokens - sum(tokens for tokens, _ in rest)
        borders = [border for border in _borders(chunks) if border > at]
        if position not in borders:
            raise ForcedPlanError(
                f"{PARAMETER}: a rest begins at token {position}, which is not where a chunk "
                f"begins that may get another plan; use one of {borders}"
            )
        chunks = parse_plan(_until(chunks, position) + rest, prompt_tokens, pool_size, page_size)
        rests.append((position, rest))
        at = position
    return ForcedPlan(first, tuple(rests))


def _borders(chunks: Placement) -> list[int]:
    """Where chunks begin, but for the first."""
    return list(accumulate(tokens for tokens, _ in chunks[:-1]))


def _until(chunks: Placement, position: int) -> Placement:
    """The chunks before a border."""
    ends = accumulate(tokens for tokens, _ in chunks)
    return tuple(chunk for chunk, end in zip(chunks, ends, strict=True) if end <= position)


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


def timed_plan(
    chunks: Placement, model: LatencyModel, pool: PoolView, history_tokens: int = 0
) -> Plan:
    """The plan with predicted times: each chunk starts when its whole group is free.

    Beside decode a chunk is as slow as on its slowest member. A group may be smaller or larger than
    any profiled SP size; it is timed as the nearest one.
    """
    planned: list[PlannedChunk] = []
    clock, placed = 0.0, history_tokens
    for tokens, group in chunks:
        start = max(clock, *(pool.queue_s[i] for i in group))
        size = min(max(len(group), model.sp_sizes[0]), model.sp_sizes[-1])
        pace = min((pool.running[i].pace for i in group), default=1.0) if pool.running else 1.0
        clock = start + model.predict(size, placed, tokens) / pace
        planned.append(PlannedChunk(tokens, group, start, clock))
        placed += tokens
    return Plan(tuple(planned), clock, GIVEN)


def _read(raw: Any) -> Placement:
    try:
        chunks = tuple((int(tokens), tuple(int(i) for i in group)) for tokens, group in raw)
    except (TypeError, ValueError):
        raise ForcedPlanError(f"{PARAMETER} must have the form {FORM}, got {raw!r}") from None
    if not chunks:
        raise ForcedPlanError(f"{PARAMETER} has no chunks; give at least one")
    return chunks
