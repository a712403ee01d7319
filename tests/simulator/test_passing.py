"""Prompts that pass: every time is reckoned by hand. A chunk has ten layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sglang_cdsp.planner import PoolView
from sglang_cdsp.planner.types import Placement
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.result import Result
from tests.simulator.small_worlds import Passing, requests, world

Row = tuple[float, int, tuple[int, ...]]
"""(arrival in seconds, tokens, SP group)"""


def run(*rows: Row, passing: str, **changes: Any) -> Result:
    """One-chunk requests r0, r1, ...; those named pass what runs on their groups."""
    setup = world(**{"instances": 2, "layers": 10, "preempt_budget": 1.0, **changes})
    script = {f"r{n}": ((tokens, group),) for n, (_, tokens, group) in enumerate(rows)}
    work = requests(*((at, tokens, 1) for at, tokens, _ in rows))
    return simulate(setup, work, policy=Passing(setup, script, passing.split()))


def spans(result: Result) -> list[tuple[float, float]]:
    """When each request's chunk started and ended, without rounding in the last digits."""
    chunks = [r.chunks[0] for r in result.records]
    return [(round(c.start_s, 9), round(c.end_s, 9)) for c in chunks]


def test_a_prompt_passes_at_the_next_layer_boundary() -> None:
    """Layers of 1 s: it comes in the third one, runs from 3 s on, and the chunk ends later."""
    result = run((0, 10_000, (0,)), (2.5, 500, (0,)), passing="r1")
    assert spans(result) == [(0, 10.5), (3, 3.5)]
    assert [r.passed for r in result.records] == [False, True]
    assert [r.stood_s for r in result.records] == [(0.5,), ()]
    assert result.busy_s == (10.5, 0)


@pytest.mark.parametrize(("comes", "starts"), [(0.0, 0.0), (3.0, 3.0), (3.1, 4.0), (9.5, 10.0)])
def test_before_the_first_layer_at_a_boundary_and_after_the_last(
    comes: float, starts: float
) -> None:
    result = run((0, 10_000, (0,)), (comes, 500, (0,)), passing="r1")
    assert spans(result)[1] == pytest.approx((starts, starts + 0.5))
    assert spans(result)[0][1] == pytest.approx(10.0 if starts == 10.0 else 10.5)


def test_passing_one_member_of_two_stops_both() -> None:
    """t seconds at one member cost SP size times t: both members stand still for half a second."""
    result = run((0, 20_000, (0, 1)), (2.5, 500, (1,)), passing="r1")
    assert spans(result) == [(0, 10.5), (3, 3.5)]
    assert result.busy_s == (10, 10.5)
    assert result.records[0].stood_s == (0.5,)


def test_two_short_prompts_pass_both_members_at_the_same_layer() -> None:
    """Packed: the ring stands still once, for the longer one."""
    result = run((0, 20_000, (0, 1)), (2.5, 500, (0,)), (2.8, 400, (1,)), passing="r1 r2")
    assert spans(result) == [(0, 10.5), (3, 3.5), (3, 3.4)]
    assert result.busy_s == pytest.approx((10.5, 10.4))


def test_one_that_comes_while_the_ring_stands_still_starts_at_once_at_another_member() -> None:
    """It ends within the stall: nobody is delayed by it."""
    result = run((0, 20_000, (0, 1)), (2.5, 800, (0,)), (3.3, 400, (1,)), passing="r1 r2")
    assert spans(result) == [(0, 10.8), (3, 3.8), (3.3, 3.7)]


def test_a_passing_prompt_on_two_instances() -> None:
    result = run((0, 20_000, (0, 1)), (2.5, 1000, (0, 1)), passing="r1")
    assert spans(result) == [(0, 10.5), (3, 3.5)]
    assert result.busy_s == (10.5, 10.5)


def test_a_passing_prompt_over_two_rings_holds_the_first_until_the_second_is_there() -> None:
    """Boundaries at 3 s (layers of 1 s) and 2.5 s (half a second): the second waits from 2.5 on."""
    result = run((0, 10_000, (0,)), (0, 5_000, (1,)), (2.2, 1000, (0, 1)), passing="r2")
    assert spans(result) == [(0, 10.5), (0, 6.0), (3, 3.5)]
    assert [r.stood_s for r in result.records] == [(0.5,), (1.0,), ()]


def test_a_passing_prompt_takes_an_idle_instance_too() -> None:
    """The next prompt on that instance waits for it."""
    result = run((0, 10_000, (0,)), (2.5, 2000, (0, 1)), (2.6, 1000, (1,)), passing="r1")
    assert spans(result) == [(0, 11), (3, 4), (4, 5)]


def test_of_those_that_wait_to_pass_the_shortest_goes_first() -> None:
    """r1 runs to its end at 5 s, though shorter ones came; then r3, then r2; then the chunk."""
    rows: tuple[Row, ...] = ((0, 10_000, (0,)), (2.5, 2000, (0,)), (3.2, 1000, (0,)))
    result = run(*rows, (3.4, 500, (0,)), passing="r1 r2 r3")
    assert spans(result) == [(0, 13.5), (3, 5), (5.5, 6.5), (5, 5.5)]


def test_one_order_at_all_instances() -> None:
    """r2 (0.4 s, both instances) waits for r1, which serves instance 0 till 4 s; r3 (0.5 s) lets it
    go first at instance 1 too, though that is free."""
    rows: tuple[Row, ...] = ((0, 20_000, (0, 1)), (2.5, 1000, (0,)), (3.0, 800, (0, 1)))
    result = run(*rows, (3.2, 500, (1,)), passing="r1 r2 r3")
    assert spans(result) == [(0, 11.9), (3, 4), (4, 4.4), (4.4, 4.9)]


