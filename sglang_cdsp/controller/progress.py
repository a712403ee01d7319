"""Requests that have a plan, from its first order to the last slot that is freed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import ChunkTimes, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Plan


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
        tp_size: int,
        clock: Callable[[], float],
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        """``clock`` gives monotonic seconds; ``may_start`` is asked before every go."""
        self._table = table
        self._ledger = ledger
        self._planning = planning
        self._rooms = rooms
        self._effects = effects
        self._endings = endings
        self._tp_size = tp_size
        self._clock = clock
        self._may_start = may_start
        self._held = False
        self._next_seq = 0
        self._epoch = 0
        self._links_broken = False

    def bind(self, request: PoolRequest, plan: Plan) -> None:
        """A request gets its plan: the next sequence number, its slots, its orders."""
        chunks = [(chunk.tokens, chunk.instances) for chunk in plan.chunks]
        now_s = self._clock()
        request.plan, request.policy, request.bound_s = plan, plan.policy, now_s
        request.times = [ChunkTimes() for _ in chunks]
        request.advance(Event.HAND_OVER if request.one_instance else Event.BIND)
        request.seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._table.add_task(request)
        demand = kv_demand(chunks, self._ledger.page_size)
        self._ledger.bind(request.seq, plan, now_s, demand)
        self._effects.bind(request)

    # -- chunks ---------------------------------------------------------------------------

    def ready(self, request: PoolRequest, chunk: int, instance: int) -> None:
        """An instance can start a chunk."""
        request.advance(Event.READY)
        request.ready.setdefault(chunk, set()).add(instance)
        self._decide(request)

    def _decide(self, request: PoolRequest) -> None:
        """Decide go or drop for the next chunk, once and for all members."""
        assert request.plan is not None
        if request.phase is not Phase.BOUND:
            return
        if request.error:
            self.drop(request)
            return
        if self._links_broken:
            return
        group = request.plan.chunks[request.next_chunk].instances
        if request.ready.get(request.next_chunk, set()) >= set(group):
            if not self._may_start():
                self._held = True
                return
            request.advance(Event.GO)
            self._effects.go(request, group, go=True)

    def start_held(self) -> None:
        """Start the chunks that might not start when they were ready, if they may now."""
        if self._held and self._may_start():
            self._held = False
            for request in self._table.with_plan:
                self._decide(request)

    def drop(self, request: PoolRequest) -> None:
        """End a plan between two of its chunks."""
        assert request.plan is not None
        request.advance(Event.DROP)
        self._ledger.ended(request.seq, len(request.plan.chunks) - 1, self._clock())
        self._ledger.computed(request.seq)
        self._effects.go(request, request.plan.instances, go=False)

    def chunk_done(
        self, request: PoolRequest, chunk: int, instance: int, start_s: float, end_s: float
    ) -> None:
        """An instance ran its shard; monotonic seconds."""
        request.advance(Event.CHUNK_DONE)
        times = request.times[chunk]
        # Members wait for each other inside a chunk: the last to come starts it.
        times.start_s = max(start_s, times.start_s or start_s)
        times.end_s = max(end_s, times.end_s or end_s)
        self._member_done(request, instance)
        self._relink_if_quiet()

    def _member_done(self, request: PoolRequest, instance: int) -> None:
        """A member is out of the running chunk, whether it ran its shard or failed."""
        assert request.plan is not None
        chunk = request.next_chunk
        times = request.times[chunk]
        times.done.add(instance)
        # Who joins later may fail meanwhile: the members that run the chunk are what counts.
        if not times.done >= set(request.plan.chunks[chunk].instances):
            return
        request.next_chunk = chunk + 1
        if times.end_s is not None:
            self._ledger.ended(request.seq, chunk, times.end_s)
            self._learn(request, chunk)
        if request.next_chunk == len(request.plan.chunks) and not request.error:
            request.advance(Event.COMPUTED)
            self._ledger.computed(request.seq)
        else:
            request.advance(Event.CHUNK_ENDED)
            self._decide(request)

    def _learn(self, request: PoolRequest, chunk: int) -> None:
        """Feed a chunk's real time to the latency model."""
        assert request.plan is not None
        times = request.times[chunk]
        if times.start_s is None or times.end_s is None or request.probe or request.error:
            return
        history = sum(before.tokens for before in request.plan.chunks[:chunk])
        planned = request.plan.chunks[chunk]
        seconds = times.end_s - times.start_s
        self._planning.observe(planned.sp_size, history, planned.tokens, seconds)

    # -- failures -------------------------------------------------------------------------

    def failed(self, request: PoolRequest, instance: int, error: str, *, bad_request: bool) -> None:
        """The task cannot go on at an instance.

        Args:
            bad_request: the request is at fault, and the instance has answered its client.
        """
        request.advance(Event.FAILED)
        request.error = request.error or error
        request.answered = request.answered or bad_request
        if request.phase is Phase.RUNNING:
            self._member_done(request, instance)
        else:
            self._decide(request)

    def write_lost(self, request: PoolRequest, error: str) -> None:
        """A KV write to decode failed: the task is dropped at its next boundary."""
        request.advance(Event.WRITE_LOST)
        request.error = request.error or error
        self._decide(request)

    def links_broke(self) -> None:
        """An instance closed its links: nothing starts until there are new ones."""
        self._links_broken = True

    def relink(self) -> None:
        """Make new links where they broke, as soon as no chunk runs."""
        self._relink_if_quiet()

    def _relink_if_quiet(self) -> None:
        """Make new links between two chunks; orders behind this one use them."""
        running = any(request.phase is Phase.RUNNING for request in self._table.with_plan)
        if not self._links_broken or running:
            return
        self._links_broken = False
        self._epoch += 1
        self._effects.relink(self._epoch)
        for request in self._table.with_plan:
            self._decide(request)

    # -- the way out ----------------------------------------------------------------------

    def drained(self, request: PoolRequest, instance: int, tp_rank: int, error: str) -> None:
        """A rank writes nothing more to decode for the task."""
        assert request.plan is not None
        request.advance(Event.DRAINED)
        request.error = request.error or error
        request.drained.add((instance, tp_rank))
        if len(request.drained) == len(request.plan.instances) * self._tp_size:
            request.advance(Event.ALL_DRAINED)
            self._rooms.settle(request)
            # Decode may be done already and use the number again while slots are being freed.
            self._rooms.leave(request)
            self._effects.release(request)

    def released(self, request: PoolRequest, instance: int) -> None:
        """An instance freed the task's slots."""
        assert request.plan is not None
        request.advance(Event.RELEASED)
        request.released.add(instance)
        if request.released >= set(request.plan.instances):
            request.advance(Event.ALL_RELEASED)
            self._endings.over(request)

    # -- what both kinds of plans tell ----------------------------------------------------

    def first_token(self, request: PoolRequest, at_s: float) -> None:
        """The first token was sampled; monotonic seconds."""
        request.advance(Event.FIRST_TOKEN)
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
        request.answered = True
        if request.error:
            self._rooms.settle(request)
        self._endings.over(request)
