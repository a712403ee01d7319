"""Where every token of a plan lies, chunk by chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.chunk_layout import (
    ChunkLayout,
    number_sends,
    padded_tokens,
    plan_layout,
)
from sglang_cdsp.parallel.spans import Move, Span
from sglang_cdsp.planner.memory import kv_demand
from tests.engine.fake_kv import PlanRun
from tests.engine.plans import PAGE_SIZES, plans

examples = settings(max_examples=80, deadline=None, print_blob=True)


def positions(spans: Iterable[Span]) -> Counter[int]:
    return Counter(p for span in spans for p in range(span.start, span.stop))


def peak_tokens(layouts: Sequence[ChunkLayout], page_size: int) -> dict[int, int]:
    """KV slots that each instance needs at once, at worst, over the whole plan.

    While a chunk runs, history that moves away still occupies its old slots: they are freed
    at the chunk's end.
    """
    peak: dict[int, int] = {}
    for layout in layouts:
        for instance, history, own in zip(layout.group, layout.history, layout.spans, strict=True):
            leaving = [move.span for move in layout.moves if move.src == instance]
            need = sum(padded_tokens(spans, page_size) for spans in (history, own, leaving))
            peak[instance] = max(peak.get(instance, 0), need)
    return peak


def once(start: int, stop: int) -> Counter[int]:
    return Counter(range(start, stop))


# -- by hand --------------------------------------------------------------------------------


def test_two_chunks_on_a_growing_group() -> None:
    """8 tokens on instance 3; then 8 on 3 and 1, cut in four: 3 takes the first and last piece.

    Before that, half of the history moves, the last pages of it.
    """
    first, second = plan_layout([(8, [3]), (8, [3, 1])], 2)
    assert (first.start, first.tokens, first.group) == (0, 8, (3,))
    assert (first.spans, first.history, first.moves) == (((Span(0, 8),),), ((),), ())
    assert (second.start, second.index) == (8, 1)
    assert second.moves == (Move(3, 1, Span(4, 8)),)
    assert second.history == ((Span(0, 4),), (Span(4, 8),))
    assert second.spans == ((Span(8, 10), Span(14, 16)), (Span(10, 14),))
    assert second.shard(1) == (Span(10, 14),)
    assert second.shard(0) == (), "not a member"


def test_a_chunk_shorter_than_its_group_leaves_members_without_tokens() -> None:
    (layout,) = plan_layout([(3, [0, 1, 2])], 4)
    assert layout.spans == ((Span(0, 3),), (), ())


def test_numbers_of_sends() -> None:
    """Shards in order of chunks and members, home's part of the last chunk at the end."""
    layouts = plan_layout([(8, [3]), (8, [3, 1])], 2)
    sends = [(s.instance, s.chunk, s.send_id, s.last) for s in number_sends(layouts, 0)]
    assert sends == [(3, 0, 0, False), (1, 1, 1, False), (3, 1, 2, True)]
    clipped = number_sends(layouts, 12)
    assert [s.spans for s in clipped] == [(Span(12, 14),), (Span(14, 16),)]
    assert [s.send_id for s in clipped] == [0, 1]
    (bare,) = number_sends(layouts, 16)
    assert (bare.instance, bare.send_id, bare.spans, bare.last) == (3, 0, (), True)


def test_slots_of_spans_count_whole_pages_each() -> None:
    assert padded_tokens([Span(0, 4), Span(8, 9)], 4) == 8
    assert padded_tokens([], 4) == 0


def test_the_peak_counts_history_that_is_leaving() -> None:
    """Instance 3 keeps its 8 until the second chunk is over: 4 stay, 4 leave, 4 are new."""
    layouts = plan_layout([(8, [3]), (8, [3, 1])], 2)
    assert peak_tokens(layouts, 2) == {3: 12, 1: 8}


# -- whatever the plan ----------------------------------------------------------------------


@examples
@given(st.data(), PAGE_SIZES)
def test_chunks_partition_the_prompt_over_nested_groups(data: st.DataObject, page: int) -> None:
    chunks = data.draw(plans(page))
    layouts = plan_layout(chunks, page)
    assert [(layout.tokens, list(layout.group)) for layout in layouts] == chunks
    assert [layout.index for layout in layouts] == list(range(len(chunks)))
    end = 0
    for layout in layouts:
        assert layout.start == end
        end += layout.tokens
        shards = [span for member in layout.spans for span in member]
        assert positions(shards) == once(layout.start, end)
        last_span = layout.spans[0][-1]
        assert last_span.stop == end, "the chunk's last token is home's"
    for before, after in pairwise(layouts):
        assert after.group[: len(before.group)] == before.group


