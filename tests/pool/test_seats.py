"""Queue times and promised slots, worked out by hand."""

from __future__ import annotations

import pytest

from sglang_cdsp.planner.types import Plan, PlannedChunk
from sglang_cdsp.pool.planning import seats_snapshot
from sglang_cdsp.pool.seats import RESERVE_TOKENS, Seats


def plan(*ends: tuple[tuple[int, ...], float]) -> Plan:
    chunks = tuple(PlannedChunk(10, group, 0.0, end_s) for group, end_s in ends)
    return Plan(chunks, ends[-1][1], "test")


@pytest.fixture
def seats() -> Seats:
    return Seats((1000 + RESERVE_TOKENS, 500 + RESERVE_TOKENS, 10), 16, 2)


def test_an_empty_pool(seats: Seats) -> None:
    """Whole pages only, the reserve kept back; an instance below the reserve has nothing."""
    view = seats.view(5.0)
    assert view.queue_s == (0.0, 0.0, 0.0)
    assert view.free_tokens == view.capacity_tokens == (992, 496, 0)
    assert view.instances_per_node == 2


def test_a_plan_keeps_its_whole_last_group_busy_until_its_end(seats: Seats) -> None:
    seats.bind(0, plan(((0,), 1.0), ((0, 1), 3.0)), 100.0, {0: 160, 1: 32})
    assert seats.view(100.5).queue_s == (2.5, 2.5, 0.0)
    assert seats.free_tokens() == (832, 464, 0)
    assert seats.view(104.0).queue_s == (0.0, 0.0, 0.0), "overdue work counts as none left"


def test_the_longest_of_several_plans_counts_and_slots_add_up(seats: Seats) -> None:
    seats.bind(0, plan(((0,), 1.0)), 100.0, {0: 160})
    seats.bind(1, plan(((0,), 4.0)), 100.0, {0: 320})
    assert seats.view(100.0).queue_s[0] == 4.0
    assert seats.free_tokens()[0] == 992 - 480


def test_slots_outlive_the_work_and_are_released_once(seats: Seats) -> None:
    seats.bind(0, plan(((0, 1), 2.0)), 0.0, {0: 160, 1: 160})
    seats.computed(0)
    assert seats.view(0.0).queue_s == (0.0, 0.0, 0.0)
    assert seats.free_tokens() == (832, 336, 0)
    seats.release(0)
    seats.release(0)
    assert seats.free_tokens() == (992, 496, 0)


def test_a_delay_moves_the_plan_and_what_shares_an_instance_behind_it() -> None:
    seats = Seats((1000,) * 4, 1, 4)
    seats.bind(0, plan(((0,), 9.0)), 0.0, {})
    seats.bind(1, plan(((0, 1), 2.0)), 0.0, {})
    seats.bind(2, plan(((1, 2), 3.0)), 0.0, {})
    seats.bind(3, plan(((3,), 5.0)), 0.0, {})
    seats.ended(1, 0, 2.5)
    assert seats.view(0.0).queue_s == (9.0, 3.5, 3.5, 5.0), "0 came before 1, 3 shares nothing"
    seats.ended(1, 0, 1.5)
    assert seats.view(0.0).queue_s == (9.0, 2.5, 2.5, 5.0)


def test_a_delay_counts_once_for_those_behind() -> None:
    """Four tasks of a second each in a line; only the first takes two."""
    seats = Seats((1000,), 1, 1)
    for seq in range(4):
        seats.bind(seq, plan(((0,), seq + 1.0)), 0.0, {})
    for seq in range(4):
        seats.ended(seq, 0, seq + 2.0)
        seats.computed(seq)
        assert seats.view(seq + 2.0).queue_s == (3.0 - seq,)


def test_a_plans_later_chunks_end_as_late_as_its_first() -> None:
    seats = Seats((1000,) * 2, 1, 2)
    seats.bind(0, plan(((0,), 1.0), ((0, 1), 3.0)), 10.0, {})
    seats.ended(0, 0, 11.5)
    assert seats.view(11.5).queue_s == (2.0, 2.0)
    seats.ended(0, 1, 13.5)
    assert seats.view(13.5).queue_s == (0.0, 0.0), "the second was exactly as long as planned"


def test_unknown_plans_change_nothing(seats: Seats) -> None:
    before = seats.view(0.0)
    seats.ended(9, 0, 1.0)
    seats.computed(9)
    seats.release(9)
    assert seats.view(0.0) == before


def test_what_status_pages_show(seats: Seats) -> None:
    seats.bind(0, plan(((1,), 2.0)), 10.0, {1: 16})
    assert seats_snapshot(seats, 11.0) == {
        "instances": 3,
        "queue_s": [0.0, 1.0, 0.0],
        "free_tokens": [992, 480, 0],
        "capacity_tokens": [992, 496, 0],
    }
