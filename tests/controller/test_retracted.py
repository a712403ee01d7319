"""What SGLang retracts at its home is computed anew, from its prompt and its output."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.phases import Phase
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.going_on import assert_lost_and_goes_on, stream
from tests.controller.one_server import OneServerPool


@pytest.fixture
def pool() -> OneServerPool:
    return OneServerPool(size=4, policy="threshold:1000")


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
