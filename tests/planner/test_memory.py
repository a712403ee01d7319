"""The KV rule: on the safe side of what the layout really holds, and not far from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.parallel.spans import Span, rebalance, split_chunk
from sglang_cdsp.planner.memory import (
    fits,
    held_after,
    history_share,
    kv_demand,
    longest_chunk,
    shard_share,
)
from tests.planner.pools import quick


def slots(spans: tuple[Span, ...], page: int) -> int:
    """KV slots of spans that start at a page border."""
    return sum(-(-span.tokens // page) * page for span in spans)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, list[tuple[int, tuple[int, ...]]]]:
    page = draw(st.sampled_from((1, 4, 16)))
    sizes = sorted(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    chunks = [(draw(st.integers(1, 40)) * page, tuple(range(size))) for size in sizes[:-1]]
    return page, [*chunks, (draw(st.integers(1, 700)), tuple(range(sizes[-1])))]


@quick
@given(plans())
def test_no_member_ever_holds_more_than_was_promised(
    plan: tuple[int, list[tuple[int, tuple[int, ...]]]],
) -> None:
    page, chunks = plan
    promised = kv_demand(chunks, page)
    held: dict[int, tuple[Span, ...]] = {}
    start = 0
    for tokens, group in chunks:
        spread = rebalance(held, group, page).held if held else {}
        shards = split_chunk(start, tokens, len(group), page)
        for member, shard in zip(group, shards, strict=True):
            # Given-away slots stay taken during the chunk: at most old and new together.
            before = slots(held.get(member, ()), page)
            after = slots(spread.get(member, ()), page)
            assert max(before, after) + slots(shard, page) <= promised[member]
        held = {
            member: (*spread.get(member, ()), *shard)
            for member, shard in zip(group, shards, strict=True)
        }
        start += tokens
    # The promise is not wildly more than an even share either: a few pages a chunk.
    total = sum(tokens for tokens, _ in chunks)
    width = len(chunks[-1][1])
    assert promised[chunks[-1][1][-1]] <= total / width + 4 * page * len(chunks)


@quick
@given(plans())
def test_planning_the_rest_at_a_boundary_needs_no_more_than_the_whole_plan(
    plan: tuple[int, list[tuple[int, tuple[int, ...]]]],
) -> None:
    page, chunks = plan
    whole = kv_demand(chunks, page)
    for cut in range(1, len(chunks)):
        history = sum(tokens for tokens, _ in chunks[:cut])
        group = chunks[cut - 1][1]
        rest = kv_demand(chunks[cut:], page, history, group)
        already = history_share(history, len(group), page)
        assert all(rest[i] + (already if i in group else 0) <= whole[i] for i in rest)


def test_the_rule_by_hand() -> None:
    # 100 tokens on one instance, then 60 on two: the first keeps its 100 while it gives 50 away.
    demand = kv_demand([(100, (3,)), (60, (3, 5))], 1)
    assert demand == {3: 100 + 30, 5: 50 + 30}
    assert held_after([(100, (3,)), (60, (3, 5))], 1) == 50 + 30
    # Cached history that already lies on the instance costs it nothing more.
    assert kv_demand([(60, (3, 5))], 1, 100, (3,)) == {3: 30, 5: 50 + 30}


@quick
@given(st.integers(0, 5000), st.integers(1, 9), st.sampled_from((1, 16)))
def test_the_longest_chunk_is_the_longest_that_fits(room: int, size: int, page: int) -> None:
    longest = longest_chunk(room, size, page)
    assert longest == 0 or shard_share(longest, size, page) <= room
    assert shard_share(longest + 1, size, page) > room


@pytest.mark.parametrize(("free", "expected"), [((64, 32), True), ((63, 32), False)])
def test_slots_needed(free: tuple[int, ...], expected: bool) -> None:
    """64 tokens on one instance; then 64 more on two: 2 of 4 pieces, so 32 each.

    Instance 0 keeps its 64 until the end of the second chunk, so it needs 96 in all; instance 1
    gets half the history and its shard.
    """
    chunks = ((64, (0,)), (64, (0, 1)))
    assert fits(chunks, (free[0] + 32, free[1] + 32), 16) is expected