@examples
@given(st.data(), PAGE_SIZES)
def test_every_token_has_one_holder_at_every_chunk(data: st.DataObject, page: int) -> None:
    """While chunk k runs, history is all earlier chunks; new holders got it by moves alone."""
    layouts = plan_layout(data.draw(plans(page)), page)
    held: dict[int, Counter[int]] = {}
    for layout in layouts:
        history = {m: positions(h) for m, h in zip(layout.group, layout.history, strict=True)}
        total: Counter[int] = sum(history.values(), Counter())
        assert total == once(0, layout.start)
        expected = {member: Counter(held.get(member, Counter())) for member in layout.group}
        for move in layout.moves:
            expected[move.src] -= positions([move.span])
            expected[move.dst] += positions([move.span])
        assert history == expected
        starts = [span.start for member in layout.history for span in member]
        assert all(start % page == 0 for start in starts), "a page has one holder"
        held = {
            member: history[member] + positions(own)
            for member, own in zip(layout.group, layout.spans, strict=True)
        }


@examples
@given(st.data(), PAGE_SIZES)
def test_history_moves_only_when_the_group_grows(data: st.DataObject, page: int) -> None:
    layouts = plan_layout(data.draw(plans(page)), page)
    for before, after in pairwise(layouts):
        if before.group == after.group:
            assert after.moves == ()
        else:
            sizes = [sum(span.tokens for span in spans) for spans in after.history]
            assert max(sizes) - min(sizes) <= page
    assert layouts[0].moves == ()


@examples
@given(st.data(), PAGE_SIZES)
def test_sends_cover_what_decode_lacks_exactly_once(data: st.DataObject, page: int) -> None:
    reused = data.draw(st.integers(0, 4)) * page
    layouts = plan_layout(data.draw(plans(page)), page, reused)
    length = layouts[-1].start + layouts[-1].tokens
    prefix = data.draw(st.integers(0, length // page)) * page
    sends = number_sends(layouts, prefix)
    assert positions(span for send in sends for span in send.spans) == once(prefix, length)
    assert [send.send_id for send in sends] == list(range(len(sends)))
    assert [send.last for send in sends] == [False] * (len(sends) - 1) + [True]
    assert (sends[-1].instance, sends[-1].chunk) == (layouts[0].group[0], len(layouts) - 1)
    assert all(send.spans for send in sends[:-1]), "nobody sends nothing, but for the metadata"
    places = [(send.instance, send.chunk) for send in sends]
    assert len(set(places)) == len(places), "one transfer a member and chunk"
    for send in sends:
        shard = positions(layouts[send.chunk].shard(send.instance))
        if send.chunk == 0 and send.instance == layouts[0].group[0]:
            shard += once(0, reused)
        assert positions(send.spans) <= shard, "a shard is sent by the one that computed it"


@examples
@given(st.data(), PAGE_SIZES)
def test_the_planners_promise_covers_the_need(data: st.DataObject, page: int) -> None:
    """Reckoned from the layout, and counted on real slots chunk by chunk."""
    chunks = data.draw(plans(page))
    layouts = plan_layout(chunks, page)
    promised = kv_demand(chunks, page)
    peak = peak_tokens(layouts, page)
    assert set(peak) <= set(promised)
    assert all(need <= promised[member] for member, need in peak.items())
    run = PlanRun(layouts, page)
    for chunk in range(len(layouts)):
        run.run(chunk)
    counted = {member: allocator.peak for member, allocator in run.allocators.items()}
    assert counted == {member: peak.get(member, 0) for member in counted}


@examples
@given(st.data(), PAGE_SIZES)
def test_slots_hold_what_the_layout_says(data: st.DataObject, page: int) -> None:
    layouts = plan_layout(data.draw(plans(page)), page)
    run = PlanRun(layouts, page)
    for layout in layouts:
        run.run(layout.index)
        for member, history, own in zip(layout.group, layout.history, layout.spans, strict=True):
            spans = [*history, *own]
            expected = [p for span in spans for p in range(span.start, span.stop)]
            assert run.stored(member, spans) == expected
    for member, slot_table in run.slot_table.items():
        slot_table.clear()
        assert run.allocators[member].taken == set()


@pytest.mark.parametrize("tokens", [1, 15, 16, 17])
def test_a_short_prompt_on_many_instances(tokens: int) -> None:
    (layout,) = plan_layout([(tokens, [0, 1, 2, 3])], 16)
    assert positions(span for spans in layout.spans for span in spans) == once(0, tokens)
    assert [send.instance for send in number_sends((layout,), 0)][-1] == 0