def test_a_chunk_on_a_larger_group_waits_for_the_prompt_that_passes_a_new_member() -> None:
    """r0's second chunk needs instance 1, which serves r1 from 0.5 to 2.5 s, idle before."""
    setup = world(instances=2, layers=10, preempt_budget=1.0)
    script: Mapping[str, Placement] = {
        "r0": ((2000, (0,)), (2000, (0, 1))),
        "r1": ((2000, (1,)),),
    }
    policy = Passing(setup, script, ["r1"])
    first, second = simulate(setup, requests((0, 4000, 1), (0.5, 2000, 1)), policy=policy).records
    assert [(c.start_s, c.end_s) for c in first.chunks] == [(0, 2), (2.5, 3.5)]
    assert second.chunks[0].start_s == 0.5


def test_a_prompt_passes_between_two_chunks() -> None:
    """It comes in the first chunk's last layer and runs before the second chunk."""
    setup = world(instances=2, layers=10, preempt_budget=1.0)
    script: Mapping[str, Placement] = {
        "r0": ((2000, (0,)), (2000, (0, 1))),
        "r1": ((600, (0,)),),
    }
    policy = Passing(setup, script, ["r1"])
    first, second = simulate(setup, requests((0, 4000, 1), (1.9, 600, 1)), policy=policy).records
    assert [c.end_s for c in first.chunks] == pytest.approx([2, 3.6])
    assert second.chunks[0].start_s == pytest.approx(2)


class Seen(Passing):
    """Notes every view."""

    views: list[tuple[float, PoolView]]

    def step(self, pool: PoolView, now_s: float) -> Any:
        self.views.append((now_s, pool))
        return super().step(pool, now_s)


def test_what_the_policy_sees() -> None:
    """r0 takes 10 s on both, budget 0.5 of that. r1 (0.6 s) passes instance 1 at 3 s; r2 comes
    before it starts, r3 while it runs, r4 when the chunk goes on."""
    setup = world(instances=2, layers=10, preempt_budget=0.5)
    rows = ((0.0, 20_000), (2.5, 600), (2.75, 100), (3.25, 100), (4.0, 100))
    script: dict[str, Placement] = {
        f"r{n}": ((tokens, (0,)),) for n, (_, tokens) in enumerate(rows)
    }
    script |= {"r0": ((20_000, (0, 1)),), "r1": ((600, (1,)),)}
    policy = Seen(setup, script, ["r1", "r2", "r3", "r4"])
    policy.views = []
    simulate(setup, requests(*((*row, 1) for row in rows)), policy=policy)
    seen = {now: pool.passable for now, pool in policy.views if pool.passable}

    def ring(now: float) -> tuple[Any, ...]:
        (r,) = seen[now]
        assert r.instances == (0, 1)
        assert (r.own_s, r.waited_s) == (10, now)
        return (r.left_s, r.boundary_s, r.resume_s, r.budget_s, r.taken_s)

    def close(*expected: Any) -> tuple[Any, ...]:
        *numbers, taken = expected
        return (*(pytest.approx(n) for n in numbers), pytest.approx(taken))

    assert ring(2.5) == close(7.5, 0.5, 0.5, 5.0, (0, 0))
    assert ring(2.75) == close(7.25, 0.25, 0.85, 4.4, (0, 0.85))
    assert ring(3.25) == close(7.0, 0.0, 0.35, 4.4, (0, 0.35))
    assert ring(4.0) == close(6.6, 0.6, 0.6, 4.4, (0, 0))
    [pool] = [pool for now, pool in policy.views if now == 4.0]
    assert pool.queue_s == pytest.approx((6.6, 6.6))


def test_nobody_may_be_delayed_beyond_the_budget() -> None:
    rows: tuple[Row, ...] = ((0, 10_000, (0,)), (2.5, 2000, (0,)), (6, 100, (0,)))
    assert run(*rows[:2], passing="r1", preempt_budget=0.2).records[0].ttft_s == 12
    with pytest.raises(InvariantError, match=r"r2.* delays r0 by 0\.100000 s of 0\.000000 s left"):
        run(*rows, passing="r1 r2", preempt_budget=0.2)


def test_those_behind_the_passed_one_count_too() -> None:
    """r1 (0.5 s) is bound behind r0: a stall of 0.2 s is within r0's budget, not within r1's."""
    rows: tuple[Row, ...] = ((0, 10_000, (0,)), (1, 500, (0,)), (2.5, 200, (0,)))
    assert spans(run(*rows, passing="r2", preempt_budget=0.5))[1] == pytest.approx((10.2, 10.7))
    with pytest.raises(InvariantError, match=r"delays r1 by 0\.2"):
        run(*rows, passing="r2", preempt_budget=0.2)


def test_a_plan_that_passes_has_one_chunk() -> None:
    setup = world(instances=2, preempt_budget=1.0)

    class Two(Passing):
        def plan(self, prompt: Any, pool: Any) -> Any:
            plan = super(Passing, self).plan(prompt, pool)
            return plan and plan.__class__(plan.chunks, plan.ttft_s, self.name, passes=True)

    script: Mapping[str, Placement] = {"r0": ((100, (0,)), (100, (0, 1)))}
    with pytest.raises(InvariantError, match="passes with 2 chunks"):
        simulate(setup, requests((0, 200, 1)), policy=Two(setup, script, ["r0"]))


def test_without_a_budget_nothing_is_shown_to_pass() -> None:
    setup = world(instances=1, preempt_budget=0.0)
    policy = Seen(setup, {"r0": ((1000, (0,)),), "r1": ((10, (0,)),)}, [])
    policy.views = []
    simulate(setup, requests((0, 1000, 1), (0.5, 10, 1)), policy=policy)
    assert [pool.passable for _, pool in policy.views] == [(), ()]
