"""One server under any order of events: roles that turn, requests that move, instances that go."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sglang_cdsp.controller.move import Step
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.presence import Stand
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.roles import Role, Roles
from tests.controller.any_order import AnyOrder
from tests.controller.fake_pool import Demanded, FakePool
from tests.controller.one_server import OneServerPool

ON_THE_WAY = ("", "source", "target", "both", "abort", "retracts", "cannot send", "its link for")
"""What may happen to a request that moves: seats that are lost, and words for faults."""


ENDS = ("to its end", " ends")
"""How the names of what ends a request's output end."""


class AnyOrderOfOneServer(AnyOrder):
    """As with decode servers, but every request is decoded at its home."""

    make_pool: type[FakePool] = OneServerPool
    # An abort may cross with the last chunk's end: home then ends what decodes already.
    own_answers = ("stock", "home")

    def _submit(self, request: PoolRequest, plan: Demanded | None, pages: str) -> None:
        super()._submit(request, plan, "no decode")

    @rule(data=st.data())
    def seats_turn(self, data: st.DataObject) -> None:
        """Seats get other roles, all at once."""
        size = len(self.pool.instances)
        drawn = data.draw(st.lists(st.sampled_from(Role), min_size=size, max_size=size))
        if any(role.prefills for role in drawn) and any(role.decodes for role in drawn):
            self.pool.lifecycle.on_roles(Roles(tuple(drawn)), "a test")

    @precondition(lambda self: len(self._seats(Stand.UP)) > 1)
    @rule(
        data=st.data(),
        tokens=st.integers(1, 200),
        early=st.booleans(),
        drained=st.booleans(),
        so_far=st.sampled_from(["asked", "ready", "on its way"]),
        then=st.sampled_from(ON_THE_WAY),
        confirmed=st.booleans(),
        choices=st.lists(st.integers(0, 1000), max_size=12),
    )
    def a_request_is_to_move(
        self,
        data: st.DataObject,
        tokens: int,
        early: bool,
        drained: bool,
        so_far: str,
        then: str,
        confirmed: bool,
        choices: list[int],
    ) -> None:
        """A request's home is not to decode any more, and something happens on its way.

        It decodes, or its last chunk runs (``early``).
        """
        request = self.pool.request(tokens)
        self._submit(request, None, "")
        if early:
            self._come_on(lambda: _in_last_chunk(request))
        else:
            self._come_on(lambda: request.first_token_s is not None)
        phases = (Phase.RUNNING,) if early else (Phase.DECODING, Phase.STOCK)
        if request.phase not in phases or request.recalled:
            return
        home = request.home
        if drained and self.pool.lifecycle.presence.stand(home) is Stand.UP:
            self.pool.lifecycle.on_seat_draining(home)
        else:
            others = data.draw(st.sampled_from([Role.BOTH, Role.DECODE]))
            seats = range(len(self.pool.instances))
            roles = Roles(tuple(Role.PREFILL if i == home else others for i in seats))
            self.pool.lifecycle.on_roles(roles, "a test")
        moves = self.pool.lifecycle._moves._moves
        self._come_on(lambda: request.seq in moves)
        if (move := moves.get(request.seq)) is None:
            return
        if so_far != "asked":
            self._come_on(lambda: move.step is not Step.READYING)
        if so_far == "on its way":
            self._come_on(lambda: move.step not in (Step.READYING, Step.LEAVING))
            arrives = f"all of {request.seq} has come"
            self._come_on(lambda: any(m.name.startswith(arrives) for m in self.pool.moves()))
        for seat in {"source": [home], "target": [move.target]}.get(then, []):
            self._lose(seat, confirmed=confirmed)
        if then == "both":
            for seat in data.draw(st.permutations([home, move.target])):
                self._lose(seat, confirmed=confirmed)
        if then == "abort":
            self.pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
        self._fault(then, request.seq)
        self.things_happen(choices or [0], faults=bool(len(choices) % 2))

    def _lose(self, seat: int, *, confirmed: bool) -> None:
        if self.pool.lifecycle.presence.stand(seat) in (Stand.UP, Stand.DRAINING):
            self.pool.lose(seat)
            if confirmed:
                self.pool.confirm(seat)

    def _fault(self, kind: str, seq: int) -> None:
        """Something goes wrong with a task, if it could."""
        named = [m for m in self.pool.moves() if kind in m.name and m.name.endswith(f" {seq}")]
        for move in named[:1]:
            move.do()

    def _come_on(self, reached: Callable[[], bool]) -> None:
        """Let things happen that are no faults and end no request's output, for a while."""
        for _ in range(200):
            self.pool.turn()
            going = [m for m in self.pool.moves() if not (m.fault or m.name.endswith(ENDS))]
            if reached() or not going:
                return
            going[0].do()


def _in_last_chunk(request: PoolRequest) -> bool:
    plan = request.plan
    runs = plan is not None and request.phase is Phase.RUNNING
    return plan is not None and runs and request.next_chunk == len(plan.chunks) - 1
