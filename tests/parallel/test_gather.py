"""What home lacks of a prompt in the last chunk: exactly that comes, from where it lies then."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.chunk_layout import ChunkLayout, plan_layout
from sglang_cdsp.parallel.gather import moves_to_home, without
from sglang_cdsp.parallel.spans import Span, joined
from tests.engine.plans import PAGE_SIZES, plans


def held_before(layouts: tuple[ChunkLayout, ...], instance: int) -> list[Span]:
    """What an instance holds right before the last chunk, its moves not made yet."""
    last = layouts[-1]
    held = list(last.history[last.group.index(instance)])
    arriving = [move.span for move in last.moves if move.dst == instance]
    leaving = [move.span for move in last.moves if move.src == instance]
    kept = [part for span in held for part in without(span, arriving)]
    return [*kept, *leaving]


@settings(deadline=None)
@given(st.data(), PAGE_SIZES)
def test_home_ends_with_the_whole_prompt_and_nothing_twice(data: st.DataObject, page: int) -> None:
    chunks = data.draw(plans(page))
    layouts = plan_layout(chunks, page)
    last = layouts[-1]
    home = last.group[0]
    arriving = [move.span for move in last.moves if move.dst == home]
    gathered = [move.span for move in moves_to_home(last)]
    everything = [*held_before(layouts, home), *arriving, *last.shard(home), *gathered]
    assert joined(everything) == (Span(0, sum(tokens for tokens, _ in chunks)),)


@settings(deadline=None)
@given(st.data(), PAGE_SIZES)
def test_every_span_comes_from_who_holds_it_and_begins_on_a_page_border(
    data: st.DataObject, page: int
) -> None:
    last = plan_layout(data.draw(plans(page)), page)[-1]
    for move in moves_to_home(last):
        member = last.group.index(move.src)
        mine = joined([*last.history[member], *last.spans[member]])
        assert any(s.start <= move.span.start and move.span.stop <= s.stop for s in mine)
        assert move.dst == last.group[0] != move.src
        assert move.span.start % page == 0


def test_a_group_of_one_has_nothing_to_gather() -> None:
    assert moves_to_home(plan_layout([(64, [2])], 1)[-1]) == ()


@settings(deadline=None)
@given(st.data())
def test_without_keeps_the_rest(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, 60), min_size=2, max_size=9)))
    pieces = [Span(a, b) for a, b in pairwise(cuts)]
    removed = [piece for piece in pieces if data.draw(st.booleans())]
    low = data.draw(st.integers(0, 59))
    span = Span(low, data.draw(st.integers(low + 1, 60)))
    gone = {at for piece in removed for at in range(piece.start, piece.stop)}
    left = {at for part in without(span, removed) for at in range(part.start, part.stop)}
    assert left == set(range(span.start, span.stop)) - gone
