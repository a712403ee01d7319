"""Which chunks a prompt may pass, and what it costs: by hand, and what holds for any rings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import Coefficients, LatencyModel, Plan, PlannedChunk, PoolView, PromptView
from sglang_cdsp.planner.passing import Passing, ways_to_pass
from sglang_cdsp.planner.problem import Problem, make_problem
from sglang_cdsp.planner.types import Passable
from sglang_cdsp.planner.views import after_plan
from tests.planner.pools import quick

LINEAR = LatencyModel(tuple((s, Coefficients(0.0, 1e-3 / s, 0.0, 0.0)) for s in (1, 2, 4)))
"""One second for 1000 tokens on one instance, and perfect speed-up."""


def ring(*instances: int, **changes: object) -> Passable:
    """A ring in the middle of a prompt of 10 s, its next layer in 0.1 s, nobody passing."""
    known = {
        "own_s": 10.0,
        "waited_s": 5.0,
        "left_s": 5.0,
        "boundary_s": 0.1,
        "resume_s": 0.1,
        "budget_s": 2.0,
        "taken_s": (0.0,) * len(instances),
    }
    return Passable(instances, **{**known, **changes})  # type: ignore[arg-type]


def problem(tokens: int, queue: tuple[float, ...], free: int = 100_000) -> Problem:
    pool = PoolView(queue, (free,) * len(queue), 4)
    return make_problem(PromptView("r", tokens), pool, LINEAR, (1, 2, 4))


def ways(tokens: int, queue: tuple[float, ...], *rings: Passable) -> dict[tuple[int, ...], Passing]:
    return {way.group: way for way in ways_to_pass(problem(tokens, queue), rings)}


def test_one_member_of_two_costs_both_for_as_long() -> None:
    found = ways(1000, (5.0, 5.0), ring(0, 1))
    assert found == {
        (0,): Passing((0,), 0.1, 1.1, 2.0, (((0, 1), 1.0),)),
        (0, 1): Passing((0, 1), 0.1, 0.6, 1.0, (((0, 1), 0.5),)),
    }


def test_beside_one_that_passes_is_room_for_nothing() -> None:
    """Instance 0 serves somebody until 1.5 s: up to then instance 1 delays nobody."""
    still = ring(0, 1, boundary_s=0.0, resume_s=1.5, taken_s=(1.5, 0.0))
    found = ways(1000, (5.0, 5.0), still)
    assert found[1,] == Passing((1,), 0.0, 1.0, 0.0, (((0, 1), 0.0),))
    assert found[0, 1] == Passing((0, 1), 1.5, 2.0, 1.0, (((0, 1), 0.5),))
    assert ways(2000, (5.0, 5.0), still)[1,] == Passing((1,), 0.0, 2.0, 1.0, (((0, 1), 0.5),))


def test_over_two_rings_the_longer_prompts_first_and_both_stand_still() -> None:
    """The first is there at 0.1 s and waits until 0.3 s for the second."""
    found = ways(1000, (5.0, 5.0), ring(0, boundary_s=0.3, resume_s=0.3), ring(1, own_s=20.0))
    way = found[0, 1]
    assert (way.start_s, way.end_s) == (0.3, 0.8)
    assert way.work == pytest.approx(1.2)
    assert dict(way.delays) == pytest.approx({(0,): 0.5, (1,): 0.7})
    assert set(found) == {(0,), (1,), (0, 1)}


def test_who_has_gone_on_to_the_next_ring_is_one_member() -> None:
    """Instance 0 has run its shard of the first ring and begun the second one.

    Red when a group names it twice: half of the prompt would be computed nowhere.
    """
    found = ways(100, (5.0, 5.0), ring(0, 1, own_s=20.0), ring(0))
    assert set(found) == {(0,), (1,), (0, 1)}
    assert {members for members, _ in found[0,].delays} == {(0,)}
    assert {members for members, _ in found[0, 1].delays} == {(0,), (0, 1)}


def test_an_idle_instance_takes_part_at_the_price_of_its_seconds() -> None:
    found = ways(1000, (5.0, 0.0), ring(0))
    assert set(found) == {(0,), (0, 1)}, "on the idle one alone nobody is passed"
    assert found[0, 1].work == pytest.approx(1.1)
    assert found[0, 1].delays == (((0,), 0.5),)


def test_budgets_slots_history_and_seats_that_are_down() -> None:
    assert set(ways(1000, (5.0, 5.0), ring(0, 1, budget_s=0.7))) == {(0, 1)}
    assert ways(1000, (5.0, 5.0), ring(0, 1, budget_s=0.0)) == {}
    tight = problem(1000, (5.0, 5.0), free=600)
    assert [way.group for way in ways_to_pass(tight, (ring(0, 1),))] == [(0, 1)]
    known = PoolView((5.0, 5.0), None, 4, up=(True, False))
    down = make_problem(PromptView("r", 10), known, LINEAR, (1, 2))
    assert list(ways_to_pass(down, (ring(0, 1),))) == []
    with_history = make_problem(PromptView("r", 10, 16, (0,)), known, LINEAR, (1, 2))
    assert list(ways_to_pass(with_history, (ring(0),))) == []


def test_the_pool_after_one_that_passes() -> None:
    pool = PoolView((5.0, 5.0, 3.0), (1000,) * 3, 4, passable=(ring(0, 1), ring(2)))
    chunk = PlannedChunk(400, (1,), 0.1, 0.5)
    after = after_plan(pool, Plan((chunk,), 0.5, "p", passes=True), PromptView("r", 400), 1)
    assert after.queue_s == pytest.approx((5.4, 5.4, 3.0))
    assert after.free_tokens == (1000, 600, 1000)
    first, second = after.passable
    assert (first.resume_s, first.boundary_s, first.taken_s) == (0.5, 0.1, (0.0, 0.5))
    assert first.budget_s == pytest.approx(1.6)
    # Its prompt may wait for the first ring: what is left counts for both.
    assert second == ring(2, budget_s=first.budget_s)


rings = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.floats(0.5, 30),
        st.floats(0, 1),
        st.floats(0, 2),
        st.floats(0, 5),
    ),
    max_size=4,
)


@quick
@given(rings, st.integers(1, 8000), st.integers(0, 3), st.integers(100, 5000))
def test_every_way_keeps_to_budgets_and_slots(
    drawn: list[tuple[int, float, float, float, float]], tokens: int, idle: int, free: int
) -> None:
    made, at = [], 0
    for size, own, boundary, longer, budget in drawn:
        group = tuple(range(at, at + size))
        at += size
        taken = (boundary + longer,) + (0.0,) * (size - 1) if longer else (0.0,) * size
        made.append(
            ring(
                *group,
                own_s=own,
                boundary_s=boundary,
                resume_s=boundary + longer,
                budget_s=budget,
                taken_s=taken,
            )
        )
    queue = (9.0,) * at + (0.0,) * idle
    if not queue:
        return
    given_problem = problem(tokens, queue, free)
    for way in ways_to_pass(given_problem, tuple(made)):
        size = len(way.group)
        assert size in given_problem.sizes
        assert len(set(way.group)) == size
        assert given_problem.fits(((tokens, way.group),))
        assert way.end_s - way.start_s == pytest.approx(LINEAR.predict(size, 0, tokens))
        touched = [r for r in made if set(r.instances) & set(way.group)]
        assert touched
        delays = [max(0.0, way.end_s - r.resume_s) for r in touched]
        assert all(delay <= r.budget_s for delay, r in zip(delays, touched, strict=True))
        alone = sum(i >= at for i in way.group)
        work = sum(d * len(r.instances) for d, r in zip(delays, touched, strict=True))
        assert way.work == pytest.approx(work + alone * way.end_s)
