"""Rests of plans: planned anew between two chunks, where that wins or an instance is no more.

A policy is asked once a chunk that ended, so what planning costs is bounded by what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.homes import Homes, with_home
from sglang_cdsp.controller.keeping import Keeping
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import ChunkTimes, PoolRequest, Replan
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.explanation import ranges
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.memory import fits
from sglang_cdsp.planner.rests import Placed, Rest, moved
from sglang_cdsp.planner.shards import within_shards
from sglang_cdsp.planner.types import Placement, Plan, PromptView

DEMANDED = "demanded by the request"
NOWHERE = (
    "instance {gone} has left the pool, and the rest of the prompt fits no other now; send it again"
)


class Rests:
    """Gives requests between two chunks another plan for what has not started."""

    def __init__(
        self,
        *,
        ledger: InstanceLedger,
        planning: Planning,
        effects: Effects,
        clock: Callable[[], float],
        max_shard_tokens: int | None,
    ) -> None:
        """As in ``Progress``."""
        self._ledger = ledger
        self._planning = planning
        self._effects = effects
        self._clock = clock
        self._max_shard_tokens = max_shard_tokens
        self._homes = Homes(ledger, lambda: planning.model, keeps=planning.prefixes is not None)
        self._keeping = Keeping(ledger, planning)

    def look_again(self, request: PoolRequest) -> None:
        """A chunk has ended and others follow: do so by a better plan, if there is one.

        A rest that must do without instances and cannot leaves an error in the request.
        """
        assert request.plan is not None
        gone = request.without.intersection(request.plan.instances)
        if gone:
            if not self.plan_without(request, gone):
                request.error = request.error or NOWHERE.format(gone=ranges(sorted(gone)))
            return
        if request.error or request.probe or request.plan.passes:
            return
        if request.forced is not None:
            self._change(request, self._demanded(request))
        elif self._planning.policy.replans:
            rest = self._rest(request)
            found = self._planning.policy.replan(rest.prompt, rest.current, rest.pool)
            self._change(request, found)

    def do_without(
        self, requests: Iterable[PoolRequest], gone: frozenset[int]
    ) -> tuple[PoolRequest, ...]:
        """Plan anew what names some instances, now or when its running chunk has ended.

        Returns:
            What cannot be helped so.
        """
        return tuple(
            request
            for request in requests
            if request.plan is not None
            and not gone.isdisjoint(request.plan.instances)
            and not self._goes_on_without(request, gone)
        )

    def _goes_on_without(self, request: PoolRequest, gone: frozenset[int]) -> bool:
        """Whether a plan goes on without some of its instances, from its next chunk on."""
        if request.phase is Phase.BOUND:
            return self.plan_without(request, gone)
        if request.phase is not Phase.RUNNING:
            return False
        assert request.plan is not None
        if gone.isdisjoint(request.plan.chunks[request.next_chunk].instances):
            request.without |= gone
            return True
        return False

    def plan_without(self, request: PoolRequest, gone: Collection[int]) -> bool:
        """Plan the rest without some instances; whether that could be done.

        It is the policy's plan, else one chunk on what is left of the plan in force. Nothing is
        changed where neither fits, or where one of the instances holds KV of the request.
        """
        if request.probe or not set(gone).isdisjoint(self._placed(request).group):
            return False
        rest = self._rest(request, gone)
        found = None
        with suppress(PlannerError):  # too few are left for what the policy does
            found = self._at_home(request, self._planning.policy.plan(rest.prompt, rest.pool), rest)
        if found is None:
            stay = tuple(i for i in rest.current.instances if i not in gone)
            one = self._timed(((rest.prompt.tokens, stay),), rest) if stay else None
            found = self._at_home(request, one, rest)
        if found is None:
            return False
        request.without |= set(gone)
        self._change(request, replace(found, replanned=f"without {ranges(sorted(gone))}"))
        return True

    def _at_home(self, request: PoolRequest, found: Plan | None, rest: Rest) -> Plan | None:
        """A plan with a home that has room; where some of the prompt has run, home stays."""
        if found is None or rest.prompt.history_tokens:
            return found
        return self._homes.settled(request, found, rest.pool)

    def _demanded(self, request: PoolRequest) -> Plan | None:
        """The plan that the request brings for its rest, if it is due and can run."""
        assert request.forced is not None
        placed = self._placed(request)
        chunks = request.forced.rest_at(placed.tokens)
        # A rest that was left out may have had this border, and so may a chunk that was cut.
        if chunks is None or chunks[0][1][: len(placed.group)] != placed.group:
            return None
        plan = self._timed(chunks, self._rest(request))
        return replace(plan, replanned=DEMANDED) if plan is not None else None

    def _timed(self, chunks: Placement, rest: Rest) -> Plan | None:
        """A plan for the rest with times, None if it cannot run now."""
        pool, prompt, page = rest.pool, rest.prompt, self._ledger.page_size
        assert pool.up is not None
        assert pool.free_tokens is not None
        if not all(pool.up[i] for i in chunks[-1][1]) or not fits(
            chunks, pool.free_tokens, page, prompt.history_tokens, prompt.history_instances
        ):
            return None
        return timed_plan(chunks, self._planning.model, pool, prompt.history_tokens)

    def _placed(self, request: PoolRequest) -> Placed:
        assert request.plan is not None
        return Placed.after(request.plan.before(request.next_chunk), self._ledger.page_size)

    def _rest(self, request: PoolRequest, gone: Collection[int] = ()) -> Rest:
        """What the policy is asked; instances that the rest must do without are down."""
        plan, now_s = request.plan, self._clock()
        assert plan is not None
        placed = self._placed(request)
        # Times of a plan are from its binding, and have moved since with what was late.
        late_s = self._ledger.due_s(request.seq) - now_s - plan.chunks[-1].end_s
        chunks = moved(plan.chunks[request.next_chunk :], late_s)
        pool = self._ledger.view_of_rest(request.seq, placed, now_s)
        assert pool.up is not None
        down = request.without.union(gone)
        return Rest(
            PromptView(
                request.rid,
                request.tokens - placed.tokens,
                placed.tokens,
                placed.group,
                request.arrival_s,
                request.urgency,
            ),
            Plan(chunks, chunks[-1].end_s, plan.policy),
            replace(pool, up=tuple(ok and i not in down for i, ok in enumerate(pool.up))),
        )

    def _change(self, request: PoolRequest, found: Plan | None) -> None:
        """Put a plan for the rest in force: slots, order and times, and tell the instances."""
        if found is None:
            return
        before, ran, now_s = request.plan, request.next_chunk, self._clock()
        assert before is not None
        found = within_shards(found, self._max_shard_tokens, self._ledger.page_size)
        page_size, home = self._ledger.page_size, found.chunks[0].instances[0]
        if home != before.home:
            request.keeps = self._keeping.may_keep(request, home)
        slots = self._placed(request).with_rest(found.placement, page_size)
        slots = with_home(slots, home, request, page_size, before.reused)
        due_s = self._ledger.due_s(request.seq)
        request.advance(Event.REPLAN)
        self._ledger.rebind(request.seq, ran, found, now_s, slots)
        after = moved(found.chunks, now_s - request.bound_s)
        request.plan = replace(
            found,
            chunks=before.chunks[:ran] + after,
            ttft_s=after[-1].end_s,
            reused=before.reused,
            cached=before.cached,
            choice=before.choice,
            copy=before.copy,
        )
        request.revision += 1
        for instance in set(before.instances) - set(found.instances):
            request.left[instance] = request.revision
        request.ready.clear()
        request.times[ran:] = [ChunkTimes() for _ in after]
        request.replans.append(
            Replan(
                at_s=now_s,
                chunk=ran,
                reason=found.replanned,
                before=before.chunks[ran:],
                after=after,
                due_s=(due_s, self._ledger.due_s(request.seq)),
            )
        )
        self._effects.replan(request, before)
