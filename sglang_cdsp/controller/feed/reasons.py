"""Why a request got its plan: the pool as the plan found it, and what else could have been done.

A policy's own search is too slow to be run again for the eye (``Policy.explain``), and what it
knew of its queue is gone by then. So the plan is set beside what everybody would ask for first: the
whole prompt as one chunk, for each SP size on the instances that are free soonest. That is what
Algorithm 2 of the Tetris paper weighs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.explanation import ranges
from sglang_cdsp.planner.forced import GIVEN, timed_plan
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.problem import make_problem
from sglang_cdsp.planner.types import Group, Placement, Plan, PoolView, PromptView

LEVEL_S = 0.005
"""Two plans that end within this time of each other end at once, for the eye."""


@dataclass(frozen=True)
class Option:
    """A plan that a prompt got or could have got.

    Attributes:
        placement: its chunks; empty if there was none of that kind.
        start_s, ttft_s: from the planning moment, seconds.
        instance_seconds: what it takes from the pool, as in ``Considered``.
        words: why it was not taken; "" for the one that was.
    """

    placement: Placement
    start_s: float
    ttft_s: float
    instance_seconds: float
    words: str

    def to_dict(self) -> dict[str, Any]:
        """In JSON types; chunks as ``[tokens, [instance, ...]]``."""
        return {
            "chunks": [[tokens, list(group)] for tokens, group in self.placement],
            "start_s": round(self.start_s, 4),
            "ttft_s": round(self.ttft_s, 4),
            "instance_seconds": round(self.instance_seconds, 4),
            "words": self.words,
        }


@dataclass(frozen=True)
class Reasons:
    """Why a plan was made as it was.

    Attributes:
        words: in a sentence or two.
        improvement_rate: that was in force.
        queue_s: when each instance was expected to be free, seconds from the planning moment.
        options: the plan itself, then one chunk at each candidate SP size.
    """

    words: str
    improvement_rate: float
    queue_s: tuple[float, ...]
    options: tuple[Option, ...]

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "words": self.words,
            "improvement_rate": self.improvement_rate,
            "queue_s": [round(seconds, 4) for seconds in self.queue_s],
            "options": [option.to_dict() for option in self.options],
        }


def reasons(
    plan: Plan,
    pool: PoolView,
    *,
    tokens: int,
    model: LatencyModel,
    sizes: Sequence[int],
    page_size: int,
    improvement_rate: float,
) -> Reasons:
    """Set a plan of ``tokens``, cached ones included, beside one chunk at each of ``sizes``.

    Args:
        pool: as the plan found it.
        model: the latency model that it was made with.
    """
    chosen = _option(plan, pool, "")
    problem = make_problem(PromptView("", tokens), pool, model, sizes, page_size=page_size)
    others = []
    for size in sizes:
        group = problem.extend((), size, tokens) if size in problem.sizes else None
        if group is None:
            words = f"SP {size}: too few instances that are up and have room"
            others.append(Option((), 0.0, 0.0, 0.0, words))
            continue
        other = _option(timed_plan(((tokens, group),), model, pool), pool, "")
        if _alike(other.placement, chosen.placement):
            continue
        others.append(
            Option(
                other.placement,
                other.start_s,
                other.ttft_s,
                other.instance_seconds,
                _why_not(other, chosen),
            )
        )
    words = _in_words(plan, chosen, others)
    if plan.choice:
        words += f" Start: {plan.choice}."
    return Reasons(words, improvement_rate, pool.queue_s, (chosen, *others))


def reasons_of(request: PoolRequest, planning: Planning, page_size: int) -> dict[str, Any] | None:
    """Why a request got the plan that it has, in JSON types; None if that is not known."""
    if request.plan is None or request.found is None:
        return None
    regulator = planning.regulator
    found = reasons(
        request.plan,
        request.found,
        tokens=request.tokens,
        model=planning.model,
        sizes=regulator.sp_sizes,
        page_size=page_size,
        improvement_rate=regulator.rate,
    )
    return found.to_dict()


def _option(plan: Plan, pool: PoolView, words: str) -> Option:
    taken = sum(plan.ttft_s - min(plan.ttft_s, pool.queue_s[i]) for i in plan.instances)
    return Option(plan.placement, plan.chunks[0].start_s, plan.ttft_s, taken, words)


def _alike(one: Placement, other: Placement) -> bool:
    """Whether two placements run the same chunks on the same instances, in any order."""
    return [(tokens, set(group)) for tokens, group in one] == [
        (tokens, set(group)) for tokens, group in other
    ]


def _why_not(other: Option, chosen: Option) -> str:
    later_s = other.ttft_s - chosen.ttft_s
    more = other.instance_seconds - chosen.instance_seconds
    if later_s > LEVEL_S:
        return f"{later_s:.2f} s later"
    if later_s < -LEVEL_S:
        if more > 0:
            return f"{-later_s:.2f} s sooner, for {more:.2f} instance-seconds more"
        return f"{-later_s:.2f} s sooner, but held by what it keeps others waiting for"
    return "as soon" if more <= 0 else f"as soon, for {more:.2f} instance-seconds more"


def _in_words(plan: Plan, chosen: Option, others: Sequence[Option]) -> str:
    if plan.policy == GIVEN:
        return "The request brought this plan."
    if plan.passes:
        return (
            f"It passes: it runs between the layers of the chunk on {_named(plan.instances)}, "
            "and waits for nobody."
        )
    first = plan.chunks[0]
    when = "at once" if first.start_s <= LEVEL_S else f"after {first.start_s:.2f} s"
    words = [f"{_named(first.instances).capitalize()} can start {when}"]
    joined: Group = first.instances
    for chunk in plan.chunks[1:]:
        new = tuple(i for i in chunk.instances if i not in joined)
        if new:
            words.append(
                f"{_named(new)} {'joins' if len(new) == 1 else 'join'} at {chunk.start_s:.2f} s"
            )
        joined = chunk.instances
    sentence = ", ".join(words) + "."
    ran = [other for other in others if other.placement]
    if not ran:
        return sentence
    best = min(ran, key=lambda other: other.ttft_s)
    gain_s = best.ttft_s - chosen.ttft_s
    if gain_s > LEVEL_S:
        other = "other " if len(plan.chunks) == 1 else ""
        return f"{sentence} That is {gain_s:.2f} s sooner than the best {other}single chunk."
    if gain_s < -LEVEL_S:
        return (
            f"{sentence} {_named(best.placement[0][1]).capitalize()} would be {-gain_s:.2f} s "
            "sooner, which is not worth what it takes from others."
        )
    return f"{sentence} No single chunk is sooner."


def _named(instances: Group) -> str:
    """ "instance 1", "instances 0-3"."""
    return f"instance{'s' if len(instances) > 1 else ''} {ranges(instances)}"
