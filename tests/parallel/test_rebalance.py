"""Spreading history over a group that has grown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.errors import LayoutError
from sglang_cdsp.parallel.spans import Rebalance, Span, joined, rebalance, split_chunk, tokens_of

Held = dict[int, tuple[Span, ...]]


@st.composite
def histories(draw: st.DrawFn, whole_pages: bool) -> tuple[Held, tuple[int, ...], int]:
    """A prompt's history as chunks left it, dealt out page by page, and a larger group."""
    page = draw(st.sampled_from([1, 2, 4, 64]))
    group = tuple(draw(st.permutations(range(6)))[: draw(st.integers(2, 6))])
    holders = group[: draw(st.integers(1, len(group) - 1))]
    start = 0 if whole_pages else draw(st.integers(0, page - 1))
    stop = draw(st.integers(1, 60)) * page
    stop += 0 if whole_pages else draw(st.integers(0, page - 1))
    held: dict[int, list[Span]] = {member: [] for member in holders}
    at = start
    while at < stop:
        run = draw(st.integers(1, 20)) * page
        cut = min(stop, at - at % page + run)
        held[draw(st.sampled_from(holders))].append(Span(at, cut))
        at = cut
    return {member: tuple(spans) for member, spans in held.items()}, group, page


def check(held: Held, group: tuple[int, ...], page: int) -> Rebalance:
    """Assert what holds for every rebalance and return it."""
    result = rebalance(held, group, page)
    assert tuple(result.held) == group
    everything = joined(span for spans in held.values() for span in spans)
    assert joined(span for spans in result.held.values() for span in spans) == everything
    for member in group:
        left = [move.span for move in result.moves if move.src == member]
        came = [move.span for move in result.moves if move.dst == member]
        joined((*left, *came))  # nobody passes on what it receives: that would overlap
        assert joined((*result.held[member], *left)) == joined((*held.get(member, ()), *came))
    inner = {cut for move in result.moves for cut in (move.span.start, move.span.stop)}
    ends = {everything[0].start, everything[-1].stop}
    assert all(cut % page == 0 for cut in inner - ends), "pages stay whole"
    return result


@settings(print_blob=True, deadline=None, max_examples=200)
@given(histories(whole_pages=True))
def test_whole_pages_move_as_little_as_possible(case: tuple[Held, tuple[int, ...], int]) -> None:
    held, group, page = case
    result = check(held, group, page)
    before = [tokens_of(held.get(member, ())) // page for member in group]
    after = [tokens_of(result.held[member]) // page for member in group]
    assert max(after) - min(after) <= 1
    # Least possible: all above the ceiling must leave, all below the floor must be filled.
    floor, ceiling = sum(before) // len(group), -(-sum(before) // len(group))
    least = max(
        sum(max(0, pages - ceiling) for pages in before),
        sum(max(0, floor - pages) for pages in before),
    )
    assert sum(move.span.tokens for move in result.moves) == least * page
    assert not {move.src for move in result.moves} & {move.dst for move in result.moves}


@settings(print_blob=True, deadline=None, max_examples=200)
@given(histories(whole_pages=False))
def test_cut_off_pages_stay_within_a_page_too(case: tuple[Held, tuple[int, ...], int]) -> None:
    held, group, page = case
    loads = [tokens_of(spans) for spans in check(held, group, page).held.values()]
    assert max(loads) - min(loads) <= page


def test_the_papers_example_doubles_a_group() -> None:
    held = {i: split_chunk(0, 64, 4, 1)[i] for i in range(4)}
    result = rebalance(held, tuple(range(8)), 1)
    assert {tokens_of(spans) for spans in result.held.values()} == {8}
    assert {(move.src, move.dst) for move in result.moves} == {(0, 7), (1, 6), (2, 5), (3, 4)}


def test_nothing_moves_when_nobody_is_new() -> None:
    held = {0: (Span(0, 90),), 1: (Span(90, 100),)}
    assert rebalance(held, (0, 1), 1) == Rebalance(held, ())
    spread = rebalance({0: held[0]}, (0, 1), 1)
    assert [move.span for move in spread.moves] == [Span(45, 90)], "uneven, but for nobody new"


def test_a_short_history_leaves_members_without() -> None:
    result = rebalance({5: (Span(0, 65),)}, (5, 2, 7), 64)
    assert result.held == {5: (Span(0, 64),), 2: (Span(64, 65),), 7: ()}


def test_nothing_to_spread() -> None:
    assert rebalance({}, (1, 0), 16) == Rebalance({1: (), 0: ()}, ())


def test_what_cannot_be() -> None:
    with pytest.raises(LayoutError, match=r"missing: \[3\]"):
        rebalance({3: (Span(0, 1),)}, (0, 1), 1)
    with pytest.raises(LayoutError, match="exactly one holder"):
        rebalance({0: (Span(0, 5),), 1: (Span(4, 9),)}, (0, 1, 2), 1)
    with pytest.raises(LayoutError, match="every holder once"):
        rebalance({}, (0, 0), 1)
