"""A decode server that is gone costs the requests that it had, and no others."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.controller.decode.losses import LOOK_EVERY_S, LOST_AFTER_S
from sglang_cdsp.controller.decode.servers import DecodeRank
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import ROOM, TWO_CHUNKS, empty, phase_is, with_pages
from tests.controller.fake_pool import RESERVED, TIMEOUT_S, Chunks, FakePool

HOST, PORT = "decode", 7000
ONE_INSTANCE: Chunks = [(64, [0])]


def register(pool: FakePool, agent: str = "agent0", port: int = PORT) -> None:
    """The decode rank whose pages ``decode_sends`` names makes contact, or another one."""
    pool.lifecycle.on_decode_registered(DecodeRank(0, HOST, port, 1000, agent))


def goes(pool: FakePool, port: int = PORT, *, for_s: float = LOST_AFTER_S) -> None:
    """A decode rank's connection closes, and stays closed for so long."""
    pool.lifecycle.on_decode_link(HOST, port, alive=False)
    pool.turn()
    pool.now_s += for_s
    pool.turn()


@pytest.fixture
def served(pool: FakePool) -> FakePool:
    register(pool)
    return pool


@pytest.mark.parametrize("phase", [Phase.BOUND, Phase.RUNNING, Phase.DRAINING])
def test_requests_end_with_their_decode_server(served: FakePool, phase: Phase) -> None:
    request = with_pages(served, TWO_CHUNKS)
    served.until(partial(phase_is, request, phase))
    goes(served, for_s=0.9 * LOST_AFTER_S)
    assert not request.error, "its connection may come back"
    goes(served)
    assert f"the decode server at {HOST}:{PORT} is gone" in request.error
    assert served.answers[request.tokenized] == ["controller"], "told before its writes have ended"
    assert served.statuses[request.tokenized] == 503
    served.settle()
    assert empty(served)


def test_requests_without_a_plan_end_too(served: FakePool) -> None:
    first = with_pages(served, [(served.capacity, [0])])
    waiting = with_pages(served, [(served.capacity, [0])], room=ROOM + 1)
    assert (first.phase, waiting.phase) == (Phase.BOUND, Phase.WAITING)
    goes(served)
    assert waiting.phase is Phase.ENDED
    served.settle()
    assert empty(served)


def test_a_connection_that_comes_back_costs_nothing(served: FakePool) -> None:
    request = with_pages(served, TWO_CHUNKS)
    for _ in range(5):
        goes(served, for_s=0.5 * LOST_AFTER_S)
        served.lifecycle.on_decode_link(HOST, PORT, alive=True)
        served.now_s += 10 * LOST_AFTER_S
        served.turn()
    served.settle()
    assert request.outcome == "finished"


def test_requests_of_other_servers_go_on(served: FakePool) -> None:
    register(served, "elsewhere", PORT + 100)
    request = with_pages(served, TWO_CHUNKS)
    goes(served, PORT + 100)
    served.settle()
    assert request.outcome == "finished"


def test_a_server_that_was_started_anew_at_its_address_is_taken_again(served: FakePool) -> None:
    """What its predecessor asked for ends at once; its own requests and size count from now on."""
    former = with_pages(served, TWO_CHUNKS)
    waiting = served.submit(100, room=ROOM + 1, plan=TWO_CHUNKS)
    served.lifecycle.on_decode_registered(DecodeRank(0, HOST, PORT, 2000, "agent-new"))
    served.turn()
    assert "was started anew; send the request again" in former.error
    assert served.statuses[former.tokenized] == 503
    assert not waiting.error, "its pages are not named yet, so no server has it"
    served.decode_sends(ROOM + 1, 0)
    served.settle()
    assert waiting.outcome == "finished"
    (rank,) = served.decode_servers.ranks
    assert (rank.pages, rank.agent) == (2000, "agent-new")
    assert empty(served)


