"""What is wrong with a plan: nothing with those of our policies, something with any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import PoolView, PromptView, make_policy
from sglang_cdsp.planner.plan_fault import plan_fault
from sglang_cdsp.planner.types import Placement, Plan, PlannedChunk
from tests.planner.pools import Case, cases, quick

POOL = PoolView((0.0,) * 4, None, 4, (True, True, True, False))


def plan(*chunks: tuple[int, tuple[int, ...]]) -> Plan:
    """A plan of these chunks; when they run does not matter."""
    return Plan(tuple(PlannedChunk(n, group, 0.0, 1.0) for n, group in chunks), 1.0, "test")


@quick
@given(cases(), st.sampled_from(("cdsp", "cdsp-paper", "cdsp-late", "single-chunk", "loongserve")))
def test_plans_of_our_policies_have_none(case: Case, name: str) -> None:
    made = make_policy(name, case.options).plan(case.prompt, case.pool)
    assert made is None or plan_fault(made, case.prompt, case.pool) == ""


@quick
@given(cases(), st.data())
def test_a_plan_that_was_changed_has_one(case: Case, data: st.DataObject) -> None:
    made = make_policy("cdsp", case.options).plan(case.prompt, case.pool)
    if made is None:
        return
    at = data.draw(st.integers(0, len(made.chunks) - 1))
    chunk = made.chunks[at]
    changed = data.draw(
        st.sampled_from(
            [
                replace(chunk, tokens=chunk.tokens + 1),
                replace(chunk, instances=()),
                replace(chunk, instances=(*chunk.instances, chunk.instances[0])),
                replace(chunk, instances=(*chunk.instances, case.pool.size)),
                replace(chunk, instances=(*chunk.instances, -1)),
            ]
        )
    )
    chunks = (*made.chunks[:at], changed, *made.chunks[at + 1 :])
    assert plan_fault(replace(made, chunks=chunks), case.prompt, case.pool)


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ((), "'r' as chunks of [] tokens, which has 100"),
        (((100, (0,)), (0, (0, 1))), "as chunks of [100, 0] tokens"),
        (((60, (0,)), (60, (0, 1))), "as chunks of [60, 60] tokens, which has 100"),
        (((100, (0, 3)),), "[0, 3], some of which are down"),
        (((50, (0, 1)), (50, (1, 0, 2))), "[1, 0, 2], which does not begin with [0, 1]"),
        (((50, (0, 1)), (50, (0,))), "[0], which does not begin with [0, 1]"),
    ],
)
def test_each_fault_is_named(chunks: Placement, says: str) -> None:
    assert says in plan_fault(plan(*chunks), PromptView("r", 100), POOL)


def test_the_first_group_begins_with_the_holders_of_the_history() -> None:
    prompt = PromptView("r", 100, 64, (1, 2))
    assert plan_fault(plan((100, (1, 2, 0))), prompt, POOL) == ""
    assert "does not begin with [1, 2]" in plan_fault(plan((100, (2, 1))), prompt, POOL)


def test_a_plan_that_reuses_a_prefix_computes_the_rest() -> None:
    reusing = replace(plan((40, (1, 2))), reused=60)
    assert plan_fault(reusing, PromptView("r", 100), POOL) == ""
    assert "which has 41" in plan_fault(reusing, PromptView("r", 101), POOL)
    negative = replace(plan((140, (1, 2))), reused=-40)
    assert plan_fault(negative, PromptView("r", 100), POOL)
