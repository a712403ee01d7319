"""Instances that are down, under every policy and any state of the pool."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.types import Passable
from tests.planner.pools import MODEL, quick

EVERY = (
    "cdsp",
    "cdsp-paper",
    "cdsp-late",
    "single-chunk",
    "fixed-sp:2",
    "fixed-sp:4",
    "loongserve",
    "threshold:8000",
    "data-parallel",
)
PAGE = 16


@st.composite
def pools(draw: st.DrawFn, size: int = 8) -> PoolView:
    """Any pool of eight, some of it down; rings on pairs of those that are up."""
    queue = draw(st.lists(st.sampled_from([0.0, 0.01, 1.0, 5.0]), min_size=size, max_size=size))
    up = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    pages = st.integers(0, 200).map(lambda n: n * PAGE)
    free = draw(st.none() | st.lists(pages, min_size=size, max_size=size))
    rings = []
    for first in range(0, size, 2):
        pair = (first, first + 1)
        if draw(st.booleans()):
            rings.append(Passable(pair, 5.0, 1.0, 3.0, 0.01, 0.01, 4.0, (0.0, 0.0)))
    return PoolView(
        queue_s=tuple(queue),
        free_tokens=None if free is None else tuple(free),
        instances_per_node=draw(st.sampled_from([2, 4, 8])),
        up=tuple(up),
        capacity_tokens=None if free is None else (200 * PAGE,) * size,
        passable=tuple(rings),
    )


PROMPTS = st.lists(st.integers(1, 20_000), min_size=1, max_size=6)


@quick
@given(name=st.sampled_from(EVERY), pool=pools(), tokens=PROMPTS)
def test_no_policy_plans_on_an_instance_that_is_down(
    name: str, pool: PoolView, tokens: list[int]
) -> None:
    policy = make_policy(name, PolicyOptions(MODEL, (1, 2, 4), page_size=PAGE, preempt_budget=0.5))
    assert pool.up is not None
    prompts = [PromptView(f"r{i}", n) for i, n in enumerate(tokens)]
    for prompt in prompts:
        policy.arrive(prompt, 0.0)
        alone = policy.plan(prompt, pool)
        assert alone is None or all(pool.up[i] for i in alone.instances)
        explained, _ = policy.explain(prompt, pool)
        assert explained is None or all(pool.up[i] for i in explained.instances)
    for _, plan in policy.step(pool, 10.0):
        assert all(pool.up[i] for i in plan.instances)


@quick
@given(name=st.sampled_from(EVERY), pool=pools(), tokens=PROMPTS)
def test_what_could_run_does_once_the_rest_has_ended(
    name: str, pool: PoolView, tokens: list[int]
) -> None:
    """And what could not does not, whoever is before it."""
    policy = make_policy(name, PolicyOptions(MODEL, (1, 2, 4), page_size=PAGE))
    could = set()
    for i, n in enumerate(tokens):
        prompt = PromptView(f"r{i}", n)
        policy.arrive(prompt, 0.0)
        if policy.could_run(prompt, pool):
            could.add(prompt.rid)
    empty = PoolView(
        (0.0,) * pool.size,
        pool.capacity_tokens,
        pool.instances_per_node,
        pool.up,
        pool.capacity_tokens,
    )
    started = set()
    for turn in range(len(tokens)):
        started |= {rid for rid, _ in policy.step(empty, float(turn))}
    assert started == could
    assert set(policy.waiting()) == {f"r{i}" for i in range(len(tokens))} - could


@quick
@given(name=st.sampled_from(EVERY), tokens=st.integers(1, 100_000))
def test_nothing_is_planned_where_nothing_is_up(name: str, tokens: int) -> None:
    policy = make_policy(name, PolicyOptions(MODEL, (1, 2, 4)))
    pool = PoolView((0.0,) * 4, None, 4, up=(False,) * 4)
    prompt = PromptView("r", tokens)
    policy.arrive(prompt, 0.0)
    assert policy.plan(prompt, pool) is None
    assert policy.explain(prompt, pool)[0] is None
    assert policy.step(pool, 0.0) == []
    assert not policy.could_run(prompt, pool)
    assert policy.waiting() == ("r",)


@quick
@given(name=st.sampled_from(EVERY))
def test_a_prompt_that_comes_back_goes_before_those_that_came_after(name: str) -> None:
    policy = make_policy(name, PolicyOptions(MODEL, (1, 2, 4)))
    first = PromptView("first", 30_000, arrival_s=1.0)
    policy.arrive(first, 1.0)
    pool = PoolView((0.0,) * 4, None, 4)
    assert [rid for rid, _ in policy.step(pool, 1.0)] == ["first"]
    for i in range(3):
        policy.arrive(PromptView(f"r{i}", 100 + i, arrival_s=2.0 + i), 2.0 + i)
    policy.take_back(first, 6.0)
    assert policy.waiting() == ("first", "r0", "r1", "r2")
    policy.finish("first", 7.0)
    assert policy.waiting() == ("r0", "r1", "r2")
