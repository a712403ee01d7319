"""The zigzag split of a chunk."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.errors import LayoutError
from sglang_cdsp.parallel.spans import Span, joined, split_chunk, tokens_of

PAGES = st.sampled_from([1, 2, 3, 16, 64])


@st.composite
def chunks(draw: st.DrawFn) -> tuple[int, int, int, int]:
    page = draw(PAGES)
    start = draw(st.integers(0, 40)) * page
    tokens = draw(st.one_of(st.integers(1, 3 * page), st.integers(1, 4000)))
    return start, tokens, draw(st.integers(1, 8)), page


@settings(print_blob=True, deadline=None, max_examples=300)
@given(chunks())
def test_pieces_partition_the_chunk(chunk: tuple[int, int, int, int]) -> None:
    start, tokens, size, page = chunk
    pieces = split_chunk(start, tokens, size, page)
    assert len(pieces) == size
    assert joined(span for spans in pieces for span in spans) == (Span(start, start + tokens),)
    assert all(spans == joined(spans) for spans in pieces), "ascending, touching ones joined"
    inner = {cut for spans in pieces for span in spans for cut in (span.start, span.stop)}
    assert all(cut % page == 0 for cut in inner - {start, start + tokens})


@settings(print_blob=True, deadline=None, max_examples=200)
@given(chunks())
def test_member_0_has_the_last_token(chunk: tuple[int, int, int, int]) -> None:
    start, tokens, size, page = chunk
    pieces = split_chunk(start, tokens, size, page)
    assert pieces[0][-1].stop == start + tokens


@settings(print_blob=True, deadline=None, max_examples=200)
@given(chunks())
def test_shares_are_even_to_within_two_pages(chunk: tuple[int, int, int, int]) -> None:
    # Each share is two pieces, and rounding a cut down moves each end of a piece by under a page.
    start, tokens, size, page = chunk
    shares = [tokens_of(spans) for spans in split_chunk(start, tokens, size, page)]
    assert all(abs(share - tokens / size) < 2 * page for share in shares)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_causal_work_is_even(size: int) -> None:
    tokens = 4096
    work = [
        sum(position + 1 for span in spans for position in range(span.start, span.stop))
        for spans in split_chunk(0, tokens, size, 1)
    ]
    assert max(work) / min(work) < 1.01


def test_known_splits() -> None:
    assert split_chunk(0, 8, 2, 1) == (
        (Span(0, 2), Span(6, 8)),
        (Span(2, 6),),  # pieces 1 and 2 touch
    )
    assert split_chunk(128, 1, 3, 64) == ((Span(128, 129),), (), ())
    assert split_chunk(10, 5, 1, 4) == ((Span(10, 15),),), "a start inside a page"
    assert split_chunk(64, 130, 2, 64) == ((Span(128, 194),), (Span(64, 128),))


def test_a_start_inside_a_page_keeps_pages_whole() -> None:
    pieces = split_chunk(10, 40, 2, 16)
    cuts = sorted({span.start for spans in pieces for span in spans} - {10})
    assert cuts == [16, 32]


@pytest.mark.parametrize("bad", [(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (-1, 1, 1, 1)])
def test_arguments_out_of_range(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(LayoutError, match="at least"):
        split_chunk(*bad)


def test_spans_are_never_empty_and_never_overlap() -> None:
    with pytest.raises(LayoutError, match="leave empty spans out"):
        Span(3, 3)
    with pytest.raises(LayoutError, match="exactly one holder"):
        joined([Span(0, 4), Span(3, 5)])
