"""KV slots by prompt position: nothing lost, nothing freed twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator

from sglang_cdsp.engine.holdings import Holdings, OutOfSlots
from sglang_cdsp.parallel.layout import Span
from tests.engine.fake_kv import StrictAllocator
from tests.engine.plans import PAGE_SIZES


def make(page: int, pages: int = 64) -> tuple[Holdings, StrictAllocator]:
    allocator = StrictAllocator(pages, page)
    return Holdings(allocator, page), allocator


@pytest.mark.parametrize("page", [1, 4, 16])
def test_take_drop_and_clear(page: int) -> None:
    holdings, allocator = make(page)
    first, second = Span(0, 4 * page), Span(8 * page, 8 * page + 3)
    holdings.take([first, second])
    assert holdings.tokens == 4 * page + -(-3 // page) * page
    assert holdings.slots([first]).numel() == 4 * page
    assert holdings.slots([second]).tolist() == holdings.slots([first, second])[4 * page :].tolist()
    holdings.drop([Span(page, 2 * page)])
    assert holdings.tokens == 3 * page + -(-3 // page) * page
    with pytest.raises(KeyError, match=f"positions {page}"):
        holdings.slots([first])
    holdings.clear()
    assert allocator.taken == set()
    assert holdings.tokens == 0
    holdings.clear()


def test_slots_stay_with_their_positions_when_neighbours_go() -> None:
    holdings, _ = make(4)
    holdings.take([Span(0, 16)])
    before = holdings.slots([Span(0, 16)])
    holdings.drop([Span(4, 8)])
    assert torch.equal(
        holdings.slots([Span(0, 4), Span(8, 16)]), before[[*range(4), *range(8, 16)]]
    )


def test_spans_across_the_borders_of_taken_spans() -> None:
    holdings, allocator = make(4)
    holdings.take([Span(8, 16), Span(0, 8), Span(16, 18)])
    whole = holdings.slots([Span(0, 18)])
    assert torch.equal(whole[8:16], holdings.slots([Span(8, 16)]))
    holdings.drop([Span(4, 12)])
    assert torch.equal(holdings.slots([Span(12, 18)]), whole[12:18])
    assert holdings.tokens == 4 + 4 + 4
    holdings.drop([Span(12, 18)])
    assert holdings.tokens == 4
    assert len(allocator.taken) == 1


def test_the_padding_of_a_prompts_last_page_goes_with_it() -> None:
    holdings, allocator = make(16)
    holdings.take([Span(0, 35)])
    holdings.drop([Span(32, 35)])
    assert holdings.tokens == 32
    assert len(allocator.taken) == 2


def test_pages_of_a_span() -> None:
    holdings, allocator = make(4)
    holdings.take([Span(8, 16), Span(0, 8), Span(16, 17)])
    pages = holdings.pages(Span(4, 17))
    assert torch.equal(pages, holdings.slots([Span(4, 17)])[::4] // 4)
    assert set(pages.tolist()) <= allocator.taken


def test_no_slots_for_no_spans() -> None:
    holdings, allocator = make(4)
    holdings.take([])
    assert holdings.slots([]).dtype == torch.int64
    assert holdings.slots([]).numel() == 0
    assert allocator.peak == 0


def test_a_short_pool_names_the_remedy_and_keeps_the_books() -> None:
    holdings, allocator = make(4, pages=3)
    with pytest.raises(OutOfSlots, match=r"8 KV slots needed, 4 free.*--max-total-tokens"):
        holdings.take([Span(0, 8), Span(8, 16)])
    assert holdings.tokens == 8
    holdings.clear()
    assert allocator.available_size() == 12


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES)
def test_any_sequence_of_takes_and_drops(data: st.DataObject, page: int) -> None:
    """Against a plain record of which positions are held; the prompt has 20 pages and a bit."""
    holdings, allocator = make(page)
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
            holdings.take([span])
            slots = holdings.slots([span]).tolist()
            assert not set(slots) & set(owner.values()), "a slot has one position"
            owner.update(zip(range(span.start, span.stop), slots, strict=True))
        else:
            holdings.drop([span])
            for position in range(span.start, span.stop):
                del owner[position]
        for position, slot in owner.items():
            assert holdings.slots([Span(position, position + 1)]).tolist() == [slot]
    assert holdings.tokens == len(allocator.taken) * page
    holdings.clear()
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
    holdings = Holdings(allocator, page)
    holdings.take([Span(0, 8 * page), Span(8 * page, 9 * page + 1)])
    assert 0 not in holdings.slots([Span(0, 9 * page + 1)]).tolist(), "slot 0 is for padding"
    assert allocator.available_size() == free - holdings.tokens
    holdings.drop([Span(4 * page, 9 * page)])
    assert allocator.available_size() == free - holdings.tokens
    holdings.clear()
    assert allocator.available_size() == free
