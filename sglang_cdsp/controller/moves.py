"""Running requests that move from one instance to another between two steps.

The target gets ready first: it has the request, its grammar compiled, and a lane of the links. Then
the source takes the request out of its batch, and sends KV and state; when all of it has arrived,
the target goes on with the next token and the source frees what it holds. Whatever goes wrong
before that leaves the request at its source, which puts it back into its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.homes import home_tokens
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
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


class Step(Enum):
    """How far a move is."""

    READYING = "the target gets ready"
    LEAVING = "the source is to take the request out"
    TRAVELLING = "state and KV are on their way"
    ARRIVED = "the target goes on with it"
    OFF = "it does not come about"


@dataclass(eq=False)
class Move:
    """A move under way.

    Attributes:
        inside: instances that may still have something of it, the lane among it.
        asked_s, left_s: when the target was asked, when the source had taken it out; monotonic.
        tokens: KV rows that move.
    """

    request: PoolRequest
    seq: int
    source: int
    target: int
    lane: int
    serial: int
    asked_s: float
    step: Step = Step.READYING
    left_s: float = 0.0
    tokens: int = 0
    inside: set[int] = field(default_factory=set)


class Moves:
    """The moves of a pool: which requests are to go elsewhere, where to, and how far they are."""

    def __init__(
        self,
        *,
        table: RequestTable,
        ledger: InstanceLedger,
        presence: Presence,
        effects: Effects,
        lanes: LaneTable,
        lane_left: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """None is under way.

        Args:
            lanes: of the links, which chunks use, too.
            lane_left: a move has left its lane: chunks may be waiting for one.
            clock: gives monotonic seconds.
        """
        self._table = table
        self._ledger = ledger
        self._presence = presence
        self._effects = effects
        self._lanes = lanes
        self._lane_left = lane_left
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
        if not request.decodes or request.answered or request.aborted or request.stays:
            return False
        runs = request.phase is Phase.DECODING or (
            request.phase is Phase.STOCK and request.first_token_s is not None
        )
        return (
            runs
            and request.seq not in self._moves
            and request.decoder in self._leaving()
            and self._clock() >= request.not_moved_before_s
        )

    def _start(self, request: PoolRequest) -> None:
        """Ask the freest instance with room to get ready; nothing happens while there is none."""
        need = home_tokens(request, self._ledger.page_size)
        free = self._ledger.free_tokens()
        able = [
            seat
            for seat in self._ledger.roles.decode
            if self._presence.stand(seat) is Stand.UP and free[seat] >= need
        ]
        if not able:
            return
        source = request.decoder
        target = max(able, key=lambda seat: (self._ledger.freeness(seat, free), -seat))
        lane = self._lanes.take(request.seq, (source, target))
        if lane is None:
            return
        move = Move(
            request, request.seq, source, target, lane, self._lanes.next_serial(), self._clock()
        )
        self._moves[request.seq] = move
        self._ledger.moves(request.seq, target, need)
        move.inside.add(target)
        self._effects.move_in(request, target, lane, move.serial)

    # -- what the instances tell ----------------------------------------------------------

    def on_report(self, report: MoveReport) -> None:
        """An instance of a move reports; what is of no move means nothing any more."""
        move = self._moves.get(report.seq)
        if move is None or report.instance not in move.inside:
            return
        match report:
            case MoveReady():
                self._ready(move)
            case MovedOut():
                self._left(move, report)
            case MovedIn():
                self._arrived(move)
            case MoveFailed():
                move.request.stays = move.request.stays or report.stays
                self._call_off(move, without=report.instance)
                self._out(move, report.instance)
            case MoveEnded():
                self._out(move, report.instance)

    def _ready(self, move: Move) -> None:
        if move.step is not Step.READYING:
            return
        move.step = Step.LEAVING
        move.inside.add(move.source)
        self._effects.move_out(move.request, move.target, move.lane, move.serial)

    def _left(self, move: Move, report: MovedOut) -> None:
        if move.step is not Step.LEAVING:
            return
        move.step = Step.TRAVELLING
        move.left_s, move.tokens = report.at_s, report.tokens
        if move.request.phase is Phase.STOCK:
            times = move.request.times[0]
            times.start_s, times.end_s = report.start_s, report.end_s
        self._effects.moved(move.request, move.target, report.tokens, report.state)

    def _arrived(self, move: Move) -> None:
        if move.step is not Step.TRAVELLING:
            self._out(move, move.target)  # it was told to forget it meanwhile
            return
        move.inside.discard(move.target)
        move.step = Step.ARRIVED
        request = move.request
        request.advance(Event.MOVED)
        request.moved_to = move.target
        times = (move.asked_s, move.left_s, self._clock())
        request.moves.append(MoveTimes(move.source, move.target, *times, move.tokens))
        self._effects.move_end(move.seq, move.source, moved=True)
        if request.aborted:  # nobody had it when it was aborted
            self._effects.cancel_stock(request)
        self._effects.move_over(request)

    # -- what ends it ---------------------------------------------------------------------

    def tidy(self) -> None:
        """Requests that have ended, or have another plan, move no more."""
        for move in list(self._moves.values()):
            if move.step not in (Step.ARRIVED, Step.OFF) and self._is_over(move):
                # A source that was to take it out finds nothing, and says so.
                self._call_off(move, without=move.source)

    def _is_over(self, move: Move) -> bool:
        return move.request.phase is Phase.ENDED or move.request.seq != move.seq

    def seat_lost(self, seat: int) -> None:
        """An instance is given up: who is left of its moves goes on alone."""
        for move in list(self._moves.values()):
            if seat in (move.source, move.target):
                self._call_off(move, without=seat)
                self._out(move, seat)

    def _call_off(self, move: Move, without: int | None = None) -> None:
        """A move does not come about: all that have something of it let it go."""
        if move.step in (Step.ARRIVED, Step.OFF):
            return
        move.step = Step.OFF
        move.request.not_moved_before_s = self._clock() + AGAIN_S
        for instance in sorted(move.inside - {without}):
            self._effects.move_end(move.seq, instance, moved=False)

    def _out(self, move: Move, instance: int) -> None:
        """An instance has nothing of a move any more."""
        move.inside.discard(instance)
        if move.inside or move.step not in (Step.ARRIVED, Step.OFF):
            return
        if self._moves.pop(move.seq, None) is not move:
            return
        arrived = move.step is Step.ARRIVED
        self._ledger.left(move.seq, move.source if arrived else move.target)
        if move.request.aborted and not arrived and not self._is_over(move):
            self._effects.cancel_stock(move.request)  # its source goes on with it
        if self._lanes.give_back(move.seq):
            self._lane_left()
