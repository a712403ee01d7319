"""The seats' state machine: drawn orders of what can happen, and what must hold after each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sglang_cdsp.controller.seats.states import LIVING, Cause, SeatState
from sglang_cdsp.controller.seats.table import (
    DEATHS_ALLOWED,
    DEATHS_WITHIN_S,
    LONGEST_BACK_OFF_S,
    SeatTable,
)

SEATS = 3
SEAT = st.integers(0, SEATS - 1)


class Seats(RuleBasedStateMachine):
    """Draws events; those that are not due are left out as the keeper leaves them out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SeatTable(SEATS)
        self.now_s = 0.0
        self.dead = [0] * SEATS
        self.last_ended_s: dict[int, float] = {}
        self.lives = [0] * SEATS

    def state(self, seat: int) -> SeatState:
        return self.table.state(seat)

    @rule(seconds=st.floats(0.0, DEATHS_WITHIN_S))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def what_is_due_starts(self) -> None:
        for seat in self.table.due(self.now_s):
            before = self.table.incarnation(seat)
            assert self.table.started(seat) == before + 1
            self.lives[seat] += 1

    @rule(seat=SEAT)
    def it_comes_up(self, seat: int) -> None:
        if self.state(seat) is SeatState.STARTING:
            self.table.greeted(seat)
        elif self.state(seat) is SeatState.JOINING:
            self.table.joined(seat)

    @rule(seat=SEAT, cause=st.sampled_from(Cause))
    def it_dies(self, seat: int, cause: Cause) -> None:
        lived = self.state(seat) in LIVING
        assert self.table.lost(seat, cause, "for a test", self.now_s) == lived
        self.dead[seat] += lived

    @rule(seat=SEAT)
    def its_end_is_confirmed(self, seat: int) -> None:
        if self.state(seat) is SeatState.ENDING:
            self.table.ended(seat, self.now_s)
            self.last_ended_s[seat] = self.now_s
            assert self.state(seat) is SeatState.DOWN

    @rule(seat=SEAT)
    def it_is_held(self, seat: int) -> None:
        self.table.hold(seat, "for a test")
        assert seat not in self.table.due(float("inf"))

    @rule(seat=SEAT)
    def it_is_drained(self, seat: int) -> None:
        up = self.table.in_state(SeatState.UP)
        refusal = ""
        try:
            self.table.drain(seat)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert "last one" in refusal
            return
        assert up != (seat,), "the last seat that works was let go"
        assert not self.table.coming_back(seat)
        if self.state(seat) in (SeatState.STARTING, SeatState.JOINING):
            self.table.leaving(seat)

    @rule(seat=SEAT)
    def it_has_finished(self, seat: int) -> None:
        if self.state(seat) is SeatState.DRAINING:
            self.table.leaving(seat)

    @rule(seat=SEAT)
    def it_is_started(self, seat: int) -> None:
        self.table.start(seat, self.now_s)
        assert self.table.coming_back(seat)

    @invariant()
    def a_seat_has_at_most_one_life(self) -> None:
        for seat in range(SEATS):
            assert self.table.incarnation(seat) == self.lives[seat]
            if self.state(seat) is not SeatState.DOWN:
                assert seat not in self.table.due(float("inf")), "another life beside the present"

    @invariant()
    def who_is_down_says_why_or_comes_back(self) -> None:
        for seat in self.table.in_state(SeatState.DOWN):
            if self.table.incarnation(seat) and not self.table.coming_back(seat):
                assert self.table.reason(seat)
            if self.table.coming_back(seat) and seat in self.last_ended_s:
                latest_s = max(self.now_s, self.last_ended_s[seat]) + LONGEST_BACK_OFF_S
                assert seat in self.table.due(latest_s)

    @invariant()
    def it_is_shown(self) -> None:
        for seat, row in enumerate(self.table.snapshot(self.now_s, 1000.0)):
            assert row["seat"] == seat
            assert row["state"] == self.state(seat).value
            assert row["restarts"] == max(0, self.table.incarnation(seat) - 1)
            assert len(row["deaths"]) == min(self.dead[seat], 10)


TestSeats = Seats.TestCase


def brought_up(seats: int = 2) -> SeatTable:
    return SeatTable.all_up(seats)


def die(table: SeatTable, seat: int, now_s: float) -> None:
    assert table.lost(seat, Cause.ENDED, "killed", now_s)
    table.ended(seat, now_s)


def come_up(table: SeatTable, seat: int) -> None:
    table.started(seat)
    table.greeted(seat)
    table.joined(seat)


def test_three_deaths_in_ten_minutes_keep_it_down_until_somebody_starts_it() -> None:
    table = brought_up()
    for death in range(DEATHS_ALLOWED - 1):
        die(table, 1, 100.0 * death)
        assert table.due(100.0 * death) == (), "it backs off"
        assert table.due(100.0 * death + 2.0**death) == (1,)
        come_up(table, 1)
    die(table, 1, 500.0)
    assert table.due(float("inf")) == ()
    assert table.degraded == (1,)
    assert "3 deaths within 10 minutes" in table.reason(1)
    assert '{"seats": {"1": "start"}}' in table.reason(1)
    table.start(1, 501.0)
    assert table.due(501.0) == (1,)
    come_up(table, 1)
    die(table, 1, 502.0)
    assert table.coming_back(1), "earlier deaths do not count any more"


def test_deaths_long_ago_do_not_count() -> None:
    table = brought_up()
    for death in range(10):
        at_s = death * (DEATHS_WITHIN_S / 2 + 1)
        die(table, 0, at_s)
        assert table.coming_back(0)
        come_up(table, 0)
    assert len(table.snapshot(0.0, 0.0)[0]["deaths"]) == 10


def test_a_drained_seat_stays_down_and_is_no_death() -> None:
    table = brought_up()
    table.drain(1)
    assert table.state(1) is SeatState.DRAINING
    with pytest.raises(ValueError, match="the last one that works"):
        table.drain(0)
    table.leaving(1)
    table.ended(1, 5.0)
    row: dict[str, Any] = table.snapshot(5.0, 0.0)[1]
    assert (row["state"], row["deaths"], row["reason"]) == ("down", [], "drained on request")
    assert table.due(float("inf")) == ()
    assert table.degraded == ()
    table.start(1, 6.0)
    assert table.due(6.0) == (1,), "without a back-off"


def test_a_drain_can_be_taken_back() -> None:
    table = brought_up()
    table.drain(1)
    table.start(1, 1.0)
    assert table.state(1) is SeatState.UP


def test_what_cannot_be() -> None:
    table = brought_up()
    with pytest.raises(ValueError, match="there is no seat 2: they are 0 to 1"):
        table.drain(2)
    with pytest.raises(ValueError, match="seat 0 is up, not down"):
        table.started(0)
    with pytest.raises(ValueError, match="was not asked to leave"):
        table.leaving(0)
