"""A new life's way from its greeting to taking part.

Its links are made pair by pair, and it runs probes: alone, then with every seat that is up. One
life at a time joins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.seats.ways import SeatRequests, Wires
from sglang_cdsp.controller.warm_up import joining_plan
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import Hello, Invitation, InviteOrder, LinkOrder

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Facts:
    """What every life of a seat must have alike with the first one, or the planner were wrong."""

    kv_capacity: int
    page_size: int
    layers: int
    vocab_size: int
    kv_cache_dtype: str

    @classmethod
    def of(cls, hello: Hello) -> Facts:
        """What a rank said of itself."""
        return cls(
            hello.kv_capacity,
            hello.page_size,
            hello.layers,
            hello.vocab_size,
            hello.kv_cache_dtype,
        )

    def misfit(self, other: Facts) -> str:
        """Why a life with ``other`` cannot take this one's place; "" if it can."""
        if other.kv_capacity < self.kv_capacity:
            return (
                f"there is memory for {other.kv_capacity} KV slots only, and the first life had "
                f"{self.kv_capacity}: free memory on its device"
            )
        if other != self:
            return f"the new life differs from the first one ({other} instead of {self})"
        return ""


class Joining:
    """One life that joins. ``step`` moves it on; ``error`` says why it cannot."""

    def __init__(
        self,
        seat: int,
        incarnation: int,
        hellos: Mapping[int, Hello],
        partners: Callable[[], dict[int, int]],
        wires: Wires,
        requests: SeatRequests,
        clock: Callable[[], float],
    ) -> None:
        """Invite it everywhere.

        Args:
            hellos: its greetings by tensor-parallel rank.
            partners: the seats that are up now, with their incarnations.
            clock: monotonic seconds.
        """
        self.seat, self.incarnation = seat, incarnation
        self.error = ""
        self.done = False
        self._hellos = hellos
        self._up = partners
        self._wires = wires
        self._requests = requests
        self._clock = clock
        self._partners = partners()
        self._invitations: dict[tuple[int, int], bytes] = {}
        self._linked = False
        self._plans: Iterator[tuple[int | None, Plan]] = iter(())
        self._probe: tuple[int | None, PoolRequest, float] | None = None
        self._probes = 0
        order = InviteOrder(seat=seat, incarnation=incarnation)
        for partner in self._partners:
            wires.send(partner, order)

    def on_invitation(self, report: Invitation) -> None:
        """A rank of another seat is ready for the new life."""
        if (report.seat, report.life) != (self.seat, self.incarnation):
            return
        if report.error:
            self.error = f"instance {report.instance} has no room for a link: {report.error}"
        elif self._partners.get(report.instance) == report.incarnation:
            self._invitations[(report.instance, report.tp_rank)] = report.invitation

    def step(self) -> None:
        """Do what can be done now; never waits."""
        if self.error or self.done:
            return
        if not self._linked:
            self._link()
        else:
            self._run_probes()

    def _link(self) -> None:
        self._partners = self._staying()
        expected = {(seat, rank) for seat in self._partners for rank in self._hellos}
        if not expected <= self._invitations.keys():
            return
        for seat, rank in sorted(expected):
            hello = self._hellos[rank]
            there = LinkOrder(
                tp_rank=rank,
                seat=self.seat,
                incarnation=self.incarnation,
                invitation=hello.invitations[seat],
            )
            here = LinkOrder(
                tp_rank=rank,
                seat=seat,
                incarnation=self._partners[seat],
                invitation=self._invitations[(seat, rank)],
            )
            self._wires.send(seat, there)
            self._wires.send(self.seat, here)
        self._linked = True
        page_size = self._hellos[0].page_size
        groups = [None, *self._partners]
        self._plans = iter([(who, joining_plan(self.seat, who, page_size)) for who in groups])

    def _staying(self) -> dict[int, int]:
        """The partners whose lives are still those that were invited."""
        now = self._up()
        return {seat: life for seat, life in self._partners.items() if now.get(seat) == life}

    def _run_probes(self) -> None:
        if self._probe is not None:
            partner, request, started_s = self._probe
            gone = partner is not None and partner not in self._staying()
            if request.phase is not Phase.ENDED:
                if not gone and self._clock() > started_s + PROBE_TIMEOUT_S:
                    self.error = f"a probe has not ended in {PROBE_TIMEOUT_S:.0f} s"
                return
            self._probe = None
            # A partner that died meanwhile says nothing of this life.
            if request.error and not gone:
                beside = "" if partner is None else f" with instance {partner}"
                self.error = f"a probe{beside} failed: {request.error}"
                return
        if self._wires.quiet():
            return
        for partner, plan in self._plans:
            if partner is None or partner in self._staying():
                self._start_probe(partner, plan)
                return
        self.done = True

    def _start_probe(self, partner: int | None, plan: Plan) -> None:
        self._probes += 1
        name = f"cdsp-probe-{self.seat}.{self.incarnation}-{self._probes}"
        request = PoolRequest(name, None, plan.tokens, self._clock())
        self._probe = (partner, request, self._clock())
        self._requests.on_probe(request, plan)
