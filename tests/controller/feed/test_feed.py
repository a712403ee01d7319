"""What `/cdsp/timeline` answers."""

from __future__ import annotations

import json

import pytest

from sglang_cdsp.controller.feed.feed import MOST_RECORDS, MOST_WAITING
from sglang_cdsp.controller.feed.samples import FIELDS, MOST
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request_log import LONGEST_RID
from tests.controller.cases import TWO_CHUNKS, phase_is
from tests.controller.feed.watched import LAYERS, Follower, WatchedOneServer, WatchedPool


def run(pool: WatchedPool, tokens: int = 100, **more: object) -> None:
    """A request from arrival to end."""
    pool.submit(tokens, **more)  # type: ignore[arg-type]
    pool.settle()


def test_a_chunk_appears_comes_on_and_ends() -> None:
    pool = WatchedPool(size=2)
    page = Follower(pool.feed)
    request = pool.submit(100, rid="wide", plan=TWO_CHUNKS)
    assert [r["rid"] for r in page.poll()["waiting"]["first"]] == ["wide"]
    pool.turn()
    assert page.poll()["waiting"]["requests"] == 0
    (record,) = page.records.values()
    assert (record["state"], record["chunks"][0]["ran"]) == ("queued", [None, None])
    pool.until(lambda: phase_is(request, Phase.RUNNING))
    started_s = pool.now_s
    pool.begun[(0, request.serial)] = 3
    answer = page.poll()
    assert answer["progress"] == [{"n": record["n"], "chunk": 0, "layers": [3]}]
    assert answer["facts"]["layers"] == LAYERS
    (record,) = page.records.values()
    assert record["chunks"][0]["ran"] == [started_s, None]
    pool.until(lambda: request.next_chunk == 1 and phase_is(request, Phase.RUNNING))
    pool.begun[(1, request.serial)] = 1
    assert page.poll()["progress"][0]["layers"] == [0, 1]
    pool.settle()
    assert page.poll()["progress"] == []
    (record,) = page.records.values()
    assert record["state"] == "finished"
    assert record["chunks"][1]["instances"] == [0, 1]
    assert None not in record["chunks"][1]["ran"]


def test_nothing_new_is_told_twice() -> None:
    pool = WatchedPool(size=2)
    run(pool)
    first = pool.feed.answer(0)
    assert [record["state"] for record in first["requests"]] == ["finished"]
    assert pool.feed.answer(first["next"])["requests"] == []
    assert pool.feed.answer(first["next"])["next"] == first["next"]


@pytest.mark.parametrize("since", [-1, 10**9])
def test_who_asks_for_what_never_was_is_told_all(since: int) -> None:
    pool = WatchedPool(size=2)
    run(pool)
    assert len(pool.feed.answer(since)["requests"]) == 1


def test_an_answer_is_bounded_and_the_next_one_goes_on() -> None:
    pool = WatchedPool(size=2)
    for _ in range(MOST_RECORDS + 7):
        run(pool, 20)
    first = pool.feed.answer(0)
    assert (len(first["requests"]), first["more"]) == (MOST_RECORDS, True)
    rest = pool.feed.answer(first["next"])
    assert (len(rest["requests"]), rest["more"]) == (7, False)
    assert len(json.dumps(first)) < 2000 * MOST_RECORDS


def test_only_the_last_ends_are_kept() -> None:
    pool = WatchedPool(size=2, most_ended=3)
    for _ in range(5):
        run(pool, 20)
    assert [record["rid"] for record in pool.feed.answer(0)["requests"]] == ["r3", "r4", "r5"]


def test_of_a_long_queue_the_first_are_shown_and_all_are_counted() -> None:
    pool = WatchedPool(size=2, capacity=256)
    for _ in range(MOST_WAITING + 10):
        pool.submit(200, room=None)
    waiting = pool.feed.answer(0)["waiting"]
    assert (waiting["requests"], len(waiting["first"])) == (MOST_WAITING + 10, MOST_WAITING)
    assert waiting["tokens"] == 200 * (MOST_WAITING + 10)


def test_an_id_that_is_used_again_is_another_request() -> None:
    pool = WatchedPool(size=2)
    run(pool, rid="same")
    run(pool, rid="same")
    numbers = [record["n"] for record in pool.feed.answer(0)["requests"]]
    assert len(set(numbers)) == 2


def test_what_clients_wrote_is_one_short_line() -> None:
    pool = WatchedPool(size=2)
    run(pool, rid="a\nb\x1b[31m" + "x" * 10_000)
    (record,) = pool.feed.answer(0)["requests"]
    assert record["rid"].isprintable()
    assert len(record["rid"]) == LONGEST_RID


def test_a_lost_seat_and_what_it_cost_are_told() -> None:
    pool = WatchedPool(size=2)
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.RUNNING))
    pool.recent.seat_changed(0, 1, "ending", "killed by\nsignal 9")
    pool.lose(0)
    pool.confirm(0)
    pool.settle()
    answer = pool.feed.answer(0)
    (record,) = answer["requests"]
    assert record["state"] == "failed"
    assert "instance 0 was lost" in record["error"]
    assert [(c["seat"], c["why"]) for c in answer["seat_changes"]] == [(0, "killed by signal 9")]
    assert answer["instances"][0]["state"] == "ending"
    assert pool.feed.answer(answer["next"])["seat_changes"] == []


def test_what_decodes_is_told_where() -> None:
    pool = WatchedOneServer(size=2)
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    answer = pool.feed.answer(0)
    assert [one["decoding"] for one in answer["instances"]] == [1, 0]
    (record,) = answer["requests"]
    assert (record["state"], record["home"], record["decodes"]) == ("decoding", 0, True)
    pool.settle()
    (record,) = pool.feed.answer(answer["next"])["requests"]
    assert record["last_token_s"] >= record["first_token_s"]


def test_the_pool_is_sampled_once_a_second_whoever_asks() -> None:
    pool = WatchedPool(size=2)
    run(pool, 64)
    for tenths in range(31):
        pool.feed.tick(2000.0 + tenths / 10)
    samples = pool.feed.answer(0)["samples"]
    at = FIELDS.index("at_s")
    assert [sample[at] for sample in samples] == [2000.0, 2001.0, 2002.0, 2003.0]
    assert samples[-1][FIELDS.index("tokens")] == 64
    assert samples[-1][FIELDS.index("ends")] == 1
    for second in range(MOST + 5):
        pool.feed.tick(3000.0 + second)
    assert len(pool.feed.answer(0)["samples"]) == MOST


def test_computed_tokens_count_while_a_prompt_runs() -> None:
    pool = WatchedPool(size=2)
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: request.next_chunk == 1)
    pool.feed.tick(5000.0)
    pool.settle()
    pool.feed.tick(5001.0)
    samples = pool.feed.answer(0)["samples"]
    assert [sample[FIELDS.index("tokens")] for sample in samples] == [64, 100]


def test_probes_are_not_shown() -> None:
    pool = WatchedPool(size=2)
    run(pool)
    (request,) = pool.ends
    request.tokenized = None
    pool.recent.ended(request)
    assert len(pool.feed.answer(0)["requests"]) == 1


def test_a_sampler_that_fails_costs_the_curves_only(caplog: pytest.LogCaptureFixture) -> None:
    pool = WatchedPool(size=2)

    def fails(now_s: float) -> dict[str, object]:
        raise RuntimeError("a fault of ours")

    pool.planning.regulator.snapshot = fails  # type: ignore[method-assign]
    pool.feed.tick(1.0)
    pool.feed.tick(2.0)
    assert caplog.text.count("has no curves") == 1
