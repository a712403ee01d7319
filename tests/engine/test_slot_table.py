"""KV slots by prompt position: nothing lost, nothing freed twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator

from sglang_cdsp.engine.prefixes import CachedPrefix
from sglang_cdsp.engine.slot_table import OutOfSlots, SlotTable
from sglang_cdsp.parallel.spans import Span
from tests.engine.fake_kv import StrictAllocator
from tests.engine.plans import PAGE_SIZES


def make(page: int, pages: int = 64) -> tuple[SlotTable, StrictAllocator]:
    allocator = StrictAllocator(pages, page)
    return SlotTable(allocator, page), allocator


@pytest.mark.parametrize("page", [1, 4, 16])
def test_take_drop_and_clear(page: int) -> None:
    slot_table, allocator = make(page)
    first, second = Span(0, 4 * page), Span(8 * page, 8 * page + 3)
    slot_table.take([first, second])
    assert slot_table.tokens == 4 * page + -(-3 // page) * page
    assert slot_table.slots([first]).numel() == 4 * page
    assert (
        slot_table.slots([second]).tolist()
        == slot_table.slots([first, second])[4 * page :].tolist()
    )
    slot_table.drop([Span(page, 2 * page)])
    assert slot_table.tokens == 3 * page + -(-3 // page) * page
    with pytest.raises(KeyError, match=f"positions {page}"):
        slot_table.slots([first])
    slot_table.clear()
    assert allocator.taken == set()
    assert slot_table.tokens == 0
    slot_table.clear()


def test_slots_stay_with_their_positions_when_neighbours_go() -> None:
    slot_table, _ = make(4)
    slot_table.take([Span(0, 16)])
    before = slot_table.slots([Span(0, 16)])
    slot_table.drop([Span(4, 8)])
    assert torch.equal(
        slot_table.slots([Span(0, 4), Span(8, 16)]), before[[*range(4), *range(8, 16)]]
    )


def test_spans_across_the_borders_of_taken_spans() -> None:
    slot_table, allocator = make(4)
    slot_table.take([Span(8, 16), Span(0, 8), Span(16, 18)])
    whole = slot_table.slots([Span(0, 18)])
    assert torch.equal(whole[8:16], slot_table.slots([Span(8, 16)]))
    slot_table.drop([Span(4, 12)])
    assert torch.equal(slot_table.slots([Span(12, 18)]), whole[12:18])
    assert slot_table.tokens == 4 + 4 + 4
    slot_table.drop([Span(12, 18)])
    assert slot_table.tokens == 4
    assert len(allocator.taken) == 1


def test_the_padding_of_a_prompts_last_page_goes_with_it() -> None:
    slot_table, allocator = make(16)
    slot_table.take([Span(0, 35)])
    slot_table.drop([Span(32, 35)])
    assert slot_table.tokens == 32
    assert len(allocator.taken) == 2


def test_pages_of_a_span() -> None:
    slot_table, allocator = make(4)
    slot_table.take([Span(8, 16), Span(0, 8), Span(16, 17)])
    pages = slot_table.pages(Span(4, 17))
    assert torch.equal(pages, slot_table.slots([Span(4, 17)])[::4] // 4)
    assert set(pages.tolist()) <= allocator.taken


def test_no_slots_for_no_spans() -> None:
    slot_table, allocator = make(4)
    slot_table.take([])
    assert slot_table.slots([]).dtype == torch.int64
    assert slot_table.slots([]).numel() == 0
    assert allocator.peak == 0


def test_a_short_pool_names_the_remedy_and_keeps_the_books() -> None:
    slot_table, allocator = make(4, pages=3)
    with pytest.raises(OutOfSlots, match=r"8 KV slots needed, 4 free.*--max-total-tokens"):
        slot_table.take([Span(0, 8), Span(8, 16)])
    assert slot_table.tokens == 8
    slot_table.clear()
    assert allocator.available_size() == 12


@settings(max_examples=50, deadline=None, print_blob=True)
@given(PAGE_SIZES, st.integers(0, 3), st.lists(st.booleans(), max_size=8), st.integers(1, 40))
def test_the_front_is_given_away_and_the_rest_stays(
    page: int, cached: int, held: list[bool], last: int
) -> None:
    slot_table, allocator = make(page)
    if cached:
        slots = allocator.alloc(cached * page)
        assert slots is not None
        slot_table.use(CachedPrefix(slots, "node", "lock", "tree"))
    for number, there in enumerate(held, start=cached):
        if there:
            slot_table.take([Span(number * page, (number + 1) * page)])
    end = (cached + len(held)) * page
    slot_table.take([Span(end, end + last)])
    whole = cached + next((n for n, there in enumerate(held) if not there), len(held))
    front = whole * page + (last if whole == cached + len(held) else 0)
    assert slot_table.front == front
    expected = slot_table.slots([Span(0, front)] if front else [])
    given_away = slot_table.hand_over_front()
    assert torch.equal(given_away, expected)
    assert slot_table.prefix is None
    slot_table.clear()
    assert allocator.taken == {int(slot) // page for slot in given_away}
    assert slot_table.front == 0


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES)
def test_any_sequence_of_takes_and_drops(data: st.DataObject, page: int) -> None:
    """Against a plain record of which positions are held; the prompt has 20 pages and a bit."""
    slot_table, allocator = make(page)
    length = 20 * page + data.draw(st.integers(0, page - 1))
    owner: dict[int, int] = {}

    def drawn(free: bool) -> Span | None:
        """A span of pages that are all free, or all held."""
        start = data.draw(st.integers(0, 20)) * page
        stop = start
        while stop < length and (stop not in owner) is free:
            stop = min(stop + page, length)
        pages = -(-(stop - start) // page)
        if pages < 1:
            return None
        wanted = data.draw(st.integers(1, pages))
        return Span(start, min(start + wanted * page, stop))

    for _ in range(data.draw(st.integers(1, 12))):
        taking = data.draw(st.booleans())
        span = drawn(taking)
        if span is None:
            continue
        if taking:
            slot_table.take([span])
            slots = slot_table.slots([span]).tolist()
            assert not set(slots) & set(owner.values()), "a slot has one position"
            owner.update(zip(range(span.start, span.stop), slots, strict=True))
        else:
            slot_table.drop([span])
            for position in range(span.start, span.stop):
                del owner[position]
        for position, slot in owner.items():
            assert slot_table.slots([Span(position, position + 1)]).tolist() == [slot]
    assert slot_table.tokens == len(allocator.taken) * page
    slot_table.clear()
    assert allocator.taken == set()


@pytest.mark.parametrize("page", [1, 16])
def test_on_sglangs_own_allocators(page: int) -> None:
    size = 64 * page
    allocator = (
        TokenToKVPoolAllocator(size, torch.float32, "cpu", None, False)
        if page == 1
        else PagedTokenToKVPoolAllocator(size, page, torch.float32, "cpu", None, False)
    )
    free = allocator.available_size()
    slot_table = SlotTable(allocator, page)
    slot_table.take([Span(0, 8 * page), Span(8 * page, 9 * page + 1)])
    assert 0 not in slot_table.slots([Span(0, 9 * page + 1)]).tolist(), "slot 0 is for padding"
    assert allocator.available_size() == free - slot_table.tokens
    slot_table.drop([Span(4 * page, 9 * page)])
    assert allocator.available_size() == free - slot_table.tokens
    slot_table.clear()
    assert allocator.available_size() == free
