"""A request's way through the pool, as the controller drives it.

Pure bookkeeping: what goes out is handed to an ``Effects``, so the whole life cycle can be run
without processes.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from sglang_cdsp.controller.admission import Admission
from sglang_cdsp.controller.arrivals import BEFORE_A_PLAN, Arrivals
from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.decode.rooms import Rooms
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.controller.request import AbortTarget, ChunkTimes, Phase, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import LogprobPart


class Lifecycle:
    """All requests of the pool; see the module's text. Times are monotonic seconds.

    Attributes:
        arrivals: what happens to requests before they have a plan.
    """

    def __init__(
        self,
        *,
        ledger: InstanceLedger,
        planning: Planning,
        rooms: Rooms,
        effects: Effects,
        admission: Admission,
        tp_size: int,
        clock: Callable[[], float],
        decode: DecodeServers,
    ) -> None:
        """``clock`` gives the time; ``decode`` knows how long it may take to name its pages."""
        self._clock = clock
        self._ledger = ledger
        self._planning = planning
        self._rooms = room_manager = RoomManager(rooms, effects, clock)
        self._out = effects
        self._tp_size = tp_size
        self._table = RequestTable(
            ledger=ledger, policy=planning.policy, rooms=room_manager, effects=effects, clock=clock
        )
        self.arrivals = Arrivals(
            table=self._table,
            admission=admission,
            rooms=room_manager,
            waiting=WaitingQueue(planning, ledger, clock),
            effects=effects,
            decode=decode,
            abort=self.abort,
        )
        self._next_seq = 0
        self._epoch = 0
        self._links_broken = False

    @property
    def requests(self) -> tuple[PoolRequest, ...]:
        """Requests that are not over."""
        return tuple(self._table.by_rid.values())

    # -- planning -------------------------------------------------------------------------

    def probe(self, request: PoolRequest, plan: Plan) -> None:
        """Run a measurement of the controller's own."""
        self._table.by_rid[request.rid] = request
        self._bind(request, plan)

    def plan(self) -> None:
        """Bind whatever starts now."""
        self._rooms.tell()
        self.arrivals.end_overdue()
        for request, plan in self.arrivals.starts():
            self._bind(request, plan)

    def _bind(self, request: PoolRequest, plan: Plan) -> None:
        chunks = [(chunk.tokens, chunk.instances) for chunk in plan.chunks]
        now_s = self._clock()
        request.plan, request.policy, request.bound_s = plan, plan.policy, now_s
        request.times = [ChunkTimes() for _ in chunks]
        request.seq, self._next_seq = self._next_seq, self._next_seq + 1
        request.phase = Phase.BOUND
        self._table.by_seq[request.seq] = request
        self._ledger.bind(request.seq, plan, now_s, kv_demand(chunks, self._ledger.page_size))
        self._out.bind(request)

    # -- progress -------------------------------------------------------------------------

    def ready(self, seq: int, chunk: int, instance: int) -> None:
        """An instance can start a chunk."""
        request = self._table.by_seq.get(seq)
        if request is not None and request.phase is Phase.BOUND:
            request.ready.setdefault(chunk, set()).add(instance)
            self._advance(request)

    def chunk_done(self, seq: int, chunk: int, instance: int, start_s: float, end_s: float) -> None:
        """An instance ran its shard."""
        request = self._table.by_seq.get(seq)
        if request is None or request.plan is None:
            return
        times = request.times[chunk]
        # Members wait for each other inside a chunk: the last to come starts it.
        times.start_s = max(start_s, times.start_s or start_s)
        times.end_s = max(end_s, times.end_s or end_s)
        self._member_done(request, chunk, instance)
        self._relink_if_quiet()

    def _member_done(self, request: PoolRequest, chunk: int, instance: int) -> None:
        assert request.plan is not None
        times = request.times[chunk]
        times.done.add(instance)
        # Who joins later may fail meanwhile: the members that run the chunk are what counts.
        if not times.done >= set(request.plan.chunks[chunk].instances):
            return
        request.running = False
        request.next_chunk = chunk + 1
        if times.end_s is not None:
            self._ledger.ended(request.seq, chunk, times.end_s)
            self._learn(request, chunk)
        if request.next_chunk == len(request.plan.chunks) and not request.error:
            request.phase = Phase.DRAINING
            self._ledger.computed(request.seq)
        else:
            self._advance(request)

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

    def _advance(self, request: PoolRequest) -> None:
        """Decide go or drop for the next chunk, once and for all members."""
        assert request.plan is not None
        if request.running or request.phase is not Phase.BOUND or request.one_instance:
            return
        if request.error:
            self._drop(request)
            return
        if self._links_broken:
            return
        group = request.plan.chunks[request.next_chunk].instances
        if request.ready.get(request.next_chunk, set()) >= set(group):
            request.running = True
            self._out.go(request, group, go=True)

    def _drop(self, request: PoolRequest) -> None:
        assert request.plan is not None
        request.phase = Phase.DRAINING
        self._ledger.ended(request.seq, len(request.plan.chunks) - 1, self._clock())
        self._ledger.computed(request.seq)
        self._out.go(request, request.plan.instances, go=False)

    def first_token(self, seq: int, at_s: float) -> None:
        """The first token was sampled."""
        request = self._table.by_seq.get(seq)
        if request is not None:
            request.first_token_s = at_s
            if request.one_instance:
                self._ledger.ended(seq, 0, at_s)
                self._ledger.computed(seq)

    def logprobs(self, part: LogprobPart) -> None:
        """A member computed prompt log-probabilities; home collects them."""
        request = self._table.by_seq.get(part.seq)
        if request is not None:
            self._out.logprobs(request, part)

    def failed(
        self,
        seq: int,
        instance: int,
        error: str,
        *,
        bad_request: bool = False,
        links_broken: bool = False,
    ) -> None:
        """The task cannot go on at an instance."""
        self._links_broken = self._links_broken or links_broken
        request = self._table.by_seq.get(seq)
        if request is None:
            return
        request.error = request.error or error
        request.answered = request.answered or bad_request
        if request.running:
            self._member_done(request, request.next_chunk, instance)
        else:
            self._advance(request)
        self._relink_if_quiet()

    def write_lost(self, seq: int, error: str) -> None:
        """A KV write to decode failed: the task is dropped at its next boundary."""
        request = self._table.by_seq.get(seq)
        if request is not None:
            request.error = request.error or error
            self._advance(request)

    def _relink_if_quiet(self) -> None:
        """Make new links between two chunks; orders behind this one use them."""
        if not self._links_broken or any(e.running for e in self._table.by_seq.values()):
            return
        self._links_broken = False
        self._epoch += 1
        self._out.relink(self._epoch)
        for request in tuple(self._table.by_seq.values()):
            self._advance(request)

    def drained(self, seq: int, instance: int, tp_rank: int, error: str) -> None:
        """A rank writes nothing more to decode for the task."""
        request = self._table.by_seq.get(seq)
        if request is None or request.plan is None:
            return
        request.error = request.error or error
        request.drained.add((instance, tp_rank))
        if len(request.drained) == len(request.plan.instances) * self._tp_size:
            request.phase = Phase.RELEASING
            self._rooms.settle(request)
            # Decode may be done already and use the number again while slots are being freed.
            self._rooms.leave(request)
            self._out.release(request)

    def released(self, seq: int, instance: int) -> None:
        """An instance freed the task's slots."""
        request = self._table.by_seq.get(seq)
        if request is None or request.plan is None:
            return
        request.released.add(instance)
        if request.released >= set(request.plan.instances):
            self._table.end(request)

    def stock_ended(self, seq: int, start_s: float | None, end_s: float | None, error: str) -> None:
        """A one-instance request left its instance, which has answered its client."""
        request = self._table.by_seq.get(seq)
        if request is None:
            return
        request.times[0].start_s, request.times[0].end_s = start_s, end_s
        request.error = request.error or error
        request.answered = True
        if request.error:
            self._rooms.settle(request)
        self._table.end(request)

    # -- ends -----------------------------------------------------------------------------

    def abort(self, request: PoolRequest, reason: str) -> None:
        """Nobody wants the request any more; its client is answered now, slots follow."""
        if request.phase in (Phase.RELEASING, Phase.ENDED):
            return
        request.aborted = True
        request.error = request.error or reason
        if not request.answered:
            request.answered = True
            self._out.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        if request.phase in BEFORE_A_PLAN:
            self.arrivals.leave(request)
        elif request.one_instance:
            self._out.cancel_stock(request)
        elif request.phase is Phase.BOUND and not request.running:
            self._drop(request)

    def abort_room(self, room: int, target: AbortTarget | None, frames: list[bytes]) -> None:
        """Decode gave a room up (``frames`` say so); it is told once its pages are safe."""
        request = self._rooms.user(room)
        if request is None:
            self._rooms.given_up(room, target)
            return
        if request.one_instance and target is not None:
            # That instance's stock sender knows when its own writes have drained.
            self._out.forward_abort(request, target.tp_rank, frames)
        elif target is not None:
            request.abort_targets.append(target)
        self.abort(request, "decode gave the request up")

    def matching(self, rid: str, *, everything: bool) -> tuple[PoolRequest, ...]:
        """Requests that SGLang's abort names: ids that begin with ``rid``, or all."""
        return tuple(
            e
            for e in self._table.by_rid.values()
            if not e.probe and (everything or e.rid.startswith(rid))
        )
