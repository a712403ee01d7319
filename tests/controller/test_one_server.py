"""One server: prompts come home in their last chunk, and are decoded there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sglang_cdsp.controller.homes import OUTPUT_SHARE, exchanged, home_tokens, output_tokens
from sglang_cdsp.controller.moves import Step
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.presence import Stand
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.resuming import MOST_LOSSES
from sglang_cdsp.planner.roles import Role, Roles
from sglang_cdsp.protocol.messages import SlotsTaken
from tests.controller.any_order import SETTINGS, AnyOrder
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.fake_pool import Demanded
from tests.controller.fake_tasks import Client
from tests.controller.one_server import OneServerPool

ON_THE_WAY = ("", "source", "target", "both", "abort", "retracts", "cannot send", "its link for")
"""What may happen to a request that moves: seats that are lost, and words for faults."""


ENDS = ("to its end", " ends")
"""How the names of what ends a request's output end."""


class AnyOrderOfOneServer(AnyOrder):
    """As with decode servers, but every request is decoded at its home."""

    make_pool = OneServerPool
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
        drained: bool,
        so_far: str,
        then: str,
        confirmed: bool,
        choices: list[int],
    ) -> None:
        """A request decodes, its home is not to any more, and something happens on its way."""
        request = self.pool.request(tokens)
        self._submit(request, None, "")
        self._come_on(lambda: request.first_token_s is not None)
        if request.phase not in (Phase.DECODING, Phase.STOCK) or request.recalled:
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


AnyOrderOfOneServer.TestCase.settings = SETTINGS
TestAnyOrderOfOneServer = AnyOrderOfOneServer.TestCase


@pytest.fixture
def pool() -> OneServerPool:
    return OneServerPool(size=4, policy="threshold:1000")


def test_a_request_waits_for_no_decode_server(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    assert phase_is(request, Phase.WAITING)
    pool.turn()
    assert phase_is(request, Phase.BOUND)


def test_home_alone_keeps_its_slots_while_it_decodes(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    need = home_tokens(request, 1)
    assert need > 100
    assert pool.ledger.free_tokens() == (pool.capacity - need, *(pool.capacity,) * 3)
    assert pool.answers[request.tokenized] == []
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_an_abort_is_answered_by_the_home_that_decodes(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home failed"]
    assert request.outcome == "aborted"
    assert empty(pool)


def test_an_abort_before_the_last_chunk_is_answered_at_once(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.RUNNING))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    assert pool.answers[request.tokenized] == ["controller"]
    pool.settle()
    assert empty(pool)


def test_a_short_prompt_is_its_instances_own_to_the_end(pool: OneServerPool) -> None:
    request = pool.submit(50)
    pool.until(lambda: request.first_token_s is not None)
    assert request.phase is Phase.STOCK
    assert sum(pool.ledger.free_tokens()) == 4 * pool.capacity - home_tokens(request, 1)
    pool.settle()
    assert empty(pool)


def test_what_instances_tell_counts_where_it_is_more_than_was_promised(
    pool: OneServerPool,
) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    promised = pool.capacity - pool.ledger.free_tokens()[0]
    for tokens, taken in ((promised - 10, promised), (promised + 500, promised + 500)):
        pool.hear(SlotsTaken(instance=0, tp_rank=0, at_s=0.0, tokens=tokens))
        assert pool.ledger.free_tokens()[0] == pool.capacity - taken


def test_a_prompt_that_no_instance_can_hold_is_refused(pool: OneServerPool) -> None:
    request = pool.submit(pool.capacity + 1)
    assert pool.answers[request.tokenized] == ["controller"]
    assert "instance that decodes it holds at most" in request.error


def test_home_is_a_member_with_room() -> None:
    """Every instance has room for a share of the prompt, one for all of it."""
    pool = OneServerPool(size=3, capacity=1000, policy="fixed-sp:3")
    before = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in (0, 2)]
    for request in before:
        pool.until(partial(phase_is, request, Phase.DECODING))
    third = pool.submit(600)
    pool.turn()
    assert third.plan is not None
    assert third.plan.home == 1
    assert set(third.plan.instances) == {0, 1, 2}
    pool.settle()
    assert empty(pool)


def test_an_instance_with_room_takes_a_members_place() -> None:
    """The idle instances have room for shares only; a busy one could hold all of it."""
    pool = OneServerPool(size=3, capacity=1000, policy="fixed-sp:2")
    decoding = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in (0, 1)]
    for request in decoding:
        pool.until(partial(phase_is, request, Phase.DECODING))
    busy = pool.submit(100, plan=[(100, [2])])
    pool.turn()
    third = pool.submit(600)
    pool.turn()
    assert busy.phase is Phase.STOCK
    assert third.plan is not None
    assert third.plan.home == 2
    assert len(third.plan.instances) == 2
    pool.settle()
    assert empty(pool)


