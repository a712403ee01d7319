"""One rank of a server that decodes what it prefills: what is taken, handed over, given back."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from sglang_cdsp.engine import home_requests
from sglang_cdsp.engine.req_state import STAYS
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    DecodeEnded,
    Drained,
    Failed,
    FirstToken,
    LogprobPart,
    LogprobSpec,
    OutputState,
    PlanOrder,
    Ready,
    Released,
    ReleaseOrder,
    RestOrder,
    ResumeOrder,
    Retracted,
    StopOrder,
)
from tests.engine.fake_rank import CHUNKS, PAGES, FakeJoining, Rank

TOKENS = sum(tokens for tokens, _ in CHUNKS)


def joining(rank: Rank) -> FakeJoining:
    """Where computed prompts wait for a row."""
    assert rank.joining is not None
    return rank.joining


def computed(rank: Rank) -> None:
    """Run all chunks of the plan."""
    rank.plan()
    rank.request()
    for chunk in range(len(CHUNKS)):
        rank.engine.step()
        rank.go(chunk)


def test_home_ends_with_all_slots_and_hands_them_over_with_the_request() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    assert rank.allocator.available_size() == PAGES - TOKENS
    rank.engine.step()
    (slots,) = joining(rank).slots
    assert slots.numel() == TOKENS == slots.unique().numel()
    assert rank.engine.held_tokens == 0
    assert FirstToken in rank.kinds()


def test_a_request_that_has_joined_is_not_answered_by_the_engine() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    rank.engine.step()
    rank.engine.step()
    assert Drained in rank.kinds()
    rank.engine.on_release(ReleaseOrder(seq=0, error="a member broke after home was done"))
    assert rank.last(Released) == {"seq": 0, "joined": True}
    rank.scheduler.output_streamer.stream_output.assert_not_called()
    assert rank.allocator.available_size() == PAGES - TOKENS, "the request has them"
    assert not rank.engine.idle
    (req,) = joining(rank).reqs
    req.output_ids = [5, 6, 7]
    joining(rank).reqs.clear()  # SGLang has it, and it ends
    rank.engine.step()
    assert rank.last(DecodeEnded)["seq"] == 0
    assert rank.engine.idle


def test_a_request_that_never_joined_is_answered_at_its_release() -> None:
    """Dropped by the controller, before its last chunk was over."""
    rank = Rank(decodes=True)
    rank.plan()
    req = rank.request()
    rank.engine.step()
    rank.engine.on_stop(StopOrder(seq=0))
    rank.engine.step()
    rank.engine.on_release(ReleaseOrder(seq=0, error="another member broke"))
    assert rank.last(Released) == {"seq": 0, "joined": False}
    stream = rank.scheduler.output_streamer.stream_output
    stream.assert_called_once_with([req], req.return_logprob, None)
    assert rank.allocator.available_size() == PAGES
    assert rank.engine.idle


def test_all_of_max_new_tokens_is_generated_here() -> None:
    rank = Rank(decodes=True)
    rank.plan()
    req = Mock(to_finish=None, finished=lambda: False, rid="r")
    req.sampling_params.max_new_tokens = 24
    assert rank.engine.adopt(req)
    assert req.sampling_params.max_new_tokens == 24


def test_another_member_frees_its_slots_at_the_release() -> None:
    rank = Rank(1, decodes=True)
    rank.plan()
    for chunk in (1, 2):
        rank.engine.step()
        rank.go(chunk)
    rank.engine.step()
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert rank.last(Released) == {"seq": 0, "joined": False}
    assert rank.allocator.available_size() == PAGES
    assert joining(rank).reqs == []


def test_prompt_logprobs_are_complete_before_a_request_joins() -> None:
    rank = Rank(decodes=True)
    tokens = bytes(8 * 64)
    spec = LogprobSpec(start=0, top=0, token_ids=None)
    order = PlanOrder(rid="r", seq=0, tokens=tokens, chunks=[(64, [0])], logprobs=spec)
    rank.engine.on_plan(order)
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.engine.step()
    assert joining(rank).reqs == []
    task = rank.engine._tasks[0]
    collected: list[LogprobPart] = []

    def collect(task: ChunkTask) -> str:
        collected.extend(task.logprob_parts)
        return ""

    rank.engine._work.collect_logprobs = collect  # type: ignore[method-assign]
    task.logprob_parts.append(LogprobPart(0, [0], [-1.0], [], [], [], []))
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert len(joining(rank).reqs) == len(collected) == 1
    assert rank.last(Released)["joined"]


def test_a_task_waits_for_slots_that_requests_hold() -> None:
    """Short of slots is no failure: what decodes ends, or is retracted."""
    rank = Rank(decodes=True)
    held = rank.allocator.alloc(PAGES - 10)
    assert held is not None
    rank.plan()
    rank.request()
    rank.engine.step()
    assert rank.said == []
    rank.allocator.free(held)
    rank.engine.step()
    assert rank.kinds() == [Ready]


def test_a_waiting_task_gives_its_slots_back_and_takes_them_when_it_starts() -> None:
    rank = Rank(decodes=True)
    rank.plan()
    rank.request()
    rank.engine.step()
    assert rank.last(Ready)["chunk"] == 0
    rank.engine.give_back()
    assert rank.allocator.available_size() == PAGES
    held = rank.allocator.alloc(PAGES - 10)
    assert held is not None
    rank.enter(0)
    for _ in range(3):
        rank.engine.step()
    assert rank.computed == [], "it waits inside for what it gave back"
    rank.allocator.free(held)
    for _ in range(5):
        rank.engine.step()
    assert rank.computed == [CHUNKS[0][0]]


def test_a_task_that_has_begun_gives_nothing_back() -> None:
    rank = Rank(decodes=True)
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.engine.step()
    free = rank.allocator.available_size()
    rank.engine.give_back()
    assert rank.allocator.available_size() == free


def test_an_order_to_stop_or_cancel_reaches_what_has_joined() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    rank.engine.step()
    rank.stop()
    rank.engine.on_cancel(CancelOrder(seq=0))
    assert [rid.startswith("cdsp-cancelled-0-") for rid in rank.cancelled] == [True, True]
    assert len(joining(rank).reqs) == 1


def test_a_changed_rest_frees_what_home_was_to_gather() -> None:
    rank = Rank(decodes=True)
    rank.plan()
    rank.request()
    for chunk in (0, 1):
        rank.engine.step()
        rank.go(chunk)
    free = rank.allocator.available_size()
    rank.engine.step()
    assert rank.allocator.available_size() == PAGES - TOKENS, "it is ready for the last chunk"
    rest = [*CHUNKS[:2], (32, [0, 1]), (32, [0, 1])]
    rank.engine.on_rest(RestOrder(seq=0, revision=1, chunk=2, chunks=rest))
    assert rank.allocator.available_size() == free
    for chunk in (2, 3):
        rank.engine.step()
        rank.go(chunk, revision=1)
    rank.engine.step()
    (slots,) = joining(rank).slots
    assert slots.numel() == TOKENS == slots.unique().numel()


def test_a_home_before_the_first_chunk_gives_the_request_back() -> None:
    rank = Rank(decodes=True)
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.engine.on_rest(RestOrder(seq=0, revision=1, chunk=0, chunks=[(TOKENS, [1, 0])]))
    rank.engine.step()
    rank.go(0, revision=1)
    rank.engine.step()
    assert joining(rank).reqs == []
    rank.scheduler.output_streamer.stream_output.assert_not_called()
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert rank.last(Released) == {"seq": 0, "joined": False}
    assert rank.allocator.available_size() == PAGES


# -- requests that are computed anew, here or at another home----------------------------------


def test_a_long_request_that_sglang_retracts_goes_back_with_its_output() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    rank.engine.step()
    (req,) = joining(rank).reqs
    retracted(req)
    assert rank.engine.gives_back(req)
    assert rank.last(Retracted) == {
        "seq": 0,
        "output": OutputState(tokens=[7, 8], sent=1, cached_tokens=3, retractions=1),
    }
    joining(rank).reqs.clear()  # SGLang has it no more
    rank.engine.step()
    assert DecodeEnded not in rank.kinds()
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert rank.last(Released) == {"seq": 0, "joined": False}
    assert rank.engine.idle


def test_what_is_short_aborted_strange_or_nobodys_stays_with_sglang() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    rank.engine.step()
    (req,) = joining(rank).reqs
    retracted(req)
    rank.engine._home._stock_tokens = TOKENS + 2
    assert not rank.engine.gives_back(req)
    rank.engine._home._stock_tokens = 0
    for field, value in (("to_finish", "an abort"), ("custom_logit_processor", "a processor")):
        before = getattr(req, field)
        setattr(req, field, value)
        assert not rank.engine.gives_back(req)
        setattr(req, field, before)
    assert not rank.engine.gives_back(retracted(Mock()))
    assert Retracted not in rank.kinds()
    assert rank.engine.gives_back(req)


def retracted(req: Any) -> Any:
    """SGLang has taken a request out of its batch, with two tokens, one of which was sent."""
    req.origin_input_ids, req.output_ids = [0] * TOKENS, [7, 8]
    req.send_token_offset, req.cached_tokens, req.retraction_count = 1, 3, 1
    for field in STAYS:
        setattr(req, field, None)
    return req


def test_home_lets_go_of_what_is_to_be_computed_anew() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    rank.engine.step()
    rank.engine.on_stop(StopOrder(seq=0, resumes=True))
    assert joining(rank).reqs == []
    assert rank.allocator.available_size() == PAGES
    assert rank.cancelled == []
    rank.engine.step()
    rank.engine.on_release(ReleaseOrder(seq=0, silent=True))
    assert rank.last(Released) == {"seq": 0, "joined": False}
    assert DecodeEnded not in rank.kinds()
    assert rank.engine.idle


def test_nor_does_it_join_when_the_order_comes_before() -> None:
    rank = Rank(decodes=True)
    computed(rank)
    rank.engine.on_stop(StopOrder(seq=0, resumes=True))
    rank.engine.step()
    assert joining(rank).reqs == []
    rank.engine.on_release(ReleaseOrder(seq=0, silent=True))
    assert rank.allocator.available_size() == PAGES
    rank.scheduler.output_streamer.stream_output.assert_not_called()


def test_a_request_goes_on_from_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[Any] = []
    monkeypatch.setattr(home_requests, "restore", lambda *what: restored.append(what[1:]))
    rank = Rank(decodes=True)
    rank.plan()
    output = OutputState(tokens=[5, 6], sent=2)
    rank.engine.on_resume(ResumeOrder(rid="r", seq=0, output=output))
    req = rank.request()
    assert restored == [(req, output)]


def test_a_request_that_cannot_go_on_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_requests, "restore", Mock(side_effect=ValueError("a bad grammar")))
    rank = Rank(decodes=True)
    rank.plan()
    order = ResumeOrder(rid="r", seq=0, output=OutputState(tokens=[5], sent=1))
    rank.engine.on_resume(order)
    req = rank.request()
    assert "a bad grammar" in req.set_finish_with_abort.call_args.args[0]
    assert rank.last(Failed)["bad_request"]
