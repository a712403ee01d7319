"""The one door into what happens to the pool's requests.

Pure bookkeeping: what follows elsewhere is handed to ``Effects``, so the whole life cycle can be
run without processes. ``phases.py`` says what may happen to a request when.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

from sglang_cdsp.args import DEFAULT_SEAT_TIMEOUT_S, DEFAULT_STOCK_TOKENS
from sglang_cdsp.controller.absences import Absences
from sglang_cdsp.controller.admission import Admission
from sglang_cdsp.controller.arrivals import Arrivals
from sglang_cdsp.controller.copies import PrefixCopies
from sglang_cdsp.controller.decode.losses import DecodeLosses
from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.decode.rooms import RoomMessage, Rooms
from sglang_cdsp.controller.decode.servers import DecodeRank, DecodeServers
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.losses import PROCESS_ENDED, Losses
from sglang_cdsp.controller.moves import Moves
from sglang_cdsp.controller.phases import BEFORE_A_PLAN, Event, Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.pool_state import PoolState
from sglang_cdsp.controller.presence import Presence
from sglang_cdsp.controller.progress import Progress
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.controller.quiet import QuietGate
from sglang_cdsp.controller.request import AbortTarget, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.controller.resuming import Resuming
from sglang_cdsp.controller.way_out import WayOut
from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol import messages
from sglang_cdsp.protocol.limits import LANES

NO_LIMITS = QueueLimits()


class Lifecycle(PoolState):
    """All requests of the pool. Times are monotonic seconds.

    Attributes:
        presence: which seats take part, as the requests see it.
        copies: of cached prefixes from one instance to another.
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
        limits: QueueLimits = NO_LIMITS,
        stock_tokens: int = DEFAULT_STOCK_TOKENS,
        max_shard_tokens: int | None = None,
        lanes: LaneTable | None = None,
        gate: QuietGate[Any] | None = None,
        seat_timeout_s: float = DEFAULT_SEAT_TIMEOUT_S,
    ) -> None:
        """What the life cycle works with.

        Args:
            clock: gives the time.
            decode: knows how long decode may take to name its pages, and keeps them unasked.
            stock_tokens: the longest prompt that takes its instance's stock path.
            max_shard_tokens: how many tokens a member may have in one chunk, None for no limit.
            lanes: of the pool, if another life cycle uses them before or after.
            gate: says what may start; without one everything may.
            seat_timeout_s: how long prompts wait for seats that are coming back.
        """
        self._gate: QuietGate[Any] = gate or QuietGate()
        lanes = lanes or LaneTable(LANES)
        self._ledger = ledger
        self._prefixes = planning.prefixes
        self._effects = effects
        self._rooms = RoomManager(rooms, effects, clock, decode.release_s)
        self._decode_losses = DecodeLosses(self._rooms, decode, clock)
        super().__init__(RequestTable())
        self._endings = Endings(
            table=self._table,
            ledger=ledger,
            policy=planning.policy,
            rooms=self._rooms,
            effects=effects,
            clock=clock,
        )
        self.presence = presence = Presence(len(ledger.capacity))
        queue = WaitingQueue(planning, ledger, clock)
        ledger.unplanned = lambda: len(queue)
        self._arrivals = Arrivals(
            absences=Absences(
                presence=presence,
                table=self._table,
                ledger=ledger,
                policy=planning.policy,
                timeout_s=seat_timeout_s,
                clock=clock,
            ),
            table=self._table,
            admission=admission,
            rooms=self._rooms,
            queue=queue,
            endings=self._endings,
            decode=decode,
            limits=limits,
            abort=self.abort,
            clock=clock,
        )
        self._way_out = WayOut(
            rooms=self._rooms,
            effects=effects,
            endings=self._endings,
            ledger=ledger,
            tp_size=tp_size,
            leave_lane=lambda request: self._progress.leave_lane(request),
            wait_again=self._wait_again,
        )
        self._resuming = Resuming(
            table=self._table, ledger=ledger, endings=self._endings, wait_again=self._wait_again
        )
        self._progress = Progress(
            table=self._table,
            ledger=ledger,
            planning=planning,
            rooms=self._rooms,
            effects=effects,
            endings=self._endings,
            stock_tokens=stock_tokens,
            lanes=lanes,
            clock=clock,
            max_shard_tokens=max_shard_tokens,
            may_start=lambda: self._gate.may_start,
            way_out=self._way_out,
        )
        self._losses = Losses(
            presence=presence,
            table=self._table,
            ledger=ledger,
            progress=self._progress,
            way_out=self._way_out,
            rooms=self._rooms,
            endings=self._endings,
            effects=effects,
        )
        self._moves = Moves(
            table=self._table,
            ledger=ledger,
            presence=presence,
            effects=effects,
            lanes=lanes,
            lane_left=self._progress.lane_left,
            left_alone=self._losses.left_alone,
            cached=planning.prefixes.cached_of if planning.prefixes else lambda request: {},
            clock=clock,
        )
        self.copies = PrefixCopies(
            prefixes=planning.prefixes,
            times=planning.copies,
            compute_s=lambda tokens: planning.model.predict(planning.model.sp_sizes[0], 0, tokens),
            ledger=ledger,
            presence=presence,
            effects=effects,
            lanes=lanes,
            lane_left=self._progress.lane_left,
            clock=clock,
        )

    # -- from clients ---------------------------------------------------------------------

    def on_request(self, request: PoolRequest, raw_plan: Any) -> None:
        """A request arrived; ``raw_plan`` is the plan that it demands, None for none."""
        self._arrivals.submit(request, raw_plan)

    def on_abort(self, rid: str, reason: str, *, everything: bool) -> None:
        """Clients no longer want the requests whose id begins with ``rid``, or all."""
        for request in self._table.matching(rid, everything=everything):
            self.abort(request, reason)

    def abort(self, request: PoolRequest, reason: str, cause: str = "client") -> None:
        """Nobody wants the request any more; its client is answered now, slots follow."""
        before = request.advance(Event.ABORT)
        if request.output.complete:
            return
        if _ends_at_home(request, before):
            request.aborted = True
            request.error = request.error or reason
            self._effects.cancel_stock(request)
            return
        if before is Phase.ENDED or (before is Phase.RELEASING and not request.recalled):
            return
        request.aborted = True
        request.cause = request.cause or cause
        request.error = request.error or reason
        self._endings.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        self._way_out.end_recall(request)
        if before in BEFORE_A_PLAN:
            self._arrivals.leave(request)
        elif before is Phase.STOCK:
            self._effects.cancel_stock(request)
        elif before in (Phase.BOUND, Phase.RUNNING):
            self._progress.drop(request)

    # -- from decode ----------------------------------------------------------------------

    def on_decode_registered(self, rank: DecodeRank) -> None:
        """A decode rank made contact: prompts that no decode server holds are refused now."""
        self._decode_losses.registered(rank)
        self._arrivals.decode_known()

    def on_decode_link(self, host: str, port: int, *, alive: bool) -> None:
        """A decode rank can be reached no longer, or again."""
        self._decode_losses.link(host, port, alive=alive)

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
        if request.phase is Phase.STOCK and target is not None and request.reachable:
            # That instance's stock sender knows when its own writes have drained.
            request.forwarded.append(target)
            self._effects.forward_abort(request, target.tp_rank, frames)
        elif target is not None:
            request.abort_targets.append(target)
        self.abort(request, "decode gave the request up", "decode")

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
            case messages.SlotsTaken():
                self._progress.slots_taken(report.instance, report.tokens, report.step_s)
                return
            case messages.CacheChanged():
                if self._prefixes is not None:
                    self._prefixes.changed(report.instance, report.changes)
                    self.copies.heard(report)
                return
            case messages.CopyReady() | messages.CopyEnded():
                self.copies.on_report(report)
                return
            case (
                messages.MoveReady()
                | messages.MovedOut()
                | messages.MovedIn()
                | messages.MoveFailed()
                | messages.MoveEnded()
            ):
                self._moves.on_report(report)
                return
            case messages.Streamed():
                self._resuming.streamed(report)
                return
            case messages.Hello() | messages.Invitation() | messages.Answered():
                return  # of a seat's, not of a request's
            case messages.PromptLogprobs():
                seq = report.part.seq
            case _:
                seq = report.seq
        request = self._table.task(seq)
        if request is not None:
            self._on_task_report(request, report)

    def _on_task_report(self, request: PoolRequest, report: messages.AnyReport) -> None:
        progress, instance = self._progress, report.instance
        if instance in request.lost:
            return  # of a process that was given up
        match report:
            case messages.Ready():
                progress.ready(request, report.chunk, instance, report.revision, report.found)
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
                self._way_out.drained(request, report)
            case messages.Released():
                self._way_out.released(request, instance, joined=report.joined)
            case messages.DecodeEnded():
                request.last_token_s = report.at_s
                self._way_out.decode_ended(request, report.error)
            case messages.Retracted():
                self._resuming.retracted(request, report.output)
            case messages.StockEnded():
                request.last_token_s = report.at_s
                progress.stock_ended(request, report.start_s, report.end_s, report.error)

    # -- seats ----------------------------------------------------------------------------

    def on_seat_lost(self, seat: int, why: str) -> None:
        """A seat's process is dead or will be killed; from now on nothing is planned on it.

        Requests that have KV, a running chunk or their one-instance turn on it end with an error.
        In one server they are computed anew, as far as their state can be rebuilt.
        What the process could still write to stays as it is until ``on_seat_ended``.

        Args:
            why: a few words for clients and logs: "killed by signal 9".
        """
        if self._prefixes is not None:
            self._prefixes.gone(seat)
        self._moves.seat_lost(seat, why)
        self.copies.seat_lost(seat, why)
        self._losses.lost(seat, why)

    def on_seat_ended(self, seat: int) -> None:
        """The kernel has confirmed the end of every process that a seat had.

        It counts as drained and released for all that it was a member of. A seat that was not lost
        before is so now.
        """
        self._moves.seat_lost(seat, PROCESS_ENDED)
        self.copies.seat_lost(seat, PROCESS_ENDED)
        self._losses.ended(seat)

    def on_seat_up(self, seat: int) -> None:
        """A seat takes part: a new process after its probe, or one that need not leave any more."""
        self._losses.up(seat)

    def on_seat_draining(self, seat: int) -> None:
        """A seat is to leave: it ends what it has and gets nothing new."""
        self._losses.draining(seat)

    def on_seat_stays_down(self, seat: int, why: str) -> None:
        """An absent seat does not come back by itself, for a reason; with "" it does after all.

        Every lost seat is expected back until this says otherwise, and no drained one is.
        """
        self.presence.stays_down(seat, why)

    def seat_idle(self, seat: int) -> bool:
        """Whether nothing of any task is on a seat: one that drains may be ended."""
        travels = self._moves.at(seat) or self.copies.at(seat)
        return self._losses.idle(seat) and not travels

    @property
    def chunk_running(self) -> bool:
        """Whether a chunk is inside a forward, or a request or a prefix on its way elsewhere."""
        return super().chunk_running or bool(self._moves) or bool(self.copies)

    # -- roles ----------------------------------------------------------------------------

    def on_roles(self, roles: Roles, why: str) -> None:
        """The seats have other roles: what is new obeys at once.

        What is bound and has not begun goes elsewhere if it can; what decodes on a seat that is not
        to decode moves to another home between two steps.

        Args:
            why: who wants it, in a few words for the log.
        """
        before = self._ledger.roles
        if roles == before:
            return
        self._ledger.take_roles(roles)
        leave = before.prefill - roles.prefill
        if leave:
            self._progress.do_without(leave, needed=False)
        self._arrivals.sizes_changed()
        self._effects.roles_changed(roles, why)

    # -- the controller's own -------------------------------------------------------------

    def on_loop(self) -> None:
        """The controller's loop comes round: tell decode what is due, start what can start."""
        self._rooms.tell()
        self._arrivals.end_overdue()
        for request, reason in self._decode_losses.due():
            self.abort(request, reason, "decode")
        self._progress.start_held()
        self._moves.tidy()
        if self._prefixes is not None:
            self._prefixes.tidy()
        if self._gate.may_start:
            self._moves.start_due()
        if not self._gate.may_bind:
            return
        for request, plan in self._arrivals.starts():
            if not self.copies.serve(request, plan):
                self._arrivals.take_back(request)
                continue
            self._progress.bind(request, plan)
            self.copies.used(request)

    def _wait_again(self, request: PoolRequest) -> None:
        """Nothing is left of a plan that was recalled."""
        self._endings.plan_ended(request)
        self._resuming.prepare(request)
        self._arrivals.take_back(request)

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


def _ends_at_home(request: PoolRequest, phase: Phase) -> bool:
    """Whether home's own scheduler has a request of this phase, ends it and answers its client."""
    if not request.decodes or request.answered or request.recalled:
        return False
    if phase in (Phase.DRAINING, Phase.RELEASING):
        late = request.joins_late and phase is Phase.DRAINING
        return not (request.error or late)
    return phase in (Phase.STOCK, Phase.DECODING)
