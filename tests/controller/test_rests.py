"""Rests of plans that change between two chunks; every order is checked by the fakes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.rests import DEMANDED
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.types import Placement, Plan, PoolView, PromptView
from sglang_cdsp.protocol.messages import Ready
from tests.controller.cases import TWO_CHUNKS, empty, with_pages
from tests.controller.fake_pool import FakePool

FIRST: Placement = ((64, (0,)), (36, (0, 1)))


class Told:
    """Stands in a policy's place: plans and rests are what a test says.

    Attributes:
        rests: the next answers to ``Policy.replan``, by request; None keeps the plan.
        instead: plans where the first one's instances are down.
        asked: what ``Policy.replan`` was asked.
    """

    def __init__(self, pool: FakePool, plans: dict[str, Placement] | None = None) -> None:
        self.pool = pool
        self.plans = plans or {"r1": FIRST}
        self.rests: dict[str, list[Placement | None]] = {}
        self.instead: dict[str, Placement] = {}
        self.asked: list[tuple[PromptView, Plan, PoolView]] = []
        policy = pool.policy
        policy.replans = True
        policy.plan = self.plan  # type: ignore[method-assign]
        policy.replan = self.replan  # type: ignore[method-assign]

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        chunks = self.plans[prompt.rid]
        if pool.up is not None and not all(pool.up[i] for i in chunks[-1][1]):
            if prompt.rid not in self.instead:
                return None
            chunks = self.instead[prompt.rid]
        return timed_plan(chunks, self.pool.planning.model, pool, prompt.history_tokens)

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        self.asked.append((rest, current, pool))
        chunks = self.rests[rest.rid].pop(0) if self.rests.get(rest.rid) else None
        if chunks is None:
            return None
        plan = timed_plan(chunks, self.pool.planning.model, pool, rest.history_tokens)
        return replace(plan, replanned="told to")

    def start(self) -> list[PoolRequest]:
        """All requests arrive and get their plans."""
        requests = [
            self.pool.submit(sum(tokens for tokens, _ in chunks), rid=rid)
            for rid, chunks in self.plans.items()
        ]
        self.pool.lifecycle.on_loop()
        return requests


def test_a_rest_runs_on_other_instances(pool: FakePool) -> None:
    told = Told(pool)
    told.rests["r1"] = [((36, (0, 2, 3)),)]
    (request,) = told.start()
    pool.until(lambda: request.revision == 1)
    # 64 tokens on instance 0, 22 of them on each of three while 6 pairs of pieces are computed.
    assert pool.ledger.free_tokens() == (4096 - 76, 4096, 4096 - 34, 4096 - 34)
    (change,) = request.replans
    assert (change.chunk, change.reason) == (1, "told to")
    assert [chunk.instances for chunk in change.before] == [(0, 1)]
    assert [chunk.instances for chunk in change.after] == [(0, 2, 3)]
    pool.settle()
    assert pool.entered == {(0, 0): {0}, (0, 1): {0, 2, 3}}
    assert (request.outcome, len(request.times)) == ("finished", 2)
    assert empty(pool)


def test_what_is_asked() -> None:
    """As ``tests/simulator/test_replanning.py`` asks it."""
    pool = FakePool(size=4, capacity=100_000, policy="threshold:1000")
    plans: dict[str, Placement] = {
        "r0": ((1000, (0,)), (2000, (0, 1))),
        "r1": ((3000, (1,)),),
        "r2": ((500, (1,)),),
    }
    told = Told(pool, plans)
    first, *_ = told.start()
    now_s, model = pool.now_s, pool.planning.model
    pool.until(lambda: first.next_chunk == 1)
    ((rest, current, view),) = told.asked
    assert rest == PromptView("r0", 2000, 1000, (0,), now_s)
    # The first chunk took no time here: all that follows is expected so much sooner.
    took_s = model.predict(2, 1000, 2000)
    (chunk,) = current.chunks
    assert chunk.tokens == 2000
    assert (chunk.start_s, chunk.end_s) == pytest.approx((0.0, took_s))
    assert view.queue_s == (0.0, 0.0, 0.0, 0.0), "what stands behind it does not count"
    assert view.up == (True, True, True, True)
    assert view.free_tokens == (99_000, 96_500, 100_000, 100_000)


def test_a_rest_stays_where_its_history_is_though_that_seat_drains(pool: FakePool) -> None:
    told = Told(pool)
    told.rests["r1"] = [((36, (0, 2, 3)),)]
    (request,) = told.start()
    pool.lifecycle.on_seat_draining(0)
    pool.lifecycle.on_seat_draining(1)
    pool.settle()
    ((_, _, view),) = told.asked
    assert view.up == (True, False, True, True)
    assert not pool.planning.policy.error
    assert [chunk.instances for chunk in request.replans[0].after] == [(0, 2, 3)]
    assert request.outcome == "finished"


def test_a_policy_is_asked_once_a_chunk_that_ended(pool: FakePool) -> None:
    told = Told(pool, {"r1": ((16, (0,)), (16, (0,)), (16, (0, 1)), (16, (0, 1)))})
    (request,) = told.start()
    pool.settle()
    assert [rest.history_tokens for rest, _, _ in told.asked] == [16, 32, 48]
    assert (request.replans, request.outcome) == ([], "finished")


def test_what_got_ready_for_the_old_rest_starts_no_chunk_of_the_new_one(pool: FakePool) -> None:
    told = Told(pool)
    told.rests["r1"] = [((20, (0, 1)), (16, (0, 1, 2)))]
    (request,) = told.start()
    pool.until(lambda: request.revision == 1)
    assert request.ready == {}
    for instance in (0, 1):
        said = Ready(instance=instance, tp_rank=0, at_s=pool.now_s, seq=0, chunk=1)
        pool.hear(said)
    assert request.phase is Phase.BOUND
    pool.settle()
    assert pool.entered == {(0, 0): {0}, (0, 1): {0, 1}, (0, 2): {0, 1, 2}}
    assert request.outcome == "finished"


def test_a_rest_changes_again_and_an_instance_comes_back(pool: FakePool) -> None:
    told = Told(pool, {"r1": ((16, (0,)), (16, (0,)), (16, (0,)), (16, (0, 3)))})
    told.rests["r1"] = [((16, (0,)), (16, (0,)), (16, (0, 1))), None, ((16, (0, 3, 1)),)]
    (request,) = told.start()
    pool.settle()
    assert pool.entered[(0, 3)] == {0, 3, 1}
    assert [change.chunk for change in request.replans] == [1, 3]
    assert (request.outcome, request.left) == ("finished", {3: 1})
    assert empty(pool)


def fails_to_prepare(pool: FakePool, request: PoolRequest) -> None:
    """Instance 1 fails before its chunk; the controller hears of that after the one before."""
    pool.until(lambda: bool(pool.instances[0].inside))
    for name in ("1 takes an order", "1 cannot prepare 0", "0 ends chunk 0"):
        pool.happen(name)
    pool.happen("the controller hears 0.0")
    assert request.next_chunk == 1
    pool.happen("the controller hears 1.0")


def test_the_failure_of_an_instance_that_has_left_means_nothing(pool: FakePool) -> None:
    told = Told(pool)
    told.rests["r1"] = [((36, (0, 2)),)]
    (request,) = told.start()
    fails_to_prepare(pool, request)
    pool.settle()
    assert (request.outcome, pool.entered[(0, 1)]) == ("finished", {0, 2})
    assert empty(pool)


def test_the_failure_of_one_that_stays_counts(pool: FakePool) -> None:
    told = Told(pool)
    told.rests["r1"] = [((36, (0, 1, 2)),)]
    (request,) = told.start()
    fails_to_prepare(pool, request)
    pool.settle()
    assert (request.outcome, request.error) == ("failed", "out of slots")
    assert empty(pool)


def test_an_abort_reaches_those_of_the_new_plan(pool: FakePool) -> None:
    told = Told(pool)
    told.rests["r1"] = [((36, (0, 2)),)]
    (request,) = told.start()
    pool.until(lambda: request.revision == 1)
    pool.lifecycle.abort(request, "no longer wanted")
    pool.settle()
    assert (request.outcome, pool.entered) == ("aborted", {(0, 0): {0}})
    assert empty(pool)


# -- what a request brings ------------------------------------------------------------------


def test_a_request_brings_plans_for_its_rest(pool: FakePool) -> None:
    rests = [[(20, [0, 3]), (16, [0, 3])], [(16, [0, 3, 2])]]
    request = pool.submit(100, plan={"plan": TWO_CHUNKS, "rests": rests})
    pool.settle()
    assert pool.entered == {(0, 0): {0}, (0, 1): {0, 3}, (0, 2): {0, 3, 2}}
    assert [change.reason for change in request.replans] == [DEMANDED] * 2
    assert request.outcome == "finished"
    assert empty(pool)


def test_nothing_but_its_own_rests_changes_a_plan_that_was_demanded(pool: FakePool) -> None:
    told = Told(pool)
    pool.submit(100, plan=TWO_CHUNKS)
    pool.settle()
    assert told.asked == []


def test_a_rest_may_not_join_where_a_later_one_waits(pool: FakePool) -> None:
    """It would wait there for one that may wait for it elsewhere."""
    first = pool.submit(100, plan={"plan": TWO_CHUNKS, "rests": [[(36, [0, 2])]]})
    later = pool.submit(100, plan=[(50, [2]), (50, [2, 0])])
    pool.until(lambda: first.next_chunk == 1)
    assert later.seq > first.seq
    assert first.replans == []
    pool.settle()
    assert pool.entered[(0, 1)] == {0, 1}
    assert (first.outcome, later.outcome) == ("finished", "finished")


def test_a_rest_without_room_is_left_as_it_was() -> None:
    pool = FakePool(size=3, capacity=128)
    first = pool.submit(100, plan={"plan": TWO_CHUNKS, "rests": [[(36, [0, 2])]]})
    pool.submit(100, plan=[(100, [2])])
    pool.until(lambda: first.next_chunk == 1)
    assert first.replans == []
    pool.settle()
    assert empty(pool)


def test_a_rest_that_is_not_one_of_what_runs_is_left_out() -> None:
    """It begins where the shard limit has cut a chunk of the plan that stayed in force."""
    pool = FakePool(size=3, max_shard_tokens=16)
    rests = [[(32, [0]), (64, [0, 2])], [(64, [0])]]
    first = pool.submit(128, plan={"plan": [(32, [0]), (96, [0, 1])], "rests": rests})
    later = pool.submit(100, plan=[(50, [2]), (50, [2, 0])])
    pool.settle()
    assert first.plan is not None
    assert {chunk.instances for chunk in first.plan.chunks} == {(0,), (0, 1)}
    assert (first.outcome, later.outcome, first.replans) == ("finished", "finished", [])
    assert empty(pool)


def test_rests_that_no_instance_holds_are_refused() -> None:
    pool = FakePool(size=2, capacity=96)
    request = pool.submit(100, plan={"plan": TWO_CHUNKS, "rests": [[(36, [0])]]})
    assert "use more instances or fewer tokens" in request.error


# -- without some instances -----------------------------------------------------------------


def test_a_plan_that_has_not_started_goes_elsewhere(pool: FakePool) -> None:
    """Its home, too: nothing has run, and the request goes to the new one."""
    told = Told(pool, {"r1": ((64, (3,)), (36, (3, 1)))})
    told.instead["r1"] = ((100, (0, 2)),)
    (request,) = told.start()
    assert pool.lifecycle.replan_without({3}) == ()
    pool.settle()
    assert pool.entered == {(0, 0): {0, 2}}
    assert [change.reason for change in request.replans] == ["without 3"]
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_where_the_policy_has_no_plan_the_others_go_on_alone(pool: FakePool) -> None:
    told = Told(pool, {"r1": ((64, (3,)), (36, (3, 1)))})
    (request,) = told.start()
    assert pool.lifecycle.replan_without({3}) == ()
    pool.settle()
    assert (pool.entered, request.outcome) == ({(0, 0): {1}}, "finished")


def test_between_two_chunks_a_later_member_is_left_out(pool: FakePool) -> None:
    told = Told(pool)
    (request,) = told.start()
    pool.until(lambda: request.next_chunk == 1)
    assert pool.lifecycle.replan_without({1}) == ()
    assert request.revision == 1
    pool.settle()
    assert (pool.entered[(0, 1)], request.outcome) == ({0}, "finished")
    assert empty(pool)


def test_while_a_chunk_runs_the_rest_is_planned_when_it_has_ended(pool: FakePool) -> None:
    told = Told(pool)
    (request,) = told.start()
    pool.until(lambda: request.phase is Phase.RUNNING)
    assert pool.lifecycle.replan_without({1}) == ()
    assert request.revision == 0
    pool.settle()
    assert told.asked == [], "there is no choice"
    assert pool.entered == {(0, 0): {0}, (0, 1): {0}}
    assert empty(pool)


def test_what_is_planned_later_does_without_them_too(pool: FakePool) -> None:
    told = Told(pool, {"r1": ((16, (0,)), (16, (0,)), (16, (0, 1)))})
    told.instead["r1"] = ((16, (0,)), (16, (0,)))
    (request,) = told.start()
    pool.until(lambda: request.next_chunk == 1)
    assert pool.lifecycle.replan_without({1, 2}) == ()
    pool.settle()
    assert [view.up for _, _, view in told.asked[-1:]] == [(True, False, False, True)]
    assert request.outcome == "finished"


def test_who_holds_kv_cannot_be_left_out(pool: FakePool) -> None:
    told = Told(pool, {"r1": FIRST, "r2": ((100, (2,)),)})
    first, other = told.start()
    pool.until(lambda: first.phase is Phase.RUNNING and first.next_chunk == 1)
    assert pool.lifecycle.replan_without({1}) == (first,)
    assert pool.lifecycle.replan_without({0}) == (first,)
    assert pool.lifecycle.replan_without({3}) == ()
    pool.until(lambda: first.phase is Phase.DRAINING)
    assert pool.lifecycle.replan_without([1]) == (first,)
    pool.settle()
    assert (first.outcome, other.outcome) == ("finished", "finished")


def test_a_one_instance_request_is_its_instances(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [2])])
    assert request.phase is Phase.STOCK
    assert pool.lifecycle.replan_without({2}) == (request,)


def test_what_fits_nowhere_else_is_left_or_fails_when_it_comes_to_it() -> None:
    pool = FakePool(size=2, capacity=96)
    waits = pool.submit(100, plan=TWO_CHUNKS)
    pool.lifecycle.on_loop()
    plan = waits.plan
    assert pool.lifecycle.replan_without({1}) == (waits,)
    assert (waits.plan, waits.without) == (plan, set())
    pool.until(lambda: waits.phase is Phase.RUNNING)
    assert pool.lifecycle.replan_without({1}) == ()
    pool.settle()
    assert waits.outcome == "failed"
    assert waits.error == (
        "instance 1 has left the pool, and the rest of the prompt fits no other now; send it again"
    )
    assert pool.answers[waits.tokenized] == ["home failed"]
    assert empty(pool)
