"""Who is dead and who is slow, with a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.controller.seats.launcher import Vitals
from sglang_cdsp.controller.seats.states import Cause
from sglang_cdsp.controller.seats.watch import (
    LONGEST_STEP_S,
    SILENT_AFTER_S,
    STOPPED_GRACE_S,
    SeatWatch,
    Symptom,
)

STEP_S = 0.25


class Seat:
    """A seat of two ranks that is looked at."""

    def __init__(self) -> None:
        self.watch = SeatWatch()
        self.now_s = 50.0
        self.beats = [0, 0]
        self.stopped: tuple[int, ...] = ()

    def look(self) -> list[Symptom]:
        return self.watch.look(self.now_s, {3: Vitals(tuple(self.beats), self.stopped)})

    def pass_time(self, seconds: float, beating: tuple[int, ...] = (0, 1)) -> list[Symptom]:
        """Let time pass; return what was seen first, if anything."""
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            for rank in beating:
                self.beats[rank] += 1
            if found := self.look():
                return found
        return []


def test_who_beats_lives_however_long_its_work_takes() -> None:
    seat = Seat()
    assert seat.pass_time(100 * SILENT_AFTER_S) == []


def test_one_rank_that_is_silent_makes_its_seat_dead() -> None:
    seat = Seat()
    assert seat.pass_time(5.0) == []
    assert seat.pass_time(SILENT_AFTER_S - 1.0, beating=(0,)) == []
    (symptom,) = seat.pass_time(2.0, beating=(0,))
    assert (symptom.seat, symptom.cause) == (3, Cause.SILENT)
    assert "rank 1" in symptom.words


def test_who_still_imports_is_not_silent() -> None:
    seat = Seat()
    assert seat.pass_time(100 * SILENT_AFTER_S, beating=()) == []


def test_a_rank_that_still_imports_is_not_silent_while_another_one_counts() -> None:
    seat = Seat()
    assert seat.pass_time(2 * SILENT_AFTER_S, beating=(1,)) == []
    assert seat.pass_time(2 * SILENT_AFTER_S) == []
    (symptom,) = seat.pass_time(2 * SILENT_AFTER_S, beating=(1,))
    assert "rank 0" in symptom.words


def test_who_is_stopped_has_a_grace() -> None:
    seat = Seat()
    assert seat.pass_time(5.0) == []
    seat.stopped = (4711,)
    assert seat.pass_time(STOPPED_GRACE_S - STEP_S, beating=()) == []
    seat.stopped = ()
    assert seat.pass_time(1.0) == []
    seat.stopped = (4711,)
    (symptom,) = seat.pass_time(2 * STOPPED_GRACE_S, beating=())
    assert symptom.cause is Cause.STOPPED
    assert "4711" in symptom.words


@given(pauses=st.lists(st.floats(0.0, 1000.0), max_size=30))
def test_time_in_which_the_controller_did_not_run_counts_for_nobody(pauses: list[float]) -> None:
    """All processes are stopped together, and go on together, time and again."""
    seat = Seat()
    assert seat.pass_time(1.0) == []
    for pause in pauses:
        seat.now_s += pause
        seat.stopped = (1, 2)  # they are let go one after the other
        assert seat.look() == []
        seat.stopped = ()
        assert seat.pass_time(2 * STEP_S) == []


def test_a_long_look_counts_as_a_short_one() -> None:
    seat = Seat()
    assert seat.pass_time(1.0) == []
    for _ in range(round(SILENT_AFTER_S / LONGEST_STEP_S) - 1):
        seat.now_s += 60.0
        assert seat.look() == []
    seat.now_s += 60.0
    assert [symptom.cause for symptom in seat.look()] == [Cause.SILENT]


def test_a_next_life_begins_anew() -> None:
    seat = Seat()
    assert seat.pass_time(5.0) == []
    assert seat.pass_time(SILENT_AFTER_S - 1.0, beating=()) == []
    seat.watch.look(seat.now_s, {})
    assert seat.pass_time(10 * SILENT_AFTER_S, beating=()) == [], "it has not begun to beat"
    assert seat.pass_time(1.0) == []
    assert seat.pass_time(SILENT_AFTER_S + 1.0, beating=()) != []
