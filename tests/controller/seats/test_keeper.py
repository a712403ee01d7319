"""How seats are kept filled: from a death to the next life that takes part."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.seats.launcher import Failing
from sglang_cdsp.controller.seats.states import Cause, SeatState
from sglang_cdsp.controller.seats.watch import STOPPED_GRACE_S
from sglang_cdsp.protocol.messages import Answered, InviteOrder, LeaveOrder, LinkOrder, Ready
from tests.controller.seats.fake_seats import SLOTS, Seats

KILLED = Failing(1, 1, Cause.ENDED, "killed")


@pytest.fixture
def seats() -> Seats:
    return Seats()


def test_a_death_is_told_at_once_and_its_end_when_it_is_confirmed(seats: Seats) -> None:
    seats.tick(KILLED)
    assert seats.requests.told == [("lost", 1)]
    assert seats.launcher.killed == [1]
    assert seats.wires.listens == {0: True, 1: False, 2: True}
    for other in (0, 2):
        (order,) = seats.wires.sent[other]
        assert isinstance(order, LeaveOrder)
        assert (order.seat, order.incarnation) == (1, 1)
    seats.tick(seconds=1000.0)
    assert seats.launcher.started == [], "nobody is started beside who may live"
    assert seats.requests.told == [("lost", 1)]
    assert seats.wires.empty == []
    seats.confirm_end(1)
    assert seats.wires.empty == [1]
    assert seats.requests.told == [("lost", 1), ("ended", 1), ("comes back", 1)]
    seats.tick(seconds=1.0)
    assert seats.launcher.started == [(1, 2, SLOTS)]
    assert seats.observer.seen == [
        (1, "ended"),
        (1, 1, "ending"),
        (1, 1, "down"),
        (1, 2, "starting"),
    ]


def restart(seats: Seats) -> None:
    """Kill seat 1 and let its next life come up to its greeting."""
    seats.tick(Failing(1, seats.table.incarnation(1), Cause.ENDED, "killed"))
    seats.confirm_end(1)
    seats.tick(seconds=1.0)
    seats.requests.told.clear()
    seats.greet(1)


def test_a_next_life_is_linked_told_probed_and_takes_part(seats: Seats) -> None:
    restart(seats)
    assert seats.table.state(1) is SeatState.JOINING
    assert seats.wires.listens[1], "what all are told reaches it, too"
    assert seats.wires.repeated == [1]
    seats.invite(1)
    there = [order for order in seats.wires.sent[0] if isinstance(order, LinkOrder)]
    assert [(o.seat, o.incarnation, o.tp_rank, o.invitation) for o in there] == [
        (1, 2, 0, b"1.0>0"),
        (1, 2, 1, b"1.1>0"),
    ]
    here = [order for order in seats.wires.sent[1] if isinstance(order, LinkOrder)]
    assert sorted((o.seat, o.incarnation, o.tp_rank, o.invitation) for o in here) == [
        (seat, 1, rank, f"{seat}.{rank}>1".encode()) for seat in (0, 2) for rank in (0, 1)
    ]
    probed = []
    for _ in range(3):
        seats.tick()
        probed.append(seats.requests.end_probe())
    assert probed == [(1,), (1, 0), (1, 2)]
    assert ("up", 1) not in seats.requests.told
    seats.tick()
    assert seats.requests.told == [("up", 1)]
    assert seats.table.state(1) is SeatState.UP


def test_reports_of_former_lives_mean_nothing(seats: Seats) -> None:
    def ready(incarnation: int) -> Ready:
        return Ready(instance=1, tp_rank=0, at_s=0.0, incarnation=incarnation, seq=5, chunk=0)

    seats.keeper.on_report(ready(1))
    assert len(seats.requests.reports) == 1
    seats.tick(KILLED)
    seats.keeper.on_report(ready(1))
    restart_after_death(seats)
    seats.keeper.on_report(ready(1))
    assert len(seats.requests.reports) == 1
    seats.keeper.on_report(ready(2))
    assert len(seats.requests.reports) == 2


def restart_after_death(seats: Seats) -> None:
    seats.confirm_end(1)
    seats.tick(seconds=1.0)
    seats.greet(1)


def test_who_is_stopped_is_given_up_and_killed(seats: Seats) -> None:
    seats.launcher.stopped = {2}
    for _ in range(int(STOPPED_GRACE_S / 0.25) + 2):
        seats.tick(seconds=0.25)
    assert seats.launcher.killed == [2]
    assert (2, "stopped") in seats.observer.seen


def test_a_life_that_dies_in_its_start_concerns_no_request(seats: Seats) -> None:
    seats.tick(KILLED)
    seats.confirm_end(1)
    seats.tick(seconds=1.0)
    seats.requests.told.clear()
    seats.tick(Failing(1, 2, Cause.ENDED, "no memory"))
    seats.confirm_end(1)
    assert seats.requests.told == [("comes back", 1)]
    seats.tick(seconds=1.0)
    assert len(seats.launcher.started) == 1, "it backs off longer"
    seats.tick(seconds=1.0)
    assert len(seats.launcher.started) == 2
    seats.tick(Failing(1, 3, Cause.ENDED, "no memory"))
    seats.confirm_end(1)
    assert seats.requests.told[-1] == ("stays down", 1)
    assert "no memory" in seats.table.reason(1)


def test_a_life_that_dies_while_it_joins_leaves_the_way_to_the_next(seats: Seats) -> None:
    restart(seats)
    seats.invite(1)
    seats.tick()
    assert len(seats.requests.probes) == 1
    seats.tick(Failing(1, 2, Cause.ENDED, "killed"))
    assert seats.requests.told == [("lost", 1)], "its probe is a request on it"
    seats.confirm_end(1)
    seats.requests.probes.clear()
    seats.tick(seconds=2.0)
    seats.greet(1)
    seats.invite(1)
    for _ in range(3):
        seats.tick()
        seats.requests.end_probe()
    seats.tick()
    assert seats.table.state(1) is SeatState.UP


def test_less_memory_than_before_keeps_the_seat_down_with_that_reason(seats: Seats) -> None:
    """It is tried again: what the former life had may take a moment to come back."""
    seats.tick(KILLED)
    seats.confirm_end(1)
    for tried in (1, 2):
        seats.tick(seconds=2.0)
        assert len(seats.launcher.started) == tried
        seats.greet(1, kv_capacity=SLOTS - 16)
        assert seats.launcher.killed == [1] * (tried + 1)
        seats.confirm_end(1)
    seats.tick(seconds=1000.0)
    assert len(seats.launcher.started) == 2
    assert "memory for 484 KV slots only" in seats.table.reason(1)
    seats.keeper.start(1)
    seats.tick()
    assert len(seats.launcher.started) == 3, "somebody says that there is room"


def test_a_failed_probe_makes_a_life_unfit(seats: Seats) -> None:
    restart(seats)
    seats.invite(1)
    seats.tick()
    seats.requests.end_probe("attention failed")
    seats.tick()
    assert seats.table.state(1) is SeatState.ENDING
    assert "attention failed" in seats.table.reason(1)


def test_a_partner_that_dies_meanwhile_is_not_the_new_lifes_fault(seats: Seats) -> None:
    restart(seats)
    seats.tick(Failing(2, 1, Cause.ENDED, "killed"))
    seats.invite(1)
    seats.tick()
    assert seats.requests.end_probe() == (1,)
    seats.tick()
    assert seats.requests.end_probe() == (1, 0)
    seats.tick()
    assert seats.table.state(1) is SeatState.UP


def test_a_partner_that_dies_during_its_probe(seats: Seats) -> None:
    restart(seats)
    seats.invite(1)
    seats.tick()
    seats.requests.end_probe()
    seats.tick()
    seats.tick(Failing(0, 1, Cause.ENDED, "killed"))
    assert seats.requests.end_probe("instance 0 was lost") == (1, 0)
    seats.tick()
    assert seats.requests.end_probe() == (1, 2)
    seats.tick()
    assert seats.table.state(1) is SeatState.UP


def test_a_partner_without_room_for_a_link_is_named(seats: Seats) -> None:
    restart(seats)
    (order,) = [o for o in seats.wires.sent[0] if isinstance(o, InviteOrder)]
    seats.answer_invitation(0, order, error="no address space")
    seats.tick()
    assert "instance 0 has no room for a link: no address space" in seats.table.reason(1)


def test_lives_join_one_after_the_other_and_meet_each_other(seats: Seats) -> None:
    for seat in (1, 2):
        seats.tick(Failing(seat, 1, Cause.ENDED, "killed"))
        seats.confirm_end(seat)
    seats.tick(seconds=1.0)
    seats.greet(2)
    seats.greet(1)
    invited = [o.seat for o in seats.wires.sent[0] if isinstance(o, InviteOrder)]
    assert invited == [2]
    seats.invite(2)
    for partners in ((2,), (2, 0)):
        seats.tick()
        assert seats.requests.end_probe() == partners
    seats.tick()
    seats.tick()
    assert [o.seat for o in seats.wires.sent[2] if isinstance(o, InviteOrder)] == [1]
    seats.invite(1)
    for partners in ((1,), (1, 0), (1, 2)):
        seats.tick()
        assert seats.requests.end_probe() == partners
    seats.tick()
    assert seats.table.in_state(SeatState.UP) == (0, 1, 2)


def test_nothing_starts_or_joins_in_a_pause(seats: Seats) -> None:
    seats.wires.is_quiet = True
    seats.tick(KILLED)
    seats.confirm_end(1)
    seats.tick(seconds=60.0)
    assert seats.launcher.started == []
    seats.wires.is_quiet = False
    seats.tick()
    seats.wires.is_quiet = True
    seats.greet(1)
    assert seats.table.state(1) is SeatState.STARTING
    seats.wires.is_quiet = False
    seats.tick()
    assert seats.table.state(1) is SeatState.JOINING


def test_a_life_joins_when_it_has_done_what_its_predecessor_was_told(seats: Seats) -> None:
    seats.tick(KILLED)
    seats.confirm_end(1)
    seats.tick(seconds=1.0)
    seats.wires.behind = None
    seats.greet(1)
    seats.tick(seconds=60.0)
    assert seats.table.state(1) is SeatState.JOINING
    assert seats.wires.repeated == [1]
    assert not any(isinstance(order, InviteOrder) for order in seats.wires.sent[0])
    seats.wires.behind = ""
    seats.tick()
    assert any(isinstance(order, InviteOrder) for order in seats.wires.sent[0])


def test_a_life_that_cannot_do_it_leaves_its_seat_down(seats: Seats) -> None:
    seats.tick(KILLED)
    seats.confirm_end(1)
    seats.tick(seconds=1.0)
    seats.wires.behind = "no such folder"
    seats.greet(1)
    assert seats.table.state(1) is SeatState.ENDING
    seats.confirm_end(1)
    assert not seats.table.coming_back(1)
    assert "no such folder" in seats.table.reason(1)


def test_answers_of_a_former_life_mean_nothing(seats: Seats) -> None:
    def answer(incarnation: int) -> Answered:
        return Answered(
            instance=1, tp_rank=0, at_s=0.0, incarnation=incarnation, kind="k", payload=b""
        )

    seats.keeper.on_report(answer(1))
    assert seats.wires.answers == [answer(1)]
    seats.tick(KILLED)
    seats.keeper.on_report(answer(1))
    seats.confirm_end(1)
    seats.tick(seconds=1.0)
    seats.keeper.on_report(answer(1))
    assert seats.wires.answers == [answer(1)]


def test_a_seat_leaves_when_it_has_finished_and_returns(seats: Seats) -> None:
    seats.keeper.drain(1)
    assert seats.requests.told == [("draining", 1)]
    seats.tick(seconds=60.0)
    assert seats.launcher.killed == [], "it has work"
    seats.requests.idle = True
    seats.tick()
    assert seats.launcher.killed == [1]
    seats.confirm_end(1)
    assert seats.requests.told[1:] == [("lost", 1), ("ended", 1), ("stays down", 1)]
    seats.tick(seconds=1000.0)
    assert seats.launcher.started == []
    assert seats.table.snapshot(0.0, 0.0)[1]["deaths"] == []
    seats.keeper.start(1)
    assert seats.requests.told[-1] == ("comes back", 1)
    seats.tick()
    assert seats.launcher.started == [(1, 2, SLOTS)]


def test_a_drain_is_taken_back(seats: Seats) -> None:
    seats.keeper.drain(1)
    seats.keeper.start(1)
    assert seats.requests.told == [("draining", 1), ("up", 1)]
    seats.requests.idle = True
    seats.tick()
    assert seats.launcher.killed == []


def test_a_seat_that_comes_up_is_ended_by_a_drain(seats: Seats) -> None:
    restart(seats)
    seats.keeper.drain(1)
    assert seats.launcher.killed == [1, 1]
    seats.confirm_end(1)
    assert seats.table.reason(1) == "drained on request"
    assert seats.table.degraded == ()


def test_a_draining_seat_may_die(seats: Seats) -> None:
    seats.keeper.drain(1)
    seats.tick(KILLED)
    seats.confirm_end(1)
    assert seats.requests.told == [("draining", 1), ("lost", 1), ("ended", 1), ("stays down", 1)]