# -- instances that are lost ------------------------------------------------------------------


def assert_goes_on(pool: OneServerPool, request: PoolRequest, seat: int) -> None:
    """Nobody tells its client of the lost instance; what it may write to is kept till it ended."""
    assert pool.lost_requests == []
    assert pool.answers[request.tokenized] == []
    recalls = request.recalls
    pool.confirm(seat)
    pool.settle()
    assert request.recalls == recalls + 1
    assert pool.answers[request.tokenized][-1].endswith("finished")
    assert len(pool.answers[request.tokenized]) == 1
    assert (request.phase, request.outcome) == (Phase.ENDED, "finished")
    pool.fill(seat)
    assert empty(pool)


def stream(pool: OneServerPool, seat: int, seq: int, tokens: int) -> None:
    """A client gets output of a request."""
    for _ in range(tokens):
        pool.happen(f"{seat} generates a token of {seq}")
    pool.happen(f"{seat} streams {seq}")
    pool.hear_all()


def test_what_decodes_on_a_lost_instance_goes_on_from_what_its_client_has(
    pool: OneServerPool,
) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    stream(pool, 0, request.seq, 4)
    pool.happen(f"0 generates a token of {request.seq}")  # which nobody ever sees
    seq = request.seq
    pool.lose(0)
    assert pool.lifecycle.busy_instances == frozenset(), "nobody waits for it to come on"
    assert not pool.lifecycle.needs_start
    pool.turn()
    assert phase_is(request, Phase.DECODING), "its process may still write"
    assert_goes_on(pool, request, 0)
    assert request.seq > seq
    assert request.tokens == 105
    assert request.resumes is not None
    assert request.resumes.tokens == [0, 1, 2, 3, 4]
    assert pool.seen[request.rid] == 7, "five, one that its new home sampled, and the last one"
    assert request.first_token_s is not None


def test_so_does_a_short_prompt_after_its_first_token(pool: OneServerPool) -> None:
    request = pool.submit(50, plan=[(50, [2])])
    pool.until(lambda: request.first_token_s is not None)
    stream(pool, 2, request.seq, 1)
    pool.lose(2)
    assert_goes_on(pool, request, 2)
    assert not request.one_instance, "SGLang's prefill would start its penalties anew"


def test_a_request_without_output_starts_anew(pool: OneServerPool) -> None:
    request = pool.submit(50)
    pool.until(lambda: request.first_token_s is not None)
    assert request.plan is not None
    assert_lost_and_goes_on(pool, request, request.plan.home)
    assert request.resumes is None
    assert request.one_instance


def assert_lost_and_goes_on(pool: OneServerPool, request: PoolRequest, seat: int) -> None:
    pool.lose(seat)
    assert_goes_on(pool, request, seat)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING])
def test_so_does_what_others_still_hold_slots_of(phase: Phase) -> None:
    pool = OneServerPool(size=4, policy="fixed-sp:2")
    request = pool.submit(100)
    pool.until(lambda: phase_is(request, phase))
    assert request.plan is not None
    assert_lost_and_goes_on(pool, request, request.plan.home)


def test_so_does_what_its_home_alone_has() -> None:
    """Home has told that it decodes; the other member has yet to free its slots."""
    pool = OneServerPool(size=4, policy="fixed-sp:2")
    request = pool.submit(100)
    pool.until(lambda: phase_is(request, Phase.RELEASING))
    pool.until(lambda: request.joined)
    assert phase_is(request, Phase.RELEASING)
    assert request.plan is not None
    home, other = request.plan.instances
    pool.lose(home)
    pool.happen(f"{other} takes an order")
    assert_goes_on(pool, request, home)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING, Phase.DECODING])
def test_a_member_is_not_missed_once_home_has_all_kv(pool: OneServerPool, phase: Phase) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, phase))
    pool.lose(1)
    assert pool.lost_requests == []
    pool.confirm(1)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert (request.outcome, request.recalls) == ("finished", 0)
    pool.fill(1)
    assert empty(pool)