def test_a_server_that_registers_again_keeps_its_requests(served: FakePool) -> None:
    """Decode does so when it could not reach the pool for a while."""
    request = with_pages(served, TWO_CHUNKS)
    register(served)
    served.settle()
    assert request.outcome == "finished"


def test_it_counts_for_the_size_again() -> None:
    pool = FakePool(decode_tokens=None)
    small = DecodeRank(0, HOST, PORT, 101, "first")
    pool.lifecycle.on_decode_registered(small)
    goes(pool)
    assert pool.decode_servers.longest_prompt is None, "none can be reached"
    pool.lifecycle.on_decode_registered(DecodeRank(0, HOST, PORT, 201, "second"))
    assert pool.decode_servers.longest_prompt == 200 * pool.page_size - RESERVED


def test_a_prompt_that_waits_for_a_frozen_server_ends_by_the_time_out(served: FakePool) -> None:
    """It has accepted the request and never names pages; its connection stays."""
    request = served.submit(100, room=ROOM)
    served.now_s += 0.9 * TIMEOUT_S
    served.turn()
    assert phase_is(request, Phase.ARRIVED)
    served.now_s += 0.2 * TIMEOUT_S
    served.turn()
    assert f"no decode server named pages for bootstrap room {ROOM}" in request.error
    assert served.answers[request.tokenized] == ["controller"]
    assert empty(served)


def computed(pool: FakePool) -> PoolRequest:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.DRAINING))
    pool.until(lambda: request.first_token_s is not None)
    return request


def test_kv_that_a_frozen_server_does_not_take_ends_by_the_time_out(served: FakePool) -> None:
    request = computed(served)
    assert request.first_token_s is not None
    served.now_s = request.first_token_s + 0.9 * TIMEOUT_S
    served.turn()
    assert not request.error
    served.now_s = request.first_token_s + TIMEOUT_S + LOOK_EVERY_S
    served.turn()
    assert f"did not take the KV of bootstrap room {ROOM}" in request.error
    assert served.answers[request.tokenized] == ["controller"]
    assert not empty(served), "its slots are read until the writes have ended"
    served.settle()
    assert empty(served)
    assert len(served.answers[request.tokenized]) == 1


def test_a_one_instance_request_ends_with_its_server(served: FakePool) -> None:
    request = with_pages(served, ONE_INSTANCE)
    assert phase_is(request, Phase.STOCK)
    goes(served)
    assert "is gone" in request.error
    served.settle()
    assert empty(served)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_in_any_order_every_request_ends(data: st.DataObject) -> None:
    """Requests come and run while their decode server goes, comes back and is started anew.

    The pool itself objects to decode being told of pages that are still written to.
    """
    pool = FakePool(size=2, policy="threshold:1000")
    register(pool)
    requests: list[PoolRequest] = []
    starts = 0
    for _ in range(data.draw(st.integers(10, 80))):
        match data.draw(
            st.sampled_from(("request", "move", "move", "turn", "goes", "back", "new"))
        ):
            case "request":
                plan = data.draw(st.sampled_from((TWO_CHUNKS, ONE_INSTANCE)))
                room = ROOM + len(requests)
                bound = data.draw(st.booleans())
                requests.append(with_pages(pool, plan, bound=bound, room=room))
            case "move":
                if moves := [move for move in pool.moves() if not move.fault]:
                    data.draw(st.sampled_from(moves)).do()
            case "turn":
                pool.now_s += data.draw(st.sampled_from((0.1, 0.5 * LOST_AFTER_S, LOST_AFTER_S)))
                pool.turn()
            case "goes":
                pool.lifecycle.on_decode_link(HOST, PORT, alive=False)
            case "back":
                pool.lifecycle.on_decode_link(HOST, PORT, alive=True)
            case "new":
                starts += 1
                register(pool, f"start-{starts}")
    pool.settle()
    assert all(request.phase is Phase.ENDED for request in requests)
    for request in requests:
        # An instance's stock queue answers for itself, too; SGLang drops a second answer.
        assert 1 <= len(pool.answers[request.tokenized]) <= 1 + request.one_instance
    assert empty(pool)
