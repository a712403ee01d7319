"""Queue times and promised slots, worked out by hand."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.ledger import RESERVE_TOKENS, InstanceLedger
from sglang_cdsp.controller.shared_slots import SharedSlots
from sglang_cdsp.planner.rests import Placed
from sglang_cdsp.planner.types import Plan, PlannedChunk


def plan(*ends: tuple[tuple[int, ...], float]) -> Plan:
    chunks = tuple(PlannedChunk(10, group, 0.0, end_s) for group, end_s in ends)
    return Plan(chunks, ends[-1][1], "test")


@pytest.fixture
def ledger() -> InstanceLedger:
    return InstanceLedger((1000 + RESERVE_TOKENS, 500 + RESERVE_TOKENS, 10), 16, 2)


def test_an_empty_pool(ledger: InstanceLedger) -> None:
    """Whole pages only, the reserve kept back; an instance below the reserve has nothing."""
    view = ledger.view(5.0)
    assert view.queue_s == (0.0, 0.0, 0.0)
    assert view.free_tokens == view.capacity_tokens == (992, 496, 0)
    assert view.instances_per_node == 2


def test_a_plan_keeps_its_whole_last_group_busy_until_its_end(ledger: InstanceLedger) -> None:
    ledger.bind(0, plan(((0,), 1.0), ((0, 1), 3.0)), 100.0, {0: 160, 1: 32})
    assert ledger.view(100.5).queue_s == (2.5, 2.5, 0.0)
    assert ledger.free_tokens() == (832, 464, 0)
    assert ledger.view(104.0).queue_s == (0.0, 0.0, 0.0), "overdue work counts as none left"


def test_the_longest_of_several_plans_counts_and_slots_add_up(ledger: InstanceLedger) -> None:
    ledger.bind(0, plan(((0,), 1.0)), 100.0, {0: 160})
    ledger.bind(1, plan(((0,), 4.0)), 100.0, {0: 320})
    assert ledger.view(100.0).queue_s[0] == 4.0
    assert ledger.free_tokens()[0] == 992 - 480


def test_slots_outlive_the_work_and_are_released_once(ledger: InstanceLedger) -> None:
    ledger.bind(0, plan(((0, 1), 2.0)), 0.0, {0: 160, 1: 160})
    ledger.computed(0)
    assert ledger.view(0.0).queue_s == (0.0, 0.0, 0.0)
    assert ledger.free_tokens() == (832, 336, 0)
    ledger.release(0)
    ledger.release(0)
    assert ledger.free_tokens() == (992, 496, 0)


def test_a_delay_moves_the_plan_and_what_shares_an_instance_behind_it() -> None:
    ledger = InstanceLedger((1000,) * 4, 1, 4)
    ledger.bind(0, plan(((0,), 9.0)), 0.0, {})
    ledger.bind(1, plan(((0, 1), 2.0)), 0.0, {})
    ledger.bind(2, plan(((1, 2), 3.0)), 0.0, {})
    ledger.bind(3, plan(((3,), 5.0)), 0.0, {})
    ledger.ended(1, 0, 2.5)
    assert ledger.view(0.0).queue_s == (9.0, 3.5, 3.5, 5.0), "0 came before 1, 3 shares nothing"
    ledger.ended(1, 0, 1.5)
    assert ledger.view(0.0).queue_s == (9.0, 2.5, 2.5, 5.0)


def test_a_delay_counts_once_for_those_behind() -> None:
    """Four tasks of a second each in a line; only the first takes two."""
    ledger = InstanceLedger((1000,), 1, 1)
    for seq in range(4):
        ledger.bind(seq, plan(((0,), seq + 1.0)), 0.0, {})
    for seq in range(4):
        ledger.ended(seq, 0, seq + 2.0)
        ledger.computed(seq)
        assert ledger.view(seq + 2.0).queue_s == (3.0 - seq,)


def test_a_plans_later_chunks_end_as_late_as_its_first() -> None:
    ledger = InstanceLedger((1000,) * 2, 1, 2)
    ledger.bind(0, plan(((0,), 1.0), ((0, 1), 3.0)), 10.0, {})
    ledger.ended(0, 0, 11.5)
    assert ledger.view(11.5).queue_s == (2.0, 2.0)
    ledger.ended(0, 1, 13.5)
    assert ledger.view(13.5).queue_s == (0.0, 0.0), "the second was exactly as long as planned"


def test_a_rest_that_ends_sooner_moves_what_stands_behind_it() -> None:
    """At 11 s the second chunk of a plan, due at 13 s, gets another group and ends at 12 s."""
    ledger = InstanceLedger((1000 + RESERVE_TOKENS,) * 3, 1, 3)
    ledger.bind(0, plan(((0,), 1.0), ((0, 1), 3.0)), 10.0, {0: 40, 1: 30})
    ledger.bind(1, plan(((1,), 5.0)), 10.0, {1: 100})
    placed = Placed(20, (0,), 20)
    ledger.ended(0, 0, 11.0)
    view = ledger.view_of_rest(0, placed, 11.0)
    assert view.queue_s == (0.0, 0.0, 0.0)
    assert view.free_tokens == (980, 900, 1000), "what it holds on 0 is not free"
    assert view.up == (True, True, True)
    assert ledger.view_of_rest(1, Placed(0, (), 0), 11.0).queue_s == (2.0, 2.0, 0.0)
    assert ledger.due_s(0) == 13.0
    ledger.rebind(0, 1, plan(((0, 2), 1.0)), 11.0, {0: 30, 2: 10})
    assert ledger.view(11.0).queue_s == (1.0, 3.0, 1.0)
    assert ledger.free_tokens() == (970, 900, 990)
    ledger.ended(0, 1, 12.5)
    assert ledger.view(12.5).queue_s == (0.0, 1.5, 0.0), "1 stands behind it no longer"


def test_a_rest_may_join_where_nothing_was_bound_later() -> None:
    ledger = InstanceLedger((1000,) * 4, 1, 4)
    ledger.bind(0, plan(((2,), 9.0)), 0.0, {})
    ledger.bind(1, plan(((0,), 1.0), ((0, 1), 2.0)), 0.0, {})
    ledger.bind(2, plan(((3,), 4.0)), 0.0, {})
    view = ledger.view_of_rest(1, Placed(10, (0,), 10), 1.0)
    assert view.up == (True, True, True, False)
    assert view.queue_s == (0.0, 0.0, 8.0, 3.0)
    ledger.computed(2)
    assert ledger.view_of_rest(1, Placed(10, (0,), 10), 1.0).up == (True,) * 4


def test_unknown_plans_change_nothing(ledger: InstanceLedger) -> None:
    before = ledger.view(0.0)
    ledger.ended(9, 0, 1.0)
    ledger.computed(9)
    ledger.release(9)
    assert ledger.view(0.0) == before


def test_what_status_pages_show(ledger: InstanceLedger) -> None:
    ledger.bind(0, plan(((1,), 2.0)), 10.0, {1: 16})
    assert ledger.snapshot(11.0) == {
        "instances": 3,
        "queue_s": [0.0, 1.0, 0.0],
        "free_tokens": [992, 480, 0],
        "capacity_tokens": [992, 496, 0],
        "absent": [],
        "roles": ["both"] * 3,
        "decoding": [0] * 3,
    }


def test_nothing_is_planned_on_an_absent_instance(ledger: InstanceLedger) -> None:
    assert ledger.view(0.0).up is None
    ledger.leaves(1)
    view = ledger.view(0.0)
    assert view.up == (True, False, True)
    assert view.capacity_tokens == (992, 496, 0), "admission goes by the whole pool"
    assert ledger.snapshot(0.0)["absent"] == [1]
    ledger.comes(1)
    assert ledger.view(0.0).up is None


def test_a_process_that_has_ended_holds_nothing(ledger: InstanceLedger) -> None:
    ledger.bind(0, plan(((0, 1), 2.0)), 0.0, {0: 160, 1: 160})
    ledger.emptied(1)
    assert ledger.free_tokens() == (832, 496, 0)
    assert ledger.view(0.0).queue_s == (2.0, 0.0, 0.0)
    ledger.release(0)
    assert ledger.free_tokens() == (992, 496, 0)


def decodes(ledger: InstanceLedger) -> None:
    """A request that SGLang runs on instance 0, with 160 slots."""
    ledger.bind(0, plan(((0,), 2.0)), 0.0, {0: 160})
    ledger.keep_only(0, 0)


def test_slots_of_a_move_are_kept_until_its_target_lets_go(ledger: InstanceLedger) -> None:
    """Whatever becomes of the request meanwhile."""
    decodes(ledger)
    ledger.moves(0, 1, 192)
    assert ledger.free_tokens() == (832, 304, 0)
    assert (ledger.decoding(0), ledger.decoding(1)) == (1, 1)
    ledger.taken(1, 100)
    assert ledger.free_tokens()[1] == 208, "what others hold there does not cover it"
    ledger.taken(1, 0)
    ledger.release(0)
    assert ledger.free_tokens() == (992, 304, 0)
    ledger.not_moved(0)
    assert ledger.free_tokens() == (992, 496, 0)
    assert ledger.decoding(1) == 0


def test_a_moved_request_counts_at_both_until_its_source_has_freed_it(
    ledger: InstanceLedger,
) -> None:
    decodes(ledger)
    ledger.moves(0, 1, 192)
    ledger.moved(0)
    assert ledger.free_tokens() == (832, 304, 0)
    ledger.taken(1, 100)
    assert ledger.free_tokens()[1] == 304, "what it holds there is among what was promised"
    ledger.left(0, 0)
    assert ledger.free_tokens() == (992, 304, 0)
    ledger.release(0)
    assert ledger.free_tokens()[0] == 992


def test_a_prefix_that_several_plans_start_from_takes_its_slots_once() -> None:
    """It is locked by each of them, and stays until the last one has ended."""
    ledger = InstanceLedger(capacity=(1064, 1064), page_size=4, instances_per_node=2)
    prefix = SharedSlots(1, 600)
    for seq in range(3):
        ledger.bind(seq, plan(((1,), 1.0)), 0.0, {1: 640}, prefix=prefix)
    assert ledger.free_tokens() == (1000, 1000 - 640 - 40 - 40)
    assert ledger.prefixes(1) == [prefix] * 3
    assert ledger.prefixes(0) == []
    ledger.decodes(1)
    ledger.taken(1, 700)  # 600 are the prefix
    assert ledger.free_tokens()[1] == 1000 - 700 - 40 - 40
    ledger.release(1)
    ledger.taken(1, 0)
    assert ledger.free_tokens()[1] == 1000 - 640 - 40
    ledger.release(0)
    assert ledger.free_tokens()[1] == 1000 - 640
    ledger.release(2)
    assert ledger.free_tokens() == (1000, 1000)
    assert ledger.prefixes(1) == []


def test_who_has_left_the_holder_shares_nothing_there() -> None:
    ledger = InstanceLedger(capacity=(1064, 1064), page_size=4, instances_per_node=2)
    prefix = SharedSlots(1, 600)
    for seq in range(2):
        ledger.bind(seq, plan(((1,), 1.0)), 0.0, {1: 640}, prefix=prefix)
        ledger.decodes(seq)
    ledger.moves(0, 0, 680)
    ledger.moved(0)
    ledger.left(0, 1)
    assert ledger.free_tokens() == (1000 - 680, 1000 - 640)
    assert ledger.prefixes(1) == [prefix]
