"""The table of phases and events, and that nothing happens to a request outside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.controller.phases import NEXT, Event, IllegalEventError, Phase, after
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import TWO_CHUNKS, every_report, phase_is, with_pages
from tests.controller.fake_pool import FakePool

LEGAL_REPORTS = {
    Phase.BOUND: {"Ready", "Failed", "WriteLost"},
    Phase.RUNNING: {
        *("Ready", "ChunkDone", "FirstToken", "PromptLogprobs"),
        *("Failed", "WriteLost", "Drained", "DecodeEnded", "Retracted"),
    },
    Phase.DRAINING: {
        *("Ready", "ChunkDone", "FirstToken", "PromptLogprobs"),
        *("Failed", "WriteLost", "Drained", "DecodeEnded", "Retracted"),
    },
    Phase.RELEASING: {"Failed", "Released", "DecodeEnded", "Retracted"},
}


def test_every_phase_and_every_event_is_in_the_table() -> None:
    assert set(NEXT) == set(Phase)
    assert {event for legal in NEXT.values() for event in legal} == set(Event)
    reached = {phase for legal in NEXT.values() for phase in legal.values()}
    assert reached == set(Phase) - {Phase.ARRIVED}, "a phase that nothing leads to"


def test_every_phase_leads_to_the_end() -> None:
    ends = {Phase.ENDED}
    for _ in Phase:
        ends |= {phase for phase, legal in NEXT.items() if ends & set(legal.values())}
    assert ends == set(Phase)


@given(st.sampled_from(Phase), st.sampled_from(Event))
def test_any_other_pair_is_an_error_that_names_both(phase: Phase, event: Event) -> None:
    if event in NEXT[phase]:
        assert after(phase, event, "r") in Phase
        return
    with pytest.raises(IllegalEventError) as error:
        after(phase, event, "r")
    assert repr(phase.value) in str(error.value)
    assert repr(event.value) in str(error.value)


def test_an_illegal_event_leaves_the_phase_as_it_was() -> None:
    request = PoolRequest("r", None, 1, 0.0)
    with pytest.raises(IllegalEventError):
        request.advance(Event.GO)
    assert request.phase is Phase.ARRIVED


class Deaf(FakePool):
    """A pool that carries out no further order once it is deaf: reports may then be invented."""

    deaf = False

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        if not self.deaf:
            super().go(request, instances)

    def stop(self, request: PoolRequest, instances: Iterable[int]) -> None:
        if not self.deaf:
            super().stop(request, instances)


@pytest.mark.parametrize("phase", LEGAL_REPORTS)
def test_the_door_takes_the_legal_reports_and_no_others(phase: Phase) -> None:
    """What cannot be of a task in its phase raises, and the request goes on as it would have."""
    taken = set()
    for report in every_report(0):
        pool = Deaf()
        request = with_pages(pool, TWO_CHUNKS)
        pool.until(partial(phase_is, request, phase))
        pool.deaf = True
        try:
            pool.lifecycle.on_report(report)
        except IllegalEventError:
            pool.deaf = False
            pool.settle()
            assert request.outcome == "finished"
        else:
            taken.add(type(report).__name__)
    assert taken == LEGAL_REPORTS[phase]


def test_a_stock_request_takes_none_of_a_tasks_reports() -> None:
    for report in every_report(0):
        pool = FakePool()
        request = with_pages(pool, [(10, [2])])
        assert request.phase is Phase.STOCK
        if type(report).__name__ in ("FirstToken", "StockEnded", "Retracted"):
            pool.lifecycle.on_report(report)
            continue
        with pytest.raises(IllegalEventError, match="stock"):
            pool.lifecycle.on_report(report)