def in_the_last_chunk(pool: OneServerPool, *, home_is_done: bool) -> PoolRequest:
    """A request whose last chunk runs at both of its instances, or at the other one only."""
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: request.next_chunk == 1 and request.phase is Phase.RUNNING)
    if home_is_done:
        for name in ("0 takes an order", "1 takes an order", "0 ends chunk 1 of 0"):
            pool.happen(name)
        pool.until(lambda: bool(request.times[1].done))
        assert request.times[1].done == {0}
    return request


def test_a_member_inside_the_last_chunk_is_missed(pool: OneServerPool) -> None:
    request = in_the_last_chunk(pool, home_is_done=False)
    pool.lose(1)
    pool.confirm(1)
    pool.fill(1)  # the plan that it brings names it
    pool.settle()
    assert (request.recalls, request.outcome) == (1, "finished")
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_home_lets_go_of_what_it_decodes_before_that_is_known(pool: OneServerPool) -> None:
    """The order to end the plan crosses the end of its last chunk and the first output."""
    request = in_the_last_chunk(pool, home_is_done=False)
    for name in ("0 takes an order", "1 takes an order", "0 ends chunk 1 of 0"):
        pool.happen(name)
    for name in ("0 generates a token of 0", "0 streams 0"):
        pool.happen(name)
    pool.lose(1)
    assert request.recalled
    assert_goes_on(pool, request, 1)
    assert request.resumes is not None
    assert request.resumes.tokens == [0, 1]


def test_a_member_inside_the_last_chunk_is_not_missed_once_home_is_done(
    pool: OneServerPool,
) -> None:
    request = in_the_last_chunk(pool, home_is_done=True)
    pool.lose(1)
    assert pool.lost_requests == []
    pool.confirm(1)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert request.outcome == "finished"
    pool.fill(1)
    assert empty(pool)


def test_so_is_what_fails_at_another_member(pool: OneServerPool) -> None:
    request = in_the_last_chunk(pool, home_is_done=True)
    pool.happen("1 fails in chunk 1 of 0")
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert (request.outcome, request.error) == ("finished", "")
    assert empty(pool)


def test_an_abort_after_that_ends_it_at_home(pool: OneServerPool) -> None:
    request = in_the_last_chunk(pool, home_is_done=True)
    pool.happen("1 fails in chunk 1 of 0")
    pool.until(lambda: phase_is(request, Phase.DRAINING))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home failed"]
    assert request.outcome == "aborted"
    assert empty(pool)


def test_a_client_that_has_its_whole_answer_misses_nothing(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.happen(f"0 decodes {request.seq} to its end")
    pool.happen("the controller hears 0.0")  # of the output, not yet that it has ended
    assert request.output.complete
    pool.instances[0].lost = True
    pool.lifecycle.on_seat_lost(0, "killed by a test")
    pool.lifecycle.on_abort(request.rid, "no longer wanted", everything=False)
    pool.confirm(0)
    pool.settle()
    assert (request.outcome, request.recalls) == ("finished", 0)
    assert pool.answers[request.tokenized] == ["home finished"]
    pool.fill(0)
    assert empty(pool)


@dataclass(frozen=True)
class Peculiar(Client):
    """A client whose request has state that its output does not tell."""

    custom_logit_processor: str = "counts in secret"


@pytest.mark.parametrize(("streamed", "outcome"), [(0, "finished"), (2, "failed")])
def test_state_that_cannot_be_rebuilt_ends_in_an_error(
    pool: OneServerPool, streamed: int, outcome: str
) -> None:
    request = pool.request(100)
    request.tokenized = Peculiar(99)
    pool.lifecycle.on_request(request, None)
    pool.until(lambda: request.first_token_s is not None)
    assert request.plan is not None
    home = request.plan.home
    if streamed:
        stream(pool, home, request.seq, streamed)
    pool.lose(home)
    if streamed:
        assert pool.answers[request.tokenized] == ["controller"]
        assert pool.statuses[request.tokenized] == HTTPStatus.SERVICE_UNAVAILABLE
        assert f"instance {home} was lost" in request.error
        assert "a custom logit processor" in request.error
    pool.confirm(home)
    pool.settle()
    assert request.outcome == outcome


def test_a_request_does_not_end_one_instance_after_the_other() -> None:
    pool = OneServerPool(size=2, policy="threshold:1000")
    request = pool.submit(100)
    for _ in range(MOST_LOSSES + 1):
        assert request.phase is not Phase.ENDED
        pool.until(lambda: request.phase is Phase.STOCK)
        assert request.plan is not None
        home = request.plan.home
        pool.lose(home)
        pool.confirm(home)
        pool.fill(home)
    assert pool.answers[request.tokenized] == ["controller"]
    assert "4th that was lost under it" in request.error
    pool.settle()
    assert empty(pool)


# -- what SGLang retracts -----------------------------------------------------------------------


def test_a_retracted_request_gets_another_plan_over_prompt_and_output(
    pool: OneServerPool,
) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    stream(pool, 0, request.seq, 4)
    pool.happen(f"0 generates a token of {request.seq}")  # held back, not lost
    pool.happen(f"0 retracts {request.seq}")
    pool.hear_all()
    assert phase_is(request, Phase.WAITING)
    assert (request.tokens, request.recalls) == (106, 1)
    assert request.resumes is not None
    assert (len(request.resumes.tokens), request.resumes.sent) == (6, 5)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_a_carried_output_outlives_a_second_home(pool: OneServerPool) -> None:
    """The second home is lost before its client has seen anything from there."""
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.happen(f"0 generates a token of {request.seq}")
    pool.happen(f"0 retracts {request.seq}")
    pool.hear_all()
    pool.until(lambda: phase_is(request, Phase.BOUND))
    pool.until(lambda: phase_is(request, Phase.DECODING))
    assert request.plan is not None
    home = request.plan.home
    assert_lost_and_goes_on(pool, request, home)
    assert request.resumes is not None
    assert (request.resumes.tokens, request.resumes.sent) == ([0, 1], 0)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.DRAINING, Phase.RELEASING])
