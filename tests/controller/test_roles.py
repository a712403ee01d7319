"""Seats with roles in one server: who is planned on, who decodes, and requests that move."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import pytest

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.turns import RoleTurns
from sglang_cdsp.planner.roles import Role, Roles, parse_roles
from sglang_cdsp.planner.types import PoolView
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.roles import decoding, names, pool_of, turn


def test_plans_use_seats_that_take_chunks() -> None:
    pool = pool_of("2p2d", policy="fixed-sp:2")
    for _ in range(4):
        request = pool.submit(300)
        pool.turn()
        assert request.plan is not None
        assert set(request.plan.instances) == {0, 1}
    pool.settle()
    assert empty(pool)


def test_a_finished_prompt_goes_on_at_a_seat_that_decodes() -> None:
    pool = pool_of("3p1d")
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: request.moved_to == 3)
    assert request.home == 3
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert pool.moves_seen == [(request.rid, 0, 3)]
    assert empty(pool)


def test_so_does_a_short_prompt_of_a_seats_own_queue() -> None:
    pool = pool_of("1p1d")
    request = pool.submit(50)
    pool.until(lambda: request.first_token_s is not None)
    while request.moved_to is None:  # its output is long
        pool.turn()
        next(move for move in pool.moves() if not (move.fault or "ends" in move.name)).do()
    assert phase_is(request, Phase.DECODING)
    assert request.times[0].end_s == 2.0
    pool.settle()
    assert request.outcome == "finished"
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_home_is_a_member_that_decodes() -> None:
    pool = pool_of("1p1b1d", policy="fixed-sp:2")
    request = pool.submit(300)
    pool.turn()
    assert request.plan is not None
    assert request.plan.home == 1
    pool.settle()
    assert pool.moves_seen == []
    assert empty(pool)


def test_the_freest_seat_that_decodes_gets_it() -> None:
    pool = pool_of("4b")
    first = decoding(pool, plan=[(50, [3]), (50, [3])])
    assert pool.ledger.decoding(3) == 1
    request = decoding(pool)
    turn(pool, "2p2d")
    pool.until(lambda: request.moved_to is not None)
    assert request.moved_to == 2
    assert first.moved_to is None
    pool.settle()
    assert empty(pool)


def test_slots_of_what_is_on_its_way_are_not_free() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    free = pool.ledger.free_tokens()[3]
    turn(pool, "3p1d")
    pool.turn()
    assert pool.ledger.free_tokens()[3] < free
    assert pool.ledger.decoding(3) == 1
    pool.until(lambda: request.moved_to == 3)
    pool.until(lambda: not pool.lifecycle.chunk_running)
    pool.until(lambda: pool.ledger.free_tokens()[0] == pool.capacity)  # when it has said so
    pool.settle()
    assert empty(pool)


def test_what_has_a_plan_and_has_not_begun_goes_elsewhere() -> None:
    pool = pool_of("4b", policy="fixed-sp:2")
    request = pool.submit(300)
    pool.turn()
    assert request.plan is not None
    gone = request.plan.instances[-1]
    pool.lifecycle.on_roles(pool.ledger.roles.turned({gone: Role.DECODE}), "a test")
    assert gone not in request.plan.instances
    pool.settle()
    assert request.outcome == "finished"
    assert empty(pool)


def test_nothing_moves_while_no_seat_has_room() -> None:
    pool = pool_of("2b", capacity=400)
    full = decoding(pool, 250, [(100, [1]), (150, [1])])
    request = decoding(pool, 250, [(100, [0]), (150, [0])])
    turn(pool, "1p1d")
    for _ in range(3):
        pool.turn()
    assert pool.moves_seen == []
    assert not pool.lifecycle.chunk_running
    pool.happen(f"1 decodes {full.seq} to its end")
    pool.until(lambda: request.moved_to == 1)
    pool.settle()
    assert empty(pool)


def test_a_state_that_cannot_be_moved_stays_until_its_end() -> None:
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    turn(pool, "1p1d")
    pool.until(lambda: any("cannot take" in move.name for move in pool.moves()))
    pool.happen(f"0 cannot take {request.seq} out")
    pool.settle()
    assert request.stays
    assert pool.moves_seen == []
    assert request.outcome == "finished"
    assert empty(pool)


def test_a_target_that_cannot_take_it_leaves_it_where_it_is() -> None:
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    turn(pool, "1p1d")
    pool.until(lambda: any("does not take" in move.name for move in pool.moves()))
    pool.happen(f"1 does not take {request.seq}")
    pool.until(lambda: not pool.lifecycle.chunk_running)
    assert request.home == 0
    pool.settle()
    assert request.outcome == "finished"
    assert empty(pool)


def test_the_source_goes_on_when_the_target_is_lost() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    turn(pool, "3p1d")
    pool.until(lambda: any(name.startswith("all of") for name in names(pool)))
    pool.lose(3)
    pool.confirm(3)
    pool.until(lambda: not pool.lifecycle.chunk_running)
    assert request.home == 0
    assert pool.lost_requests == []
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    pool.fill(3)
    assert empty(pool)


def test_a_demanded_plan_names_seats_that_take_chunks() -> None:
    pool = pool_of("2p2d")
    request = pool.submit(100, plan=[(100, [3])])
    assert pool.answers[request.tokenized] == ["controller"]
    assert "role is to decode only" in request.error


def test_a_prompt_that_fits_only_with_seats_that_decode_is_refused() -> None:
    pool = pool_of("1p3d", policy="fixed-sp:1", capacity=400)
    request = pool.submit(390)
    assert request.phase is not Phase.ENDED
    turn(pool, "4b")
    long = pool_of("1p3d", policy="fixed-sp:2").submit(300)
    assert "role is to decode" in long.error
    pool.settle()
    assert empty(pool)


def test_what_comes_back_when_too_few_seats_prefill_is_told_so() -> None:
    """It was retracted after the others had turned, and no plan of the policy's is left."""
    pool = pool_of("2b", policy="fixed-sp:2")
    request = pool.submit(100)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    turn(pool, "1d1b")
    pool.happen(f"{request.home} retracts {request.seq}")
    pool.hear_all()
    assert request.phase is Phase.ENDED
    assert "role is to decode" in request.error
    assert pool.statuses[request.tokenized] == HTTPStatus.SERVICE_UNAVAILABLE
    pool.settle()
    assert empty(pool)


