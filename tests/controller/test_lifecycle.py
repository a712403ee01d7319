"""A request's way through the pool, case by case; every order is checked by the fakes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from http import HTTPStatus

import pytest

from sglang_cdsp.args import DEFAULT_STOCK_TOKENS
from sglang_cdsp.controller.decode.servers import DecodeRank
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.types import Plan, PlannedChunk
from sglang_cdsp.protocol.messages import LogprobPart, PromptLogprobs, StockBatch
from tests.controller.cases import ROOM, TWO_CHUNKS, empty, every_report, phase_is, with_pages
from tests.controller.fake_pool import Chunks, FakePool
from tests.controller.fake_tasks import Client, Sampling

# -- how it ends well -----------------------------------------------------------------------


def test_a_forced_plan_runs_its_chunks_and_frees_everything(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    assert (request.phase, request.policy) == (Phase.BOUND, "request")
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "finished")
    assert pool.answers[request.tokenized] == ["home finished"]
    assert pool.entered == {(0, 0): {0}, (0, 1): {0, 1}}
    assert request.first_token_s is not None
    assert all(times.end_s is not None for times in request.times)
    assert empty(pool)


def test_a_short_prompt_takes_its_instances_stock_path(pool: FakePool) -> None:
    request = pool.submit(10, room=ROOM)
    pool.decode_sends(ROOM, 0)
    pool.lifecycle.on_loop()
    assert request.one_instance
    pool.settle()
    assert pool.answers[request.tokenized] == ["stock finished"]
    assert pool.entered == {}
    assert empty(pool)


def test_a_request_waits_for_decodes_pages(pool: FakePool) -> None:
    request = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    pool.settle()
    assert phase_is(request, Phase.ARRIVED)
    pool.decode_sends(ROOM, 0)
    assert phase_is(request, Phase.WAITING)
    pool.settle()
    assert request.outcome == "finished"


@pytest.mark.parametrize("pages_first", [True, False])
@pytest.mark.parametrize("tokens", [10, 100])
def test_decode_with_a_pool_of_windows_gets_no_kv(
    pool: FakePool, pages_first: bool, tokens: int
) -> None:
    """Its buffers are not those of the pool: what was written would be read as other layers'."""
    pool.decode_servers.register(DecodeRank(0, "decode", 7000, 1000, keeps_more=True))
    if pages_first:
        pool.decode_sends(ROOM, 0)
    request = pool.submit(tokens, room=ROOM)
    if not pages_first:
        pool.decode_sends(ROOM, 0)
    pool.settle()
    assert "--disable-hybrid-swa-memory" in request.error
    assert pool.statuses[request.tokenized] == HTTPStatus.INTERNAL_SERVER_ERROR
    assert ROOM in pool.told_failed
    assert pool.entered == {}
    assert empty(pool)


def test_decode_that_was_started_anew_with_pages_alone_gets_them(pool: FakePool) -> None:
    windows = DecodeRank(0, "decode", 7000, 1000, keeps_more=True)
    pool.decode_servers.register(windows)
    pool.decode_servers.register(replace(windows, keeps_more=False))
    request = with_pages(pool, TWO_CHUNKS)
    pool.settle()
    assert request.outcome == "finished"


def test_pages_of_every_rank_are_needed() -> None:
    pool = FakePool(tp_size=2)
    request = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    pool.decode_sends(ROOM, 1)
    assert phase_is(request, Phase.ARRIVED)
    pool.decode_sends(ROOM, 0)
    assert phase_is(request, Phase.WAITING)


def test_a_probe_runs_unanswered(pool: FakePool) -> None:
    chunk = PlannedChunk(32, (0, 1), 0.0, 0.0)
    probe = PoolRequest("probe", None, 64, pool.now_s)
    pool.lifecycle.on_probe(probe, Plan((chunk, chunk), 0.0, "probe"))
    pool.settle()
    assert probe.phase is Phase.ENDED
    assert not probe.error
    assert [times.start_s is not None for times in probe.times] == [True, True]
    assert pool.answers == {}
    assert empty(pool)