def test_a_retraction_may_come_before_others_are_done(phase: Phase) -> None:
    pool = OneServerPool(size=4, policy="fixed-sp:2")
    request = pool.submit(100)
    pool.until(lambda: phase_is(request, Phase.RUNNING))
    assert request.plan is not None
    home, other = request.plan.instances
    for me in (home, other):
        pool.happen(f"{me} takes an order")
    pool.happen(f"{home} ends chunk 0 of {request.seq}")
    pool.until(lambda: phase_is(request, phase))
    pool.happen(f"{home} retracts {request.seq}")
    pool.settle()
    assert (request.outcome, request.recalls) == ("finished", 1)
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_an_abort_that_crosses_a_retraction_is_answered(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.happen(f"0 retracts {request.seq}")
    pool.lifecycle.on_abort(request.rid, "no longer wanted", everything=False)
    pool.settle()
    assert pool.answers[request.tokenized] == ["controller"]
    assert request.outcome == "aborted"
    assert empty(pool)


def test_a_short_request_that_is_given_back_goes_on_too(pool: OneServerPool) -> None:
    request = pool.submit(50)
    pool.until(lambda: request.first_token_s is not None)
    assert request.plan is not None
    home = request.plan.home
    stream(pool, home, request.seq, 3)
    pool.happen(f"{home} retracts {request.seq}")
    pool.settle()
    assert (request.outcome, request.recalls, request.tokens) == ("finished", 1, 54)
    assert empty(pool)


def test_an_aborted_request_is_answered_although_its_home_is_lost(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: request.joined)
    pool.lifecycle.on_abort(request.rid, "no longer wanted", everything=False)
    assert pool.answers[request.tokenized] == []
    pool.lose(0)
    assert pool.answers[request.tokenized] == ["controller"]
    pool.confirm(0)
    pool.settle()
    assert request.outcome == "aborted"
    pool.fill(0)
    assert empty(pool)


def test_an_aborted_plan_that_was_recalled_is_answered_at_once(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.turn()
    pool.lose(1)
    assert (request.phase, request.recalled) == (Phase.DRAINING, True)
    pool.lifecycle.abort(request, "no longer wanted")
    assert pool.answers[request.tokenized] == ["controller"]
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "aborted")


def test_the_id_of_what_goes_on_is_its_own(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lose(0)
    assert "is in use" in pool.submit(50, rid=request.rid).error
    pool.confirm(0)
    assert "is in use" in pool.submit(50, rid=request.rid).error
    pool.settle()
    assert request.outcome == "finished"


@pytest.mark.parametrize("plan", [TWO_CHUNKS, [(50, [0])]], ids=["chunks", "own queue"])
def test_an_id_is_free_when_its_client_has_the_whole_answer(
    pool: OneServerPool, plan: Demanded
) -> None:
    assert isinstance(plan, list)
    request = pool.submit(sum(tokens for tokens, _ in plan), plan=plan)
    pool.until(lambda: request.first_token_s is not None)
    pool.until(lambda: any(move.name.endswith(ENDS) for move in pool.moves()))
    second = pool.request(50, rid=request.rid)
    pool.lifecycle.on_request(second, None)
    assert "is in use" in second.error
    request.output.complete = request.answered = True  # which its home tells
    third = pool.request(50, rid=request.rid)
    pool.lifecycle.on_request(third, None)
    assert not third.error
    pool.settle()
    assert (request.outcome, third.outcome) == ("finished", "finished")
    assert empty(pool)


def test_a_seat_that_drains_is_idle_when_nothing_decodes_there(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    for seat in (0, 1):
        pool.lifecycle.on_seat_draining(seat)
    assert not pool.lifecycle.seat_idle(0)
    assert pool.lifecycle.seat_idle(1)
    pool.settle()
    assert pool.lifecycle.seat_idle(0)


def test_what_a_lost_instance_told_of_its_slots_is_forgotten(pool: OneServerPool) -> None:
    pool.hear(SlotsTaken(instance=0, tp_rank=0, at_s=0.0, tokens=500))
    assert pool.ledger.free_tokens()[0] == pool.capacity - 500
    pool.lose(0)
    pool.confirm(0)
    pool.fill(0)
    assert empty(pool)


def test_a_plan_that_goes_elsewhere_gets_a_home_with_room() -> None:
    """Of the instances that are left all have room for a share, the first not for all of it."""
    pool = OneServerPool(size=4, capacity=1000, policy="fixed-sp:4")
    decoding = pool.submit(500, plan=[(250, [1])] * 2)
    pool.until(lambda: phase_is(decoding, Phase.DECODING))
    request = pool.submit(800)
    pool.turn()
    assert request.plan is not None
    assert request.plan.home == 0
    pool.lose(0)
    assert phase_is(request, Phase.BOUND)
    assert request.plan.instances == (2, 1, 3)
    pool.confirm(0)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert pool.lost_requests == []
    pool.fill(0)
    assert empty(pool)


def test_a_plan_without_a_home_that_names_a_lost_instance_is_made_again() -> None:
    pool = OneServerPool(size=4, capacity=1000, policy="fixed-sp:2")
    running = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in range(4)]
    for request in running:
        pool.until(partial(phase_is, request, Phase.DECODING))
    waiting = [pool.submit(700), pool.submit(680)]
    pool.turn()
    pool.lose(0)
    pool.confirm(0)
    pool.settle()
    assert [request.outcome for request in running] == ["finished"] * 4
    assert [request.outcome for request in waiting] == ["finished"] * 2
    assert waiting[0].seq < waiting[1].seq
    for request in waiting:
        assert request.plan is not None
        assert 0 not in request.plan.instances
    pool.fill(0)
    pool.settle()  # the first brought a plan that names the lost instance, and waits for it
    assert running[0].recalls == 1
    assert empty(pool)


def test_a_prompt_without_a_home_waits_and_keeps_its_place() -> None:
    pool = OneServerPool(size=2, capacity=1000, policy="fixed-sp:2")
    running = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in (0, 1)]
    for request in running:
        pool.until(partial(phase_is, request, Phase.DECODING))
    long, short = pool.submit(700), pool.submit(30)
    pool.turn()
    assert long.phase is Phase.WAITING
    assert short.phase is Phase.WAITING
    pool.settle()
    assert [request.outcome for request in (long, short)] == ["finished"] * 2
    assert long.seq < short.seq
    assert empty(pool)


@settings(deadline=None)
@given(st.integers(1, 5000), st.none() | st.integers(0, 9000), st.sampled_from([1, 16, 64]))
def test_what_is_promised_for_output_fits(tokens: int, longest: int | None, page: int) -> None:
    room = 4096
    promised = output_tokens(tokens, longest, page, room)
    assert promised % page == 0
    assert 0 <= promised <= max(0, room - tokens)
    if longest is not None and tokens + longest + 2 * page <= room:
        assert promised >= OUTPUT_SHARE * longest


def test_instances_change_places_in_every_chunk() -> None:
    assert exchanged(((8, (0,)), (4, (0, 1, 2))), 0, 2) == ((8, (2,)), (4, (2, 1, 0)))
