"""Where prompts are decoded in one server: a home that holds all of their KV, and their output.

The planner spreads a prompt's KV over a group and promises each member its share. Home gathers the
whole of it in the last chunk. Of a plan's first group any member can be home, one whose role is to
decode before the others; if none has the room, an instance that has it takes a member's place. From
a home that only prefills a request moves on to one that decodes, and its KV goes there while its
last chunk runs (``moves.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.memory import fits, kv_demand, pages
from sglang_cdsp.planner.types import Group, Placement, Plan, PoolView

OUTPUT_SHARE = 0.5
"""Share of its longest output for which a request is promised slots: most end before.

Where more is used, the instances' reports say so and SGLang retracts in need.
"""

LONGEST_OUTPUT = 4096
"""What is reckoned of an output at most, as SGLang's own admission does by default."""


def output_tokens(tokens: int, longest: int | None, page_size: int, room: int) -> int:
    """KV slots to promise for the output of a prompt of ``tokens``, in whole pages.

    Args:
        longest: its ``max_new_tokens``, None for as long as the context allows.
        room: KV slots of the smallest instance; prompt and promise together stay below.
    """
    wanted = OUTPUT_SHARE * min(LONGEST_OUTPUT if longest is None else longest, LONGEST_OUTPUT)
    prompt = pages(tokens, page_size) * page_size
    most = max(0, room - prompt) // page_size * page_size
    return min(pages(int(wanted) + 1, page_size) * page_size, most)


def tokens_left(request: PoolRequest) -> int:
    """What is reckoned to come of a request's output, at least 1.

    As much as was promised at first, however much has come, since nobody knows where it ends: but
    no more than it may have.
    """
    longest = LONGEST_OUTPUT if request.longest_output is None else request.longest_output
    return max(1, min(request.output_tokens, longest - len(request.output.tokens)))


def home_tokens(request: PoolRequest, page_size: int) -> int:
    """KV slots that home needs of a request in the end; 0 for its share of the prompt.

    A home that decodes needs the prompt and some output, one that keeps the prompt that.
    """
    if not request.decodes:
        return prompt_slots(request, page_size) if request.keeps else 0
    promised = prompt_slots(request, page_size) + request.output_tokens
    has = pages(request.prompt_tokens + len(request.output.tokens) + 1, page_size) * page_size
    return max(promised, has)


def prompt_slots(request: PoolRequest, page_size: int) -> int:
    """KV slots of all that is to be prefilled of a request, whole pages."""
    return pages(request.tokens, page_size) * page_size


def tokens_to_reuse(request: PoolRequest, page_size: int) -> int:
    """KV slots that an instance must have to be home of a plan that starts from its prefix."""
    return home_tokens(request, page_size) or prompt_slots(request, page_size)


def slots_needed(
    request: PoolRequest,
    chunks: Sequence[tuple[int, Sequence[int]]],
    page_size: int,
    reused: int = 0,
) -> dict[int, int]:
    """KV slots that a plan is promised on each instance.

    Home needs those of a cached prefix of ``reused`` tokens, too: its lock takes them from the
    cache, which counts as free.
    """
    home = chunks[0][1][0]
    slots = kv_demand(chunks, page_size, reused, (home,) if reused else ())
    return with_home(slots, home, request, page_size, reused)


def with_home(
    slots: Mapping[int, int], home: int, request: PoolRequest, page_size: int, reused: int = 0
) -> dict[int, int]:
    """KV slots of a plan by instance, with what its home needs of the request in the end.

    One that has ``reused`` tokens cached never has more of the prompt than all.
    """
    need = (tokens_to_reuse if reused else home_tokens)(request, page_size)
    return {**slots, home: max(slots[home], need)}


def fits_now(
    request: PoolRequest,
    chunks: Placement,
    free_tokens: Sequence[int],
    page_size: int,
    reused: int = 0,
    shared: int = 0,
) -> bool:
    """Whether every instance has the free KV slots that a placement needs of it.

    ``shared``: of those of home, as many are promised to others already that use the same ones.
    """
    demand = slots_needed(request, chunks, page_size, reused)
    demand[chunks[0][1][0]] -= shared
    return all(need <= free_tokens[instance] for instance, need in demand.items())


class Homes:
    """Gives plans of the policy a home with room for the whole prompt."""

    def __init__(
        self,
        ledger: InstanceLedger,
        model: Callable[[], LatencyModel],
        shared: Callable[[PoolRequest, Plan], int] = lambda request, plan: 0,
        *,
        keeps: bool = False,
    ) -> None:
        """Give homes in a pool.

        Args:
            model: the latency model as it is now.
            shared: slots of the prefix that a plan starts from, if another plan holds it already.
            keeps: homes before decode servers may keep prompts (``keeping.py``).
        """
        self._ledger = ledger
        self._model = model
        self._shared = shared
        self._keeps = keeps

    def settled(self, request: PoolRequest, plan: Plan, view: PoolView) -> Plan | None:
        """The plan with a home that can hold the prompt; None while no instance can.

        Args:
            plan: of the whole prompt, on instances that are up.
            view: the pool as the plan finds it.
        """
        free, page = view.free_tokens, self._ledger.page_size
        assert free is not None
        if plan.reused:  # who has the prefix is home
            shared = self._shared(request, plan)
            there = fits_now(request, plan.placement, free, page, plan.reused, shared)
            return plan if there else None
        if not request.decodes:
            # What homes keep was not counted by the policy, with what was bound a moment ago.
            waits = self._keeps and not fits(plan.placement, free, page)
            return None if waits else plan
        need = home_tokens(request, page)
        group = plan.chunks[0].instances
        able = [instance for instance in group if free[instance] >= need]
        if able:
            decode = self._ledger.roles.decode
            home = max(able, key=lambda i: (i in decode, self._ledger.freeness(i, free), -i))
            placed = _with_order(plan, (home, *(i for i in group if i != home)))
            # The policy counted shares only, also those of what was bound a moment ago.
            return placed if self._fits(request, placed.placement, free) else None
        if plan.passes:
            return None  # it may run at once on these instances and no others
        return self._moved(request, plan, need, view, free)

    def _moved(
        self, request: PoolRequest, plan: Plan, need: int, view: PoolView, free: Sequence[int]
    ) -> Plan | None:
        """The plan with an instance in it that has the room."""
        up = view.up or (True,) * view.size
        roomy = [i for i in range(view.size) if up[i] and free[i] >= need]
        freeness = self._ledger.freeness
        for home in sorted(roomy, key=lambda i: (view.queue_s[i], -freeness(i, free), i)):
            left_out = plan.chunks[0].instances[0]
            placement = exchanged(plan.placement, left_out, home)
            if self._fits(request, placement, free):
                return self.timed(placement, plan.policy, view)
        return None

    def _fits(self, request: PoolRequest, placement: Placement, free: Sequence[int]) -> bool:
        return fits_now(request, placement, free, self._ledger.page_size)

    def timed(self, placement: Placement, policy: str, view: PoolView) -> Plan:
        """A placement with the times that it would have in a pool."""
        return replace(timed_plan(placement, self._model(), view), policy=policy)


def exchanged(placement: Placement, one: int, other: int) -> Placement:
    """A placement in which two instances have changed places."""
    places = {one: other, other: one}
    return tuple(
        (tokens, tuple(places.get(instance, instance) for instance in group))
        for tokens, group in placement
    )


def _with_order(plan: Plan, first: Group) -> Plan:
    """The plan with its first group in another order."""
    return replace(
        plan,
        chunks=tuple(
            replace(chunk, instances=first + chunk.instances[len(first) :]) for chunk in plan.chunks
        ),
    )