def test_a_forced_plan_waits_until_its_slots_are_free() -> None:
    pool = FakePool(size=2, capacity=128)
    first = pool.submit(100, plan=[(100, [0])])
    second = pool.submit(128, plan=[(32, [0]), (96, [0, 1])])
    pool.lifecycle.on_loop()
    assert (first.phase, second.phase) == (Phase.BOUND, Phase.WAITING)
    pool.settle()
    assert (first.outcome, second.outcome) == ("finished", "finished")


def test_prompt_logprobs_go_to_their_request(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.RUNNING))
    part = LogprobPart(request.seq, [1], [-0.5], [], [], [], [])
    for sent in (part, LogprobPart(99, [1], [-0.5], [], [], [], [])):
        pool.hear(PromptLogprobs(instance=0, tp_rank=0, at_s=1.0, part=sent))
    assert pool.logprob_parts == [part]


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "plan", "remedy"),
    [
        (0, None, "send at least one token"),
        (5 * 4096, None, "shorten it"),
        (100, [(60, [0]), (30, [0])], "together they must be the prompt"),
        (6000, [(6000, [0])], "use more instances or fewer tokens"),
    ],
)
def test_what_can_never_run_is_answered_at_once(
    pool: FakePool, tokens: int, plan: Chunks | None, remedy: str
) -> None:
    request = pool.submit(tokens, plan=plan)
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    assert remedy in request.error
    assert pool.answers[request.tokenized] == ["controller"]
    assert empty(pool)


def test_several_samples_are_refused(pool: FakePool) -> None:
    request = PoolRequest("r", Client(1, Sampling(n=2)), 100, 0.0)
    pool.lifecycle.on_request(request, None)
    assert "n=1" in request.error


def test_a_request_id_in_use_is_refused(pool: FakePool) -> None:
    first, second = pool.submit(100, rid="a"), pool.submit(100, rid="a")
    assert "another rid" in second.error
    pool.settle()
    assert first.outcome == "finished"


def test_a_request_id_is_free_again_once_its_slots_are_being_freed(pool: FakePool) -> None:
    """The end of the first must not be taken for the end of the second, which waits."""
    first = pool.submit(16000, rid="a", plan=[(16000, [0, 1, 2, 3])])
    pool.until(lambda: first.phase is Phase.RELEASING)
    second = pool.submit(16000, rid="a")
    pool.lifecycle.on_loop()
    assert second.phase is Phase.WAITING
    pool.settle()
    assert (first.outcome, second.outcome) == ("finished", "finished")
    assert empty(pool)


def test_waiting_prompts_that_no_size_holds_any_more_are_refused() -> None:
    pool = FakePool(size=4, policy="cdsp-paper")
    keeps = with_pages(pool, [(12_000, [0, 1, 2, 3])])
    pool.until(partial(phase_is, keeps, Phase.BOUND))
    for room in (ROOM + 1, ROOM + 2):
        pool.decode_sends(room, 0)
    capacity = pool.capacity
    wide, narrow = pool.submit(2 * capacity, room=ROOM + 1), pool.submit(capacity, room=ROOM + 2)
    pool.lifecycle.on_loop()
    assert pool.policy.waiting() == (wide.rid, narrow.rid)
    pool.planning.regulator.update({"sp_size_candidates": [1]})
    pool.lifecycle.on_sizes_changed()
    assert "the largest group holds" in wide.error
    pool.settle()
    assert (wide.outcome, narrow.outcome, keeps.outcome) == ("failed", "finished", "finished")
    assert pool.told_failed == {ROOM + 1}
    assert empty(pool)


# -- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_write_of_any_rank_drops_the_request(rank: int) -> None:
    pool = FakePool(size=4, tp_size=2, policy="threshold:1000")
    request = with_pages(pool, [(40, [0]), (30, [0, 1]), (30, [0, 1, 2])])
    write = f"write of 0 at 0.{rank} fails"
    pool.until(lambda: write in [move.name for move in pool.moves()])
    pool.happen(write)
    pool.settle()
    assert (request.outcome, request.error) == ("failed", "lost")
    assert (0, 2) not in pool.entered, "it is dropped before its last chunk"
    assert pool.told_failed == {ROOM}
    assert empty(pool)


