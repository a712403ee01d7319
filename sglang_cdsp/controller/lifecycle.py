"""The one door into what happens to the pool's requests.

Pure bookkeeping: what follows elsewhere is handed to ``Effects``, so the whole life cycle can be
run without processes. ``phases.py`` says what may happen to a request when.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

from sglang_cdsp.args import DEFAULT_STOCK_TOKENS
from sglang_cdsp.controller.admission import Admission
from sglang_cdsp.controller.arrivals import Arrivals
from sglang_cdsp.controller.decode.losses import DecodeLosses
from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.decode.rooms import RoomMessage, Rooms
from sglang_cdsp.controller.decode.servers import DecodeRank, DecodeServers
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import BEFORE_A_PLAN, Event, Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.progress import Progress
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.controller.quiet import QuietGate
from sglang_cdsp.controller.request import AbortTarget, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol import messages
from sglang_cdsp.protocol.limits import LANES

logger = logging.getLogger(__name__)

NO_LIMITS = QueueLimits()


class Lifecycle:
    """All requests of the pool. Times are monotonic seconds."""

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
        limits: QueueLimits = NO_LIMITS,
        stock_tokens: int = DEFAULT_STOCK_TOKENS,
        max_shard_tokens: int | None = None,
        lanes: LaneTable | None = None,
        gate: QuietGate[Any] | None = None,
    ) -> None:
        """What the life cycle works with.

        Args:
            clock: gives the time.
            decode: knows how long decode may take to name its pages, and keeps them unasked.
            stock_tokens: the longest prompt that takes its instance's stock path.
            max_shard_tokens: how many tokens a member may have in one chunk, None for no limit.
            lanes: of the pool, if another life cycle uses them before or after.
            gate: says what may start; without one everything may.
        """
        self._gate: QuietGate[Any] = gate or QuietGate()
        self._effects = effects
        self._rooms = RoomManager(rooms, effects, clock, decode.release_s)
        self._losses = DecodeLosses(self._rooms, decode, clock)
        self._table = RequestTable()
        self._endings = Endings(
            table=self._table,
            ledger=ledger,
            policy=planning.policy,
            rooms=self._rooms,
            effects=effects,
            clock=clock,
        )
        self._arrivals = Arrivals(
            table=self._table,
            admission=admission,
            rooms=self._rooms,
            queue=WaitingQueue(planning, ledger, clock),
            endings=self._endings,
            decode=decode,
            limits=limits,
            abort=self.abort,
            clock=clock,
        )
        self._progress = Progress(
            table=self._table,
            ledger=ledger,
            planning=planning,
            rooms=self._rooms,
            effects=effects,
            endings=self._endings,
            tp_size=tp_size,
            stock_tokens=stock_tokens,
            lanes=lanes or LaneTable(LANES),
            clock=clock,
            max_shard_tokens=max_shard_tokens,
            may_start=lambda: self._gate.may_start,
        )

    @property
    def requests(self) -> tuple[PoolRequest, ...]:
        """Requests that are not over."""
        return self._table.requests

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests that have no plan yet, and their prompt tokens together."""
        tokens = [request.tokens for request in self._table.without_plan]
        return len(tokens), sum(tokens)

    @property
    def busy_instances(self) -> frozenset[int]:
        """Instances that run a chunk, or have one-instance requests without a first token."""
        busy: set[int] = set()
        for request in self._table.with_plan:
            assert request.plan is not None
            if request.phase is Phase.RUNNING:
                busy.update(request.plan.chunks[request.next_chunk].instances)
            elif request.phase is Phase.STOCK and request.first_token_s is None:
                busy.update(request.plan.instances)
        return frozenset(busy)

    @property
    def chunk_running(self) -> bool:
        """Whether a chunk is inside a forward."""
        return any(request.phase is Phase.RUNNING for request in self._table.with_plan)

    @property
    def holding(self) -> bool:
        """Whether an instance holds, or is promised to hold, KV of a request."""
        return bool(self._table.with_plan)

    @property
    def needs_start(self) -> bool:
        """Whether a request with a plan ends only after something more was started for it."""
        waits = (Phase.BOUND, Phase.STOCK)
        return any(request.phase in waits for request in self._table.with_plan)

    # -- from clients ---------------------------------------------------------------------

    def on_request(self, request: PoolRequest, raw_plan: Any) -> None:
        """A request arrived; ``raw_plan`` is the plan that it demands, None for none."""
        self._arrivals.submit(request, raw_plan)

    def on_abort(self, rid: str, reason: str, *, everything: bool) -> None:
        """Clients no longer want the requests whose id begins with ``rid``, or all."""
        for request in self._table.matching(rid, everything=everything):
            self.abort(request, reason)

    def abort(self, request: PoolRequest, reason: str) -> None:
        """Nobody wants the request any more; its client is answered now, slots follow."""
        before = request.advance(Event.ABORT)
        if before in (Phase.RELEASING, Phase.ENDED):
            return
        request.aborted = True
        request.error = request.error or reason
        self._endings.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        if before in BEFORE_A_PLAN:
            self._arrivals.leave(request)
        elif before is Phase.STOCK:
            self._effects.cancel_stock(request)
        elif before in (Phase.BOUND, Phase.RUNNING):
            self._progress.drop(request)

    # -- from decode ----------------------------------------------------------------------

    def on_decode_registered(self, rank: DecodeRank) -> None:
        """A decode rank made contact: prompts that no decode server holds are refused now."""
        self._losses.registered(rank)
        self._arrivals.decode_known()

    def on_decode_link(self, host: str, port: int, *, alive: bool) -> None:
        """A decode rank can be reached no longer, or again."""
        self._losses.link(host, port, alive=alive)

    def on_pages(self, room: int, message: RoomMessage) -> None:
        """Decode named destination pages of a room."""
        self._arrivals.pages_named(room, message)

    def on_room_abort(self, room: int, target: AbortTarget | None, frames: list[bytes]) -> None:
        """Decode gave a room up (``frames`` say so); it is told once its pages are safe."""
        request = self._rooms.user(room)
        if target is not None:
            self._rooms.abort_asked(room, target)
        if request is None:
            self._rooms.given_up(room, target)
            return
        if request.phase is Phase.STOCK and target is not None:
            # That instance's stock sender knows when its own writes have drained.
            self._effects.forward_abort(request, target.tp_rank, frames)
        elif target is not None:
            request.abort_targets.append(target)
        self.abort(request, "decode gave the request up")

    # -- from the schedulers --------------------------------------------------------------

    def on_report(self, report: messages.AnyReport) -> None:
        """A scheduler reports. What concerns a task that is over means nothing any more.

        Raises:
            IllegalEventError: the report cannot be of a task in its phase; nothing was changed.
        """
        match report:
            case messages.GrammarRefused():
                self._arrivals.refuse_named(report.rid, report.error)
                return
            case messages.StockBatch():
                self._progress.stock_batch(report.parts, report.at_s - report.start_s)
                return
            case messages.Hello():
                logger.warning("instance %d greets a second time", report.instance)
                return
            case messages.PromptLogprobs():
                seq = report.part.seq
            case _:
                seq = report.seq
        request = self._table.task(seq)
        if request is not None:
            self._on_task_report(request, report)

    def _on_task_report(self, request: PoolRequest, report: messages.AnyReport) -> None:
        progress, instance = self._progress, report.instance
        match report:
            case messages.Ready():
                progress.ready(request, report.chunk, instance, report.revision)
            case messages.ChunkDone():
                progress.chunk_done(
                    request, report.chunk, instance, report.start_s, report.at_s, report.passed_s
                )
            case messages.FirstToken():
                progress.first_token(request, report.at_s)
            case messages.PromptLogprobs():
                progress.logprobs(request, report.part)
            case messages.Failed():
                progress.failed(
                    request,
                    instance,
                    report.error,
                    bad_request=report.bad_request,
                    revision=report.revision,
                )
            case messages.WriteLost():
                progress.write_lost(request, report.error, uncertain=report.uncertain)
            case messages.Drained():
                progress.drained(request, report)
            case messages.Released():
                progress.released(request, instance)
            case messages.StockEnded():
                progress.stock_ended(request, report.start_s, report.end_s, report.error)

    # -- the controller's own -------------------------------------------------------------

    def on_loop(self) -> None:
        """The controller's loop comes round: tell decode what is due, start what can start."""
        self._rooms.tell()
        self._arrivals.end_overdue()
        for request, reason in self._losses.due():
            self.abort(request, reason)
        self._progress.start_held()
        if not self._gate.may_bind:
            return
        for request, plan in self._arrivals.starts():
            self._progress.bind(request, plan)

    def on_sizes_changed(self) -> None:
        """The candidate SP sizes changed: refuse waiting prompts that fit none of them."""
        self._arrivals.sizes_changed()

    def replan_without(self, seats: Collection[int]) -> tuple[PoolRequest, ...]:
        """Plan requests anew without some instances, which hold nothing of them.

        A request that runs a chunk is planned anew when that has ended; should its rest then fit
        nowhere, it fails. The instances get the same orders as others that leave a plan.

        Returns:
            Those whose plans name the instances and that it cannot help, in the order of their
            tasks: they hold KV there or run a chunk with them, have run all their chunks, have
            one instance whose own scheduler has them, or fit nowhere else now. Nothing was
            changed about them.
        """
        return self._progress.do_without(seats)

    def on_probe(self, request: PoolRequest, plan: Plan) -> None:
        """Run a measurement of the controller's own."""
        self._table.add(request)
        self._progress.bind(request, plan)
