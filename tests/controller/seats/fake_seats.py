"""A pool of seats without processes: what the keeper reaches, and what it was told to do."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sglang_cdsp.controller.phases import Event
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.seats.keeper import SeatKeeper
from sglang_cdsp.controller.seats.launcher import Ended, LifeEvent, Started, Vitals
from sglang_cdsp.controller.seats.table import SeatTable
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import (
    Answered,
    AnyReport,
    Hello,
    Invitation,
    InviteOrder,
    Streamed,
)

SLOTS = 500


def hello(seat: int, rank: int, incarnation: int, seats: int, kv_capacity: int = SLOTS) -> Hello:
    """A rank's greeting."""
    return Hello(
        instance=seat,
        tp_rank=rank,
        at_s=0.0,
        incarnation=incarnation,
        invitations={i: f"{seat}.{rank}>{i}".encode() for i in range(seats) if i != seat},
        kv_capacity=kv_capacity,
        page_size=16,
        max_input_tokens=99,
        vocab_size=32,
        layers=4,
        kv_cache_dtype="float32",
    )


class FakeLauncher:
    """Lives that come up and end when the test says."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int, int | None]] = []
        self.killed: list[int] = []
        self.events: list[LifeEvent] = []
        self.stopped: set[int] = set()
        self.beats = 0

    def start(self, seat: int, incarnation: int, slots: int | None) -> None:
        self.started.append((seat, incarnation, slots))

    def end(self, seat: int) -> None:
        self.killed.append(seat)

    def poll(self) -> list[LifeEvent]:
        events, self.events = self.events, []
        return events

    def vitals(self, seat: int) -> Vitals | None:
        return Vitals((self.beats,), (1000 + seat,) if seat in self.stopped else ())


class FakeRequests:
    """What requests are told; probes end when the test says."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.probes: list[tuple[PoolRequest, Plan]] = []
        self.reports: list[AnyReport] = []
        self.idle = False

    def on_report(self, report: AnyReport) -> None:
        self.reports.append(report)

    def on_probe(self, request: PoolRequest, plan: Plan) -> None:
        self.probes.append((request, plan))

    def end_probe(self, error: str = "") -> tuple[int, ...]:
        """End the probe that runs; the seats that it was on."""
        request, plan = self.probes.pop(0)
        request.error = error
        request.advance(Event.REFUSE)
        return plan.instances

    def on_seat_lost(self, seat: int, why: str) -> None:
        self.told.append(("lost", seat))

    def on_seat_ended(self, seat: int) -> None:
        self.told.append(("ended", seat))

    def on_seat_up(self, seat: int) -> None:
        self.told.append(("up", seat))

    def on_seat_draining(self, seat: int) -> None:
        self.told.append(("draining", seat))

    def on_seat_stays_down(self, seat: int, why: str) -> None:
        self.told.append(("stays down", seat) if why else ("comes back", seat))

    def seat_idle(self, seat: int) -> bool:
        return self.idle


class FakeWires:
    """Orders by seat, and who listens."""

    def __init__(self, seats: int) -> None:
        self.sent: dict[int, list[Any]] = defaultdict(list)
        self.listens = dict.fromkeys(range(seats), True)
        self.is_quiet = False
        self.behind: str | None = ""
        self.answers: list[Answered] = []
        self.outputs: list[Streamed] = []
        self.repeated: list[int] = []
        self.empty: list[int] = []

    def send(self, seat: int, order: Any) -> None:
        self.sent[seat].append(order)

    def connected(self, seat: int) -> bool:
        return True

    def listening(self, seat: int, *, listens: bool) -> None:
        self.listens[seat] = listens

    def emptied(self, seat: int) -> None:
        self.empty.append(seat)

    def tell(self, seat: int) -> None:
        self.repeated.append(seat)

    def quiet(self) -> bool:
        return self.is_quiet

    def caught_up(self, seat: int) -> str | None:
        return self.behind

    def answered(self, report: Answered) -> None:
        self.answers.append(report)

    def streamed(self, report: Streamed) -> None:
        self.outputs.append(report)


class FakeObserver:
    """What is seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def seat_changed(self, seat: int, incarnation: int, state: str, why: str) -> None:
        self.seen.append((seat, incarnation, state))

    def seat_died(self, seat: int, cause: str) -> None:
        self.seen.append((seat, cause))


class Seats:
    """A keeper of three seats of two ranks, all up."""

    SIZE, TP = 3, 2

    def __init__(self) -> None:
        self.now_s = 100.0
        self.launcher, self.requests = FakeLauncher(), FakeRequests()
        self.wires, self.observer = FakeWires(self.SIZE), FakeObserver()
        self.table = SeatTable.all_up(self.SIZE)
        self.keeper = SeatKeeper(
            table=self.table,
            launcher=self.launcher,
            requests=self.requests,
            wires=self.wires,
            observers=(self.observer,),
            hellos={(i, r): hello(i, r, 1, self.SIZE) for i in range(3) for r in range(2)},
            slots=dict.fromkeys(range(self.SIZE), SLOTS),
            tp_size=self.TP,
            clock=lambda: self.now_s,
        )

    def tick(self, *events: LifeEvent, seconds: float = 0.0) -> None:
        """Let time pass and events come, and let the keeper take its turn."""
        self.now_s += seconds
        self.launcher.beats += 1
        self.launcher.events += events
        self.keeper.tick()

    def confirm_end(self, seat: int) -> None:
        self.tick(Ended(seat, self.table.incarnation(seat)))

    def greet(self, seat: int, kv_capacity: int = SLOTS) -> None:
        """The processes of the seat's next life come up."""
        incarnation = self.table.incarnation(seat)
        self.tick(Started(seat, incarnation))
        for rank in range(self.TP):
            self.keeper.on_report(hello(seat, rank, incarnation, self.SIZE, kv_capacity))
        self.tick()

    def invite(self, seat: int) -> None:
        """All others answer their orders to invite the seat's new life."""
        for other in range(self.SIZE):
            for order in self.wires.sent[other]:
                if isinstance(order, InviteOrder) and order.seat == seat:
                    self.answer_invitation(other, order)
        self.tick()

    def answer_invitation(self, other: int, order: InviteOrder, error: str = "") -> None:
        for rank in range(self.TP):
            self.keeper.on_report(
                Invitation(
                    instance=other,
                    tp_rank=rank,
                    at_s=0.0,
                    incarnation=self.table.incarnation(other),
                    seat=order.seat,
                    life=order.incarnation,
                    invitation=f"{other}.{rank}>{order.seat}".encode(),
                    error=error,
                )
            )
