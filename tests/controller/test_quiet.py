"""What waits for a quiet pool, in which order it goes out, and what may start meanwhile."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.controller.quiet import Control, Needs, QuietGate

PAUSED = frozenset({"paused"})
PAUSE: Control[str] = Control("pause", Needs.NO_CHUNK, closes=PAUSED)
CONTINUE: Control[str] = Control("continue", opens=PAUSED)
UPDATE: Control[str] = Control("update", Needs.EMPTY)
CHANGE: Control[str] = Control("change", Needs.NO_CHUNK)


def gate_with(*controls: Control[str]) -> QuietGate[str]:
    gate: QuietGate[str] = QuietGate()
    for control in controls:
        gate.submit(control)
    return gate


def test_what_needs_nothing_goes_out_at_once() -> None:
    gate = gate_with(Control("status"))
    assert gate.may_start
    assert gate.may_bind
    assert gate.due(running=True, holding=True) == ["status"]


def test_no_chunk_starts_while_a_message_waits_for_the_last_to_end() -> None:
    gate = gate_with(CHANGE)
    assert gate.due(running=True, holding=True) == []
    assert not gate.may_start
    assert gate.due(running=False, holding=True) == ["change"]
    assert gate.may_start


def test_chunks_of_requests_with_kv_go_on_until_the_pool_is_empty() -> None:
    gate = gate_with(UPDATE)
    assert gate.due(running=False, holding=True) == []
    assert gate.may_start, "else it would never be empty"
    assert not gate.may_bind
    assert gate.due(running=False, holding=False) == ["update"]
    assert gate.may_bind


def test_a_pause_lasts_until_it_is_over() -> None:
    gate = gate_with(PAUSE)
    assert gate.due(running=False, holding=True) == ["pause"]
    assert not gate.may_start
    assert not gate.may_bind
    assert gate.closed == PAUSED
    gate.submit(CONTINUE)
    assert gate.due(running=False, holding=True) == ["continue"]
    assert gate.may_start


def test_going_on_takes_back_a_pause_that_waits_and_nothing_else() -> None:
    gate = gate_with(PAUSE, CHANGE, CONTINUE)
    assert gate.due(running=True, holding=True) == ["continue"]
    assert gate.due(running=False, holding=True) == ["change"]
    assert gate.may_start


def test_going_on_comes_before_what_a_paused_pool_waits_for() -> None:
    gate = gate_with(PAUSE)
    gate.due(running=False, holding=True)
    gate.submit(UPDATE)
    gate.submit(CONTINUE)
    assert gate.due(running=False, holding=True) == ["continue"]
    assert gate.may_start


def test_only_a_hopeless_message_of_a_kind_is_withdrawn() -> None:
    gate = gate_with(UPDATE)
    assert gate.withdraw(str) is None, "chunks go on, so the pool becomes empty"
    gate = gate_with(PAUSE, UPDATE)
    gate.due(running=False, holding=True)
    assert gate.withdraw(int) is None
    assert gate.withdraw(str) == "update"
    assert gate.withdraw(str) is None


CONTROLS = st.sampled_from([PAUSE, CONTINUE, UPDATE, CHANGE, Control("status")])
EVENTS = st.lists(
    st.one_of(CONTROLS, st.sampled_from([(True, True), (False, True), (False, False)])),
    max_size=40,
)


@given(EVENTS)
def test_order_is_kept_and_nothing_goes_out_in_the_wrong_moment(
    events: list[Control[str] | tuple[bool, bool]],
) -> None:
    numbers = itertools.count()
    gate: QuietGate[tuple[int, Control[str]]] = QuietGate()
    out: list[tuple[int, Control[str]]] = []
    paused = False
    for event in events:
        if isinstance(event, Control):
            message = (next(numbers), event)
            gate.submit(Control(message, event.needs, event.closes, event.opens))
            continue
        running, holding = event
        for number, control in gate.due(running=running, holding=holding):
            assert not (control.needs is Needs.NO_CHUNK and running)
            assert not (control.needs is Needs.EMPTY and holding)
            paused = (paused or bool(control.closes)) and not control.opens
            out.append((number, control))
        assert gate.closed == (PAUSED if paused else frozenset())
        assert not (paused and (gate.may_start or gate.may_bind))
    waited = [number for number, control in out if control.needs is not Needs.NOTHING]
    assert waited == sorted(waited)
    gate.submit(Control((next(numbers), CONTINUE), opens=PAUSED))
    gate.due(running=False, holding=False)
    assert gate.may_start
    assert gate.may_bind
