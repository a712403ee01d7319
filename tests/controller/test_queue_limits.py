"""SGLang's options about its queue, at the pool's."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import ROOM, empty
from tests.controller.fake_pool import FakePool

PRIORITY = QueueLimits(by_priority=True)


def request(urgency: int, arrival_s: float) -> PoolRequest:
    return PoolRequest(f"r{arrival_s}", None, 1, arrival_s, urgency=urgency)


@pytest.mark.parametrize(
    ("limits", "priority", "urgency"),
    [
        (QueueLimits(), 7, 0),
        (QueueLimits(low_first=True), 7, 0),
        (PRIORITY, 7, 7),
        (replace(PRIORITY, low_first=True), 7, -7),
        (PRIORITY, None, -sys.maxsize - 1),
        (replace(PRIORITY, low_first=True), None, -sys.maxsize - 1),
    ],
)
def test_urgency(limits: QueueLimits, priority: int | None, urgency: int) -> None:
    assert limits.urgency(priority) == urgency


@given(
    st.lists(st.integers(-3, 3), max_size=6),
    st.integers(-3, 3),
    st.integers(1, 6),
)
def test_the_queue_keeps_its_length_and_loses_its_least_urgent(
    waiting: list[int], arriving: int, most: int
) -> None:
    queued = [request(urgency, float(n)) for n, urgency in enumerate(waiting)]
    new = request(arriving, 99.0)
    leaves = replace(PRIORITY, most=most).in_excess(queued, new)
    if len(queued) < most:
        assert leaves is None
        return
    assert leaves is not None
    stays = [r for r in (*queued, new) if r is not leaves]
    assert min(r.urgency for r in stays) >= leaves.urgency
    equals = [r for r in queued if r.urgency == leaves.urgency]
    assert leaves is new or leaves is equals[-1], "the newest of the least urgent"


def test_a_full_queue_refuses_with_sglangs_words_and_status() -> None:
    pool = FakePool(limits=QueueLimits(most=2))
    kept = [pool.submit(100, room=ROOM + n) for n in range(2)]
    late = pool.submit(100, room=ROOM + 9)
    assert (late.phase, late.error) == (Phase.ENDED, "The request queue is full.")
    assert pool.statuses[late.tokenized] == 503
    for n in range(2):
        pool.decode_sends(ROOM + n, 0)
    pool.settle()
    assert all(request.outcome == "finished" for request in kept)
    assert empty(pool)


def test_a_full_queue_gives_up_a_less_urgent_request() -> None:
    pool = FakePool(limits=replace(PRIORITY, most=1))
    first = pool.submit(100, room=ROOM, urgency=1)
    second = pool.submit(100, room=ROOM + 1, urgency=5)
    assert "higher priority" in first.error
    assert pool.statuses[first.tokenized] == 503
    pool.decode_sends(ROOM, 0)
    pool.decode_sends(ROOM + 1, 0)
    pool.settle()
    assert second.outcome == "finished"
    assert pool.told_failed == {ROOM}, "decode does not wait for the one that left"
    assert empty(pool)


def test_who_waits_too_long_is_told_so() -> None:
    pool = FakePool(limits=QueueLimits(timeout_s=10.0))
    waits = pool.submit(100, room=ROOM)
    runs = pool.submit(100, plan=[(64, [0]), (36, [0, 1])])
    pool.lifecycle.on_loop()
    pool.now_s += 9.0
    pool.lifecycle.on_loop()
    assert waits.phase is Phase.ARRIVED
    pool.now_s += 2.0
    pool.settle()
    assert waits.error == "Request waiting timeout reached."
    assert pool.statuses[waits.tokenized] == 503
    assert runs.outcome == "finished", "it had its plan in time"


@pytest.mark.parametrize("policy", ["single-chunk", "cdsp-late", "loongserve"])
def test_the_more_urgent_get_their_plans_first(policy: str) -> None:
    pool = FakePool(size=1, capacity=128, policy=policy, limits=PRIORITY)
    first = pool.submit(120, urgency=0)
    pool.lifecycle.on_loop()
    waiting = [pool.submit(120, urgency=urgency) for urgency in (1, 3, 2)]
    pool.settle()
    assert first.seq == 0
    assert [request.seq for request in waiting] == [3, 1, 2]


def test_forced_plans_too() -> None:
    pool = FakePool(size=1, capacity=128, limits=PRIORITY)
    first = pool.submit(120, plan=[(120, [0])])
    pool.lifecycle.on_loop()
    waiting = [pool.submit(120, plan=[(120, [0])], urgency=urgency) for urgency in (1, 3, 3)]
    pool.settle()
    assert first.seq == 0
    assert [request.seq for request in waiting] == [3, 1, 2], "equals keep the order of arrival"


def test_a_priority_where_there_are_none() -> None:
    limits = QueueLimits(refuses_priority=True)
    assert "without a priority" in limits.refusal(3)
    assert limits.refusal(None) == ""
    assert replace(limits, by_priority=True).refusal(3) == ""
