"""Requests that have a plan, from its first order until it is computed or dropped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from http import HTTPStatus

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.homes import slots_needed, tokens_left
from sglang_cdsp.controller.keeping import Keeping
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import ChunkTimes, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.controller.rests import Rests
from sglang_cdsp.controller.resuming import compute_anew, obstacle
from sglang_cdsp.controller.way_out import WayOut
from sglang_cdsp.planner.shards import within_shards
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import LogprobPart


class Progress:
    """Takes plans through their chunks: go or drop once a chunk, alike for all its members."""

    def __init__(
        self,
        *,
        table: RequestTable,
        ledger: InstanceLedger,
        planning: Planning,
        rooms: RoomManager,
        effects: Effects,
        endings: Endings,
        stock_tokens: int,
        lanes: LaneTable,
        clock: Callable[[], float],
        way_out: WayOut,
        max_shard_tokens: int | None = None,
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        """What chunks need to start.

        Args:
            stock_tokens: longest prompt of the stock path.
            lanes: of the links.
            clock: gives monotonic seconds.
            max_shard_tokens: how many tokens a member may have in one chunk, None for no limit.
            may_start: is asked before every go.
        """
        self._table = table
        self._ledger = ledger
        self._planning = planning
        self._rooms = rooms
        self._effects = effects
        self._endings = endings
        self._way_out = way_out
        self._rests = Rests(
            ledger=ledger,
            planning=planning,
            effects=effects,
            clock=clock,
            max_shard_tokens=max_shard_tokens,
        )
        self._keeping = Keeping(ledger, planning)
        self._stock_tokens = stock_tokens
        self._clock = clock
        self._max_shard_tokens = max_shard_tokens
        self._may_start = may_start
        self._held = False
        self._next_seq = 0
        self._lanes = lanes

    def bind(self, request: PoolRequest, plan: Plan) -> None:
        """A request gets its plan: the next sequence number, its slots, its orders.

        Chunks whose activations would not fit are run as several.
        """
        plan = within_shards(plan, self._max_shard_tokens, self._ledger.page_size)
        chunks = [(chunk.tokens, chunk.instances) for chunk in plan.chunks]
        now_s = self._clock()
        request.plan, request.policy, request.bound_s = plan, plan.policy, now_s
        request.found = None if request.probe else self._ledger.view(now_s)
        request.times = [ChunkTimes() for _ in chunks]
        request.one_instance = request.fits_stock(self._stock_tokens)
        request.advance(Event.HAND_OVER if request.one_instance else Event.BIND)
        request.seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._table.add_task(request)
        request.keeps = self._keeping.may_keep(request, plan.home)
        demand = slots_needed(request, chunks, self._ledger.page_size, plan.reused)
        prefix = None
        if self._planning.prefixes is not None:
            prefix = self._planning.prefixes.bound(request, self._ledger.prefixes(plan.home))
        left = partial(tokens_left, request) if request.decodes else None
        self._ledger.bind(request.seq, plan, now_s, demand, request.arrival_s, left, prefix)
        if request.one_instance and request.decodes:
            self._ledger.decodes(request.seq)
        self._effects.bind(request)

    # -- chunks ---------------------------------------------------------------------------

    def ready(
        self,
        request: PoolRequest,
        chunk: int,
        instance: int,
        revision: int,
        found: int | None = None,
    ) -> None:
        """An instance can start a chunk of a revision of the plan.

        ``found``: tokens of the cached prefix that it starts from, at home before the first chunk.
        """
        if revision != request.revision:
            return  # it got ready for what will not run
        request.advance(Event.READY)
        if found is not None and self._missed(request, found):
            return
        request.ready.setdefault(chunk, set()).add(instance)
        self._decide(request)

    def _missed(self, request: PoolRequest, found: int) -> bool:
        """Plan a request anew whose home has less cached than its plan reuses; whether it is so.

        The cache has evicted the rest since, or what it had told of that was lost on the way.
        """
        assert request.plan is not None
        prefixes = self._planning.prefixes
        if prefixes is None or found >= request.plan.reused:
            return False
        if request.missed or request.phase is not Phase.BOUND:
            return True  # it is being planned anew, or ended
        prefixes.missed(request, found)
        request.missed = request.recalled = True
        self.drop(request)
        return True

    def _decide(self, request: PoolRequest) -> None:
        """Decide go or drop for the next chunk, once and for all members."""
        assert request.plan is not None
        if request.phase is not Phase.BOUND:
            return
        if request.error:
            self.drop(request)
            return
        group = request.plan.chunks[request.next_chunk].instances
        if request.ready.get(request.next_chunk, set()) >= set(group):
            if not self._may_start():
                self._held = True
                return
            lane = self._lanes.take(request.seq, group)
            if lane is None:
                return  # asked again when a chunk has left its lane
            request.lane, request.serial = lane, self._lanes.next_serial()
            request.advance(Event.GO)
            chunk = request.plan.chunks[request.next_chunk]
            request.times[request.next_chunk].decode_share = self._ledger.decode_share(group)
            self._ledger.started(request.seq, chunk, self._clock())
            self._effects.go(request, group)

    def leave_lane(self, request: PoolRequest) -> None:
        """Nobody sends on the lane of its chunk any more: others may be waiting for one."""
        if self._lanes.give_back(request.seq):
            self.lane_left()

    def lane_left(self) -> None:
        """A lane is free again: start what waits for one."""
        for other in self._table.with_plan:
            self._decide(other)

    def start_held(self) -> None:
        """Start the chunks that might not start when they were ready, if they may now."""
        if self._held and self._may_start():
            self._held = False
            for request in self._table.with_plan:
                self._decide(request)

    def drop(self, request: PoolRequest) -> None:
        """End a plan before its last chunk has ended; inside a chunk at its next layer."""
        self._stop(request, request.reachable)

    def leave_to_home(self, request: PoolRequest) -> None:
        """End what others still do in the last chunk: home has all KV already, and decodes."""
        assert request.plan is not None
        self._stop(request, [i for i in request.reachable if i != request.plan.home])

    def _stop(self, request: PoolRequest, instances: Sequence[int]) -> None:
        assert request.plan is not None
        request.advance(Event.DROP)
        self._ledger.ended(request.seq, len(request.plan.chunks) - 1, self._clock())
        self._ledger.computed(request.seq)
        self._effects.stop(request, instances)

    def chunk_done(
        self,
        request: PoolRequest,
        chunk: int,
        instance: int,
        start_s: float,
        end_s: float,
        passed_s: float = 0.0,
    ) -> None:
        """An instance ran its shard between two times; ``passed_s`` of it it ran something else."""
        if request.advance(Event.CHUNK_DONE) is Phase.DRAINING:
            return  # the stop met it at its end
        assert request.plan is not None
        times = request.times[chunk]
        times.ran(instance, start_s, end_s, passed_s)
        if times.done >= set(request.plan.chunks[chunk].instances):
            self._chunk_ended(request, chunk)

    def _chunk_ended(self, request: PoolRequest, chunk: int) -> None:
        """All members of the running chunk ran their shards."""
        assert request.plan is not None
        end_s = request.times[chunk].end_s
        assert end_s is not None
        request.next_chunk = chunk + 1
        self._ledger.ended(request.seq, chunk, end_s)
        self._learn(request, chunk)
        if request.next_chunk == len(request.plan.chunks):
            request.advance(Event.COMPUTED)
            self._ledger.computed(request.seq)
        else:
            request.advance(Event.CHUNK_ENDED)
            self._rests.look_again(request)
            failed = request.error and not request.lost.isdisjoint(request.plan.instances)
            if failed and not (request.answered or obstacle(request)):
                compute_anew(request)
                self.drop(request)
            elif failed:
                self._endings.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, request.error)
                self._effects.lost(request)
            self._decide(request)
        self.leave_lane(request)

    def _learn(self, request: PoolRequest, chunk: int) -> None:
        """Feed a chunk's real time to the latency model."""
        assert request.plan is not None
        times = request.times[chunk]
        if times.start_s is None or times.end_s is None or request.probe or request.error:
            return
        history = sum(tokens for tokens, _ in request.plan.before(chunk))
        planned = request.plan.chunks[chunk]
        # Members wait for the one that was kept longest, and for the one that decodes most.
        seconds = max(times.end_s - times.start_s - times.passed_s, 0.0)
        seconds *= self._ledger.pace(planned.instances, times.decode_share)
        self._planning.observe(planned.sp_size, history, planned.tokens, seconds)

    def do_without(self, seats: Collection[int], *, needed: bool = True) -> tuple[PoolRequest, ...]:
        """Plan anew what has instances in its plan that are to have no more part in it.

        Args:
            needed: False where the instances would go on: then only what stands between two chunks
                is planned anew, by no demand of its own, and nothing fails.

        Returns:
            What cannot be helped so, in the order of the tasks.
        """
        requests = [
            request
            for request in self._table.with_plan
            if needed or (request.forced is None and request.phase is Phase.BOUND)
        ]
        return self._rests.do_without(requests, frozenset(seats))

    # -- failures -------------------------------------------------------------------------

    def failed(
        self,
        request: PoolRequest,
        instance: int,
        error: str,
        *,
        bad_request: bool,
        revision: int = 0,
    ) -> None:
        """The task cannot go on at an instance.

        Args:
            bad_request: the request is at fault, and the instance has answered its client.
            revision: of the plan that the instance tried to carry out.
        """
        if revision < request.left.get(instance, 0) and not bad_request:
            return  # it goes on without that instance
        request.advance(Event.FAILED)
        if request.recalled and not bad_request:
            # What its old plan runs into means nothing to the next one.
            self._drop_if_under_way(request)
            return
        if request.needs_no_more_of(instance):
            if request.phase is Phase.RUNNING:
                self.leave_to_home(request)
            return
        request.error = request.error or error
        request.answered = request.answered or bad_request
        if bad_request:
            request.cause = "request"
        self._way_out.end_recall(request)
        self._drop_if_under_way(request)

    def write_lost(self, request: PoolRequest, error: str, *, uncertain: bool) -> None:
        """A KV write to decode failed: nobody can use the task's result.

        Args:
            uncertain: parts of it may still arrive at decode.
        """
        request.advance(Event.WRITE_LOST)
        request.uncertain = request.uncertain or uncertain
        request.error = request.error or error
        self._drop_if_under_way(request)

    def _drop_if_under_way(self, request: PoolRequest) -> None:
        if request.phase in (Phase.BOUND, Phase.RUNNING):
            self.drop(request)

    def logprobs(self, request: PoolRequest, part: LogprobPart) -> None:
        """A member computed prompt log-probabilities, which home puts together."""
        if request.advance(Event.LOGPROBS) is not Phase.DRAINING:
            self._effects.logprobs(request, part)

    def slots_taken(self, instance: int, tokens: int, step_s: float | None) -> None:
        """An instance tells what requests hold there that SGLang itself runs, in KV slots.

        ``step_s``: what a decode step of theirs takes, seconds, None where none has run.
        """
        self._ledger.taken(instance, tokens, step_s)

    # -- what both kinds of plans tell ----------------------------------------------------

    def first_token(self, request: PoolRequest, at_s: float) -> None:
        """The first token was sampled; monotonic seconds."""
        if request.advance(Event.FIRST_TOKEN) is Phase.DRAINING:
            return  # the stop met it at its end
        if request.first_token_s is None:  # else it is computed anew
            request.first_token_s = at_s
        if request.phase is Phase.STOCK:
            self._ledger.ended(request.seq, 0, at_s)
            self._ledger.computed(request.seq)

    def stock_batch(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """One-instance requests ran as one batch: ``(history, tokens)`` of each."""
        self._planning.observe_batch(parts, seconds)

    def stock_ended(
        self, request: PoolRequest, start_s: float | None, end_s: float | None, error: str
    ) -> None:
        """A one-instance request left its instance, which has answered its client."""
        request.advance(Event.STOCK_ENDED)
        request.times[0].start_s, request.times[0].end_s = start_s, end_s
        request.error = request.error or error
        if request.aborted and start_s is None:
            # SGLang may never have had it. Who was answered already is not told again.
            reason = request.error
            self._endings.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        request.answered = True
        if request.error:
            self._rooms.settle(request)
        self._endings.over(request)
