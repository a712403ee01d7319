"""What `/cdsp/timeline` answers."""

from __future__ import annotations

import json

import pytest

from sglang_cdsp.controller.feed.feed import MOST_RECORDS, MOST_WAITING
from sglang_cdsp.controller.feed.recent import MOST_ROLE_CHANGES
from sglang_cdsp.controller.feed.records import MOST_MOVES
from sglang_cdsp.controller.feed.samples import FIELDS, MOST
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_log import LONGEST_RID
from sglang_cdsp.planner.roles import parse_roles
from tests.controller.cases import TWO_CHUNKS, phase_is
from tests.controller.feed.watched import LAYERS, Follower, WatchedOneServer, WatchedPool


def run(pool: WatchedPool, tokens: int = 100, **more: object) -> None:
    """A request from arrival to end."""
    pool.submit(tokens, **more)  # type: ignore[arg-type]
    pool.settle()


def move_to(pool: WatchedOneServer, request: PoolRequest, home: int) -> None:
    """The other one of two seats decodes from now on, and a request goes on there."""
    pool.lifecycle.on_roles(parse_roles("1p1d" if home else "1d1p"), "a test")
    pool.until(lambda: request.home == home and len(pool.lifecycle._moves) == 0)


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


def test_roles_and_their_changes_are_told() -> None:
    pool = WatchedOneServer(size=3)
    first = pool.feed.answer(0)
    assert [one["role"] for one in first["instances"]] == ["both"] * 3
    assert first["role_changes"] == []
    pool.lifecycle.on_roles(parse_roles("1p1b1d"), "policy\nmine")
    answer = pool.feed.answer(first["next"])
    assert [one["role"] for one in answer["instances"]] == ["prefill", "both", "decode"]
    told = [(c["seat"], c["before"], c["role"], c["why"]) for c in answer["role_changes"]]
    assert told == [(0, "both", "prefill", "policy mine"), (2, "both", "decode", "policy mine")]
    assert {change["at_s"] for change in answer["role_changes"]} == {pool.now_s}
    assert pool.feed.answer(answer["next"])["role_changes"] == []
    pool.lifecycle.on_roles(parse_roles("2b1d"), "asked for")
    (change,) = pool.feed.answer(answer["next"])["role_changes"]
    assert (change["seat"], change["before"], change["role"]) == (0, "prefill", "both")


def test_roles_that_the_server_starts_with_are_no_change() -> None:
    pool = WatchedOneServer(size=2)
    pool.recent.has_roles(parse_roles("1p1d"))
    pool.recent.roles_changed(parse_roles("1p1b"), "asked for")
    told = [(c["seat"], c["before"], c["role"]) for c in pool.feed.answer(0)["role_changes"]]
    assert told == [(1, "decode", "both")]


def test_only_the_last_role_changes_are_kept() -> None:
    pool = WatchedOneServer(size=2)
    for _ in range(MOST_ROLE_CHANGES):
        for roles in ("1p1b", "2b"):
            pool.lifecycle.on_roles(parse_roles(roles), "a test")
    told = pool.feed.answer(0)["role_changes"]
    assert len(told) == MOST_ROLE_CHANGES
    assert told[-1]["role"] == "both"


def test_where_decode_servers_decode_seats_have_no_role() -> None:
    pool = WatchedPool(size=2)
    assert [one["role"] for one in pool.feed.answer(0)["instances"]] == [None, None]


def test_what_moves_is_told_when_from_where_and_where_to() -> None:
    pool = WatchedOneServer(size=2)
    page = Follower(pool.feed)
    request = pool.submit(100, plan=[(50, [0]), (50, [0])])
    pool.until(lambda: phase_is(request, Phase.DECODING))
    page.poll()
    (record,) = page.records.values()
    assert (record["moved"], record["moves"]) == (0, [])
    move_to(pool, request, 1)
    page.poll()
    (record,) = page.records.values()
    assert (record["state"], record["home"], record["moved"]) == ("decoding", 1, 1)
    (move,) = record["moves"]
    (times,) = request.moves
    assert (move["from"], move["to"], move["tokens"]) == (0, 1, times.rows)
    assert move["asked_s"] == pytest.approx(times.asked_s, abs=1e-4)
    assert move["left_s"] == pytest.approx(times.left_s, abs=1e-4)
    assert move["arrived_s"] == pytest.approx(pool.now_s, abs=1e-4)
    pool.settle()
    page.poll()
    (record,) = page.records.values()
    assert (record["state"], record["moves"]) == ("finished", [move])


def test_of_many_moves_the_last_are_shown_and_all_are_counted() -> None:
    pool = WatchedOneServer(size=2)
    page = Follower(pool.feed)
    request = pool.submit(100, plan=[(50, [0]), (50, [0])])
    pool.until(lambda: phase_is(request, Phase.DECODING))
    times = MOST_MOVES + 3
    for number in range(times):
        page.poll()
        move_to(pool, request, 1 - number % 2)
    page.poll()
    (record,) = page.records.values()
    assert (record["moved"], len(record["moves"])) == (times, MOST_MOVES)
    assert record["moves"][-1]["to"] == request.home
    pool.settle()


def test_a_move_there_and_back_is_something_new() -> None:
    pool = WatchedOneServer(size=2)
    request = pool.submit(100, plan=[(50, [0]), (50, [0])])
    pool.until(lambda: phase_is(request, Phase.DECODING))
    move_to(pool, request, 1)
    answer = pool.feed.answer(0)
    move_to(pool, request, 0)
    move_to(pool, request, 1)
    (record,) = pool.feed.answer(answer["next"])["requests"]
    assert [move["to"] for move in record["moves"]] == [1, 0, 1]
    pool.settle()


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
