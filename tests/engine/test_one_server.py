"""One rank of a server that decodes what it prefills: what is taken, handed over, given back."""

from __future__ import annotations

from unittest.mock import Mock

from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    DecodeEnded,
    Drained,
    FirstToken,
    LogprobPart,
    LogprobSpec,
    PlanOrder,
    Ready,
    Released,
    ReleaseOrder,
    RestOrder,
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
    assert rank.last(DecodeEnded)["output_tokens"] == 3
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