def test_so_is_what_waits_for_a_home() -> None:
    pool = pool_of("2b", policy="fixed-sp:2", capacity=1000)
    for seat in (0, 1):
        decoding(pool, 500, [(250, [seat])] * 2)
    request = pool.submit(700)
    pool.turn()
    assert phase_is(request, Phase.WAITING)
    turn(pool, "1d1b")
    assert request.phase is Phase.ENDED
    assert "role is to decode" in request.error
    pool.settle()
    assert empty(pool)


def test_an_update_and_a_policy_turn_seats() -> None:
    pool = pool_of("4b")
    now_s = [0.0]
    turns = RoleTurns(
        pool.policy, pool.ledger, pool.lifecycle.on_roles, lambda: now_s[0], decodes=True
    )
    assert turns.read({"seats": {"1": "drain"}}) is None
    roles = turns.read({"roles": {"3": "decode"}})
    assert roles is not None
    turns.put(roles)
    assert str(pool.ledger.roles) == "3b1d"
    asked: list[Roles] = []

    def wish(pool: PoolView, roles: Roles, decoding: Sequence[int]) -> Roles:
        asked.append(roles)
        return parse_roles("2p2d")

    pool.policy.turn = wish  # type: ignore[method-assign]
    turns.ask_policy()
    assert asked == []
    now_s[0] = 2.0
    turns.ask_policy()
    turns.ask_policy()
    assert len(asked) == 1
    assert str(pool.ledger.roles) == "2p2d"


def test_a_pool_with_decode_servers_has_no_roles() -> None:
    pool = pool_of("4b")
    turns = RoleTurns(pool.policy, pool.ledger, pool.lifecycle.on_roles, lambda: 0.0, decodes=False)
    with pytest.raises(ValueError, match="decode servers"):
        turns.read({"roles": "2p2d"})