def test_a_member_that_cannot_prepare_ends_the_request_with_its_reason(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [0, 1])])
    pool.until(lambda: bool(pool.instances[1].queue))
    pool.happen("1 cannot prepare")
    pool.settle()
    assert (request.outcome, request.error) == ("failed", "out of slots")
    assert pool.answers[request.tokenized] == ["home failed"]
    assert pool.entered == {}
    assert pool.told_failed == {ROOM}
    assert empty(pool)


def test_who_joins_later_and_fails_ends_the_running_chunk(pool: FakePool) -> None:
    """Nobody can use what instance 0 still computes."""
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: bool(pool.instances[0].inside))
    pool.happen("1 takes an order")
    pool.happen("1 cannot prepare")
    pool.happen("the controller hears 1.0")
    assert phase_is(request, Phase.DRAINING)
    pool.happen("0 takes an order")
    assert pool.instances[0].inside == []
    pool.settle()
    assert request.error == "out of slots"
    assert request.times[0].end_s is None
    assert pool.entered == {(0, 0): {0}}
    assert empty(pool)


def test_a_broken_chunk_costs_its_request_alone(pool: FakePool) -> None:
    broken, behind = with_pages(pool, [(100, [0, 1])]), pool.submit(80, plan=[(80, [1, 2])])
    pool.until(lambda: pool.entered[(0, 0)] == {0, 1})
    pool.happen("1 fails in chunk 0 of 0")
    assert pool.instances[0].inside, "its partner waits for it until it is stopped"
    pool.settle()
    assert (broken.outcome, behind.outcome) == ("failed", "finished")
    assert empty(pool)


def test_what_a_member_says_before_it_hears_of_the_stop_means_nothing(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [0, 1])])
    pool.until(lambda: pool.entered[(0, 0)] == {0, 1})
    pool.happen("0 ends chunk 0")
    pool.lifecycle.abort(request, "no longer wanted")
    part = LogprobPart(request.seq, [1], [-0.5], [], [], [], [])
    pool.hear(PromptLogprobs(instance=1, tp_rank=0, at_s=1.0, part=part))
    pool.settle()
    assert (request.outcome, request.first_token_s) == ("aborted", None)
    assert pool.logprob_parts == []
    assert empty(pool)


def test_a_chunk_waits_for_a_lane_that_is_free_at_all_its_members(pool: FakePool) -> None:
    table = LaneTable(2)
    assert [table.take(0, [0, 1]), table.take(1, [1, 2]), table.take(2, [2, 3])] == [0, 1, 0]
    assert table.take(3, [1, 3]) is None
    assert table.take(3, [1]) == 0, "alone it sends nothing"
    assert not table.give_back(3)
    assert table.give_back(0)
    assert table.take(3, [0, 1, 3]) is None, "lane 0 is taken at 3, lane 1 at 1"
    assert table.give_back(1)
    assert table.take(3, [0, 1, 3]) == 1


def test_a_bad_request_is_answered_by_its_home_alone(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: any(m.name == "0 refuses a request" for m in pool.moves()))
    pool.happen("0 refuses a request")
    pool.settle()
    assert (request.outcome, request.error) == ("failed", "bad request")
    assert pool.answers[request.tokenized] == ["home refused"]
    assert empty(pool)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_write_of_any_rank_fails_the_request(rank: int) -> None:
    pool = FakePool(tp_size=2)
    request = with_pages(pool, [(100, [0, 1])])
    pool.until(lambda: pool.instances[1].tasks.get(0) is not None)
    pool.until(lambda: pool.instances[1].tasks[0].writes[rank] > 0)
    pool.happen(f"write of 0 at 1.{rank} fails")
    pool.settle()
    assert (request.outcome, request.error) == ("failed", "lost")
    assert pool.answers[request.tokenized] == ["home failed"]
    assert pool.told_failed == {ROOM}
    assert empty(pool)


