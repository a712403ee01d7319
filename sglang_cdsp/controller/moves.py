"""Requests that move from their home to another between two steps.

The target gets ready first: it has the request, its grammar compiled, and a lane of the links, and
says how much of its KV it has cached, which does not travel. Then the source sends KV ahead, while
the request's last chunk runs or while it decodes on. When that has left, the source takes the
request out of its batch, and sends the rest of its KV and its output.
When all of it has arrived, the target goes on with the next token and the source frees what it
holds. Until then the source keeps all of it, and puts it back into its batch where the move does
not come about. At each moment one instance at most goes on with a request: once it has left its
source the target says first what becomes of it there, and only then is the source told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.homes import home_tokens
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.move import Move, Step, ends_its_plan, rows_ahead, runs
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.presence import Presence, Stand
from sglang_cdsp.controller.request import MoveTimes, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.protocol.messages import (
    MovedIn,
    MovedOut,
    MoveEnded,
    MoveFailed,
    MoveReady,
)

MoveReport = MoveReady | MovedOut | MovedIn | MoveFailed | MoveEnded

AGAIN_S = 1.0
"""How long a request whose move failed stays where it is before it is tried again."""

SPARE_LANES = 4
"""Lanes that moves leave to chunks while the requests' own last chunks run."""


class Moves:
    """The moves of a pool: which requests get another home, which one, and how far they are."""

    def __init__(
        self,
        *,
        table: RequestTable,
        ledger: InstanceLedger,
        presence: Presence,
        effects: Effects,
        lanes: LaneTable,
        lane_left: Callable[[], None],
        left_alone: Callable[[PoolRequest, int, str], None],
        cached: Callable[[PoolRequest], Mapping[int, int]],
        clock: Callable[[], float],
    ) -> None:
        """None is under way.

        Args:
            lanes: of the links, which chunks use, too.
            lane_left: a move has left its lane: chunks may be waiting for one.
            left_alone: takes a request that has left a source which was lost, for a reason, and
                that has not arrived anywhere.
            cached: how many of a request's first tokens are cached, by instance, as is known.
            clock: gives monotonic seconds.
        """
        self._table = table
        self._ledger = ledger
        self._presence = presence
        self._effects = effects
        self._lanes = lanes
        self._lane_left = lane_left
        self._left_alone = left_alone
        self._cached = cached
        self._clock = clock
        self._moves: dict[int, Move] = {}

    def __len__(self) -> int:
        return len(self._moves)

    def at(self, seat: int) -> bool:
        """Whether an instance has something of a move."""
        return any(seat in move.inside for move in self._moves.values())

    # -- which, and where to --------------------------------------------------------------

    def start_due(self) -> None:
        """Let requests move whose instance is not to decode, as far as others have room."""
        if not self._leaving():
            return
        for request in self._table.with_plan:
            if self._is_due(request):
                self._start(request)

    def _leaving(self) -> frozenset[int]:
        """Seats that work and are not to decode: by their role, or because they are to leave."""
        seats = range(len(self._ledger.capacity))
        decode = self._ledger.roles.decode
        stand = self._presence.stand
        return frozenset(
            seat
            for seat in seats
            if (stand(seat) is Stand.UP and seat not in decode) or stand(seat) is Stand.DRAINING
        )

    def _is_due(self, request: PoolRequest) -> bool:
        if not request.decodes or request.answered or request.stays:
            return False
        if request.aborted or request.error:
            return False  # its home ends it with the next step
        return (
            (runs(request) or ends_its_plan(request))
            and not request.recalled
            and request.seq not in self._moves
            and request.home in self._leaving()
            and self._clock() >= request.not_moved_before_s
        )

    def _start(self, request: PoolRequest) -> None:
        """Ask the freest instance with room to get ready; nothing happens while there is none."""
        need = home_tokens(request, self._ledger.page_size)
        free = self._ledger.free_tokens()
        able = [
            seat for seat in self._ledger.roles.decode if self._takes(seat) and free[seat] >= need
        ]
        if not able:
            return
        source, cached = request.home, self._cached(request)
        freeness = self._ledger.freeness
        target = max(able, key=lambda seat: (freeness(seat, free, cached.get(seat, 0)), -seat))
        spare = 0 if runs(request) else SPARE_LANES
        lane = self._lanes.take(_lane_of(request.seq), (source, target), spare)
        if lane is None:
            return
        serial = self._lanes.next_serial()
        move = Move(request, request.seq, source, target, lane, serial, self._clock())
        move.ahead = rows_ahead(request, self._ledger.page_size)
        self._moves[request.seq] = move
        self._ledger.moves(request.seq, target, need)
        move.inside.add(target)
        self._effects.move_in(request, target, lane, serial, move.ahead)

    # -- what the instances tell ----------------------------------------------------------

    def on_report(self, report: MoveReport) -> None:
        """An instance of a move reports; what is of no move means nothing any more."""
        move = self._moves.get(report.seq)
        if move is None or report.instance not in move.inside:
            return
        at_target = report.instance == move.target
        match report:
            case MoveReady():
                self._ready(move, report.held)
            case MovedOut():
                self._left(move, report)
            case MovedIn():
                self._arrived(move)
            case MoveFailed():
                move.request.stays = move.request.stays or report.stays
                if at_target:
                    self._out_of_target(move)
                elif move.left:
                    self._call_back(move)
                else:
                    self._out_of_source(move)
            case MoveEnded():
                if at_target:
                    self._out_of_target(move)
                else:
                    self._out_of_source(move)

    def _ready(self, move: Move, held: int) -> None:
        if move.step is not Step.READYING:
            return
        if move.outdated:
            self._call_off(move)
            return
        move.step, move.held = Step.LEAVING, held
        move.inside.add(move.source)
        self._effects.move_out(move.request, move.target, move.lane, move.serial, move.ahead, held)

    def _left(self, move: Move, report: MovedOut) -> None:
        move.left = True
        if move.step is not Step.LEAVING:
            return  # the source is told to put it back
        if not runs(move.request):
            # Its source is done with the plan, and others are about to be: its phases stay few.
            move.waits = report
            return
        move.waits = None
        move.step = Step.TRAVELLING
        move.left_s, move.rows = report.at_s, report.rows
        request, output = move.request, report.output
        request.travels = True
        # Computed anew, it would count one more.
        request.carried = replace(output, retractions=output.retractions + 1)
        if request.phase is Phase.STOCK:
            times = request.times[0]
            times.start_s, times.end_s = report.start_s, report.end_s
        self._effects.moved(request, move.target, report.rows, output, report.ahead)

    def _call_back(self, move: Move) -> None:
        """The source cannot send it. It may have sent all there is: the target knows."""
        if move.step is Step.TRAVELLING and move.target in move.inside:
            self._effects.move_end(move.seq, move.target, moved=False)

    def _arrived(self, move: Move) -> None:
        if move.step is not Step.TRAVELLING:
            return
        move.inside.discard(move.target)
        move.step = Step.ARRIVED
        request = move.request
        request.advance(Event.MOVED)
        request.moved_to, request.travels = move.target, False
        request.lost.discard(move.target)  # its next life has the request, whatever became of it
        self._ledger.moved(move.seq)
        times = (move.asked_s, move.left_s, self._clock())
        ahead, held = move.ahead - move.held, move.held
        request.moves.append(MoveTimes(move.source, move.target, *times, move.rows, ahead, held))
        if move.source in move.inside:
            self._effects.move_end(move.seq, move.source, moved=True)
        if request.aborted:  # nobody had it when it was aborted
            self._effects.cancel_stock(request)
        self._effects.move_over(request)
        self._finish(move)

    # -- what ends it ---------------------------------------------------------------------

    def tidy(self) -> None:
        """Let go what was held up, and call off what is not to move any more.

        That is what has ended, or has another plan, and what would go to who is not to decode.
        """
        for move in list(self._moves.values()):
            if move.step not in (Step.READYING, Step.LEAVING):
                continue
            if move.outdated or not self._takes(move.target):
                self._call_off(move)
            elif move.waits is not None:
                self._left(move, move.waits)

    def _takes(self, seat: int) -> bool:
        """Whether an instance is to decode what comes."""
        return seat in self._ledger.roles.decode and self._presence.stand(seat) is Stand.UP

    def seat_lost(self, seat: int, why: str) -> None:
        """An instance is given up: who is left of its moves goes on alone.

        What has left a lost source whole may arrive all the same.

        Args:
            why: in words for clients.
        """
        for move in list(self._moves.values()):
            if seat == move.target and seat in move.inside:
                self._out_of_target(move)
            elif seat == move.source:
                if move.step is Step.READYING:
                    self._call_off(move)
                elif move.request.travels and seat in move.inside:
                    move.lost = why
                self._out_of_source(move)

    def _out_of_target(self, move: Move) -> None:
        """The target has nothing of it any more, and does not go on with it."""
        move.inside.discard(move.target)
        self._ledger.not_moved(move.seq)
        self._is_off(move)
        if move.step is Step.OFF and move.source in move.inside:
            self._effects.move_end(move.seq, move.source, moved=False)
        self._finish(move)

    def _out_of_source(self, move: Move) -> None:
        """The source has nothing of the move any more: it has freed the request, or has it back."""
        move.inside.discard(move.source)
        if move.step is Step.LEAVING:
            self._call_off(move)
        self._finish(move)

    def _call_off(self, move: Move) -> None:
        """Let the target forget what it was to get, and the source after it.

        Neither goes on with anything that it would not have gone on with.
        """
        if self._is_off(move) and move.target in move.inside:
            self._effects.move_end(move.seq, move.target, moved=False)

    def _is_off(self, move: Move) -> bool:
        """A move does not come about, if it was not over already; whether it was not."""
        if move.step in (Step.ARRIVED, Step.OFF):
            return False
        move.step = Step.OFF
        move.request.not_moved_before_s = self._clock() + AGAIN_S
        return True

    def _finish(self, move: Move) -> None:
        """All that had something of a move have let it go, if nobody is left inside."""
        if move.inside or move.step not in (Step.ARRIVED, Step.OFF):
            return
        if self._moves.pop(move.seq, None) is not move:
            return
        request = move.request
        if move.step is Step.ARRIVED:
            self._ledger.left(move.seq, move.source)
        elif move.left:
            request.travels = False
            if move.lost:
                self._left_alone(request, move.source, move.lost)
            elif request.aborted and not move.outdated:
                # Its source goes on with it, and may not have heard.
                self._effects.cancel_stock(request)
        if self._lanes.give_back(_lane_of(move.seq)):
            self._lane_left()


def _lane_of(seq: int) -> tuple[str, int]:
    """Who holds the lane of a move: the request's last chunk may have another one meanwhile."""
    return ("move", seq)
