"""Chunks are cut where a member's activations would not fit, and nothing else changes."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.shards import within_shards
from sglang_cdsp.planner.types import Plan, PlannedChunk


def plan_of(*chunks: tuple[int, int], page: int) -> Plan:
    """Chunks of so many pages (the last one token less) on the first so many instances."""
    planned, at_s = [], 1.0
    for number, (pages, size) in enumerate(chunks):
        tokens = pages * page - (number == len(chunks) - 1 and page > 1)
        planned.append(PlannedChunk(tokens, tuple(range(size)), at_s, at_s + tokens / 10))
        at_s += tokens / 10 + 0.5
    return Plan(tuple(planned), at_s, "p")


@given(
    pages=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    page=st.sampled_from([1, 16, 64]),
    most_pages=st.integers(2, 12),
)
def test_no_shard_is_larger_and_the_plan_is_the_same(
    pages: list[int], sizes: list[int], page: int, most_pages: int
) -> None:
    plan = plan_of(*zip(pages, sorted(sizes), strict=False), page=page)
    most = most_pages * page
    cut = within_shards(plan, most, page)
    assert cut.tokens == plan.tokens
    for layout in plan_layout([(c.tokens, list(c.instances)) for c in cut.chunks], page):
        for member in layout.group:
            assert sum(span.tokens for span in layout.shard(member)) <= most
    starts = [0, *accumulate(chunk.tokens for chunk in cut.chunks)]
    assert all(start % page == 0 for start in starts[:-1])
    promised, needed = kv_demand(plan.placement, page), kv_demand(cut.placement, page)
    assert needed.keys() == promised.keys()
    assert all(needed[i] <= promised[i] for i in needed)
    assert cut.seconds == pytest.approx(plan.seconds)
    assert cut.chunks[0].start_s == plan.chunks[0].start_s
    assert cut.chunks[-1].end_s == plan.chunks[-1].end_s
    at = 0
    for chunk in plan.chunks:
        mine = cut.chunks[at:]
        for count in range(1, len(mine) + 1):
            if sum(piece.tokens for piece in mine[:count]) == chunk.tokens:
                at += count
                assert {piece.instances for piece in mine[:count]} == {chunk.instances}
                break
        else:
            raise AssertionError("a piece spans two chunks")


def test_times_are_in_proportion() -> None:
    plan = Plan((PlannedChunk(100, (0, 1), 2.0, 12.0),), 12.0, "p", passes=False)
    cut = within_shards(plan, 20, 1)
    assert [(c.tokens, c.start_s, c.end_s) for c in cut.chunks] == [
        (40, 2.0, 6.0),
        (40, 6.0, 10.0),
        (20, 10.0, 12.0),
    ]
    assert cut.ttft_s == 12.0


def test_what_fits_and_what_has_no_limit_stays() -> None:
    plan = plan_of((6, 2), page=16)
    assert within_shards(plan, 64, 16) is plan
    assert within_shards(plan, None, 16) is plan


def test_a_limit_below_two_pages_is_two_pages() -> None:
    cut = within_shards(plan_of((8, 2), page=64), 10, 64)
    assert [chunk.tokens for chunk in cut.chunks] == [256, 255]