def test_a_failed_turn_reaches_decode(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [2])])
    pool.until(lambda: bool(pool.instances[2].stock_requests))
    pool.happen("stock 0 fails")
    pool.settle()
    assert (request.outcome, request.error) == ("failed", "broke")
    assert pool.answers[request.tokenized] == ["stock failed"]
    assert pool.told_failed == {ROOM}
    assert empty(pool)


# -- the table ------------------------------------------------------------------------------


def test_reports_of_unknown_tasks_are_ignored(pool: FakePool) -> None:
    for report in every_report(9):
        pool.lifecycle.on_report(report)
    assert pool.lifecycle.requests == ()


def test_a_late_chunk_moves_what_stands_behind_it(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    assert request.plan is not None
    pool.until(lambda: bool(pool.instances[0].inside))
    before = pool.ledger.view(pool.now_s).queue_s
    late_s = request.plan.chunks[0].end_s + 2.0
    pool.now_s += late_s
    pool.happen("0 ends chunk 0")
    pool.happen("the controller hears 0.0")
    after = pool.ledger.view(pool.now_s).queue_s
    # The end moved by 2 s, and the clock by the whole chunk.
    assert after[:2] == pytest.approx([b + 2.0 - late_s for b in before[:2]])
    assert after[2:] == (0.0, 0.0)


def test_the_planner_learns_from_good_chunks_only(pool: FakePool) -> None:
    def samples() -> int:
        sizes = pool.planning.correction.snapshot()["sp"]
        return sum(int(size["samples"]) for size in sizes.values())

    with_pages(pool, TWO_CHUNKS)
    pool.settle()
    assert samples() == 2
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: bool(pool.instances[0].inside))
    pool.lifecycle.abort(request, "no longer wanted")
    pool.settle()
    assert samples() == 2


def test_the_planner_learns_from_stock_batches(pool: FakePool) -> None:
    model = pool.planning.correction.model
    batch = [(0, 100), (0, 50)]
    for _ in range(100):
        expected_s = sum(model.predict(1, *part) for part in batch)
        pool.hear(
            StockBatch(instance=2, tp_rank=0, start_s=5.0, at_s=5.0 + 1.5 * expected_s, parts=batch)
        )
    size = pool.planning.correction.snapshot()["sp"]["1"]
    assert size["samples"] == 100
    assert size["factor"] > 1.4


def test_what_waits_without_a_plan_is_counted(pool: FakePool) -> None:
    pool.submit(100, room=ROOM)
    pool.submit(30, room=ROOM + 1)
    pool.decode_sends(ROOM + 1, 0)
    assert pool.lifecycle.waiting == (2, 130)
    pool.lifecycle.on_loop()
    assert pool.lifecycle.waiting == (1, 100)


def test_a_prompt_passes_a_running_chunk(pool: FakePool) -> None:
    """It starts although the instance's queue has another task at its head, which goes on."""
    pool = FakePool(size=1, policy="cdsp-late")
    long = with_pages(pool, [(4000, [0])])
    pool.until(lambda: bool(pool.instances[0].inside))
    short = pool.submit(64, room=ROOM + 1)
    pool.decode_sends(ROOM + 1, 0)
    pool.lifecycle.on_loop()
    assert short.plan is not None
    assert short.plan.passes
    pool.happen("0 takes an order")
    pool.happen("stock 1 begins")
    pool.happen("stock 1 samples")
    pool.happen("the controller hears 0.0")
    assert (long.phase, short.first_token_s is not None) == (Phase.RUNNING, True)
    pool.settle()
    assert (long.outcome, short.outcome) == ("finished", "finished")
    assert empty(pool)


def test_a_long_prompt_on_one_instance_is_a_chunk_task(pool: FakePool) -> None:
    """Its forward gives way; in SGLang's own batch it would block the instance's loop."""
    long = with_pages(pool, [(DEFAULT_STOCK_TOKENS + 1, [2])])
    short = with_pages(pool, [(DEFAULT_STOCK_TOKENS, [2])], room=ROOM + 1)
    assert (long.phase, short.phase) == (Phase.BOUND, Phase.STOCK)
    pool.settle()
    assert (long.outcome, short.outcome) == ("finished", "finished")
    assert pool.entered == {(0, 0): {2}}
