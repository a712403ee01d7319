"""Posts name a bounded number of pieces, and every page is in one of them; layers have buffers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.transfer import pages as module
from sglang_cdsp.transfer.pages import Pages, buffers_by_layer, posts, runs


@st.composite
def layouts(draw: st.DrawFn) -> Pages:
    """Runs of neighbours, here and at decode, with gaps between them."""
    source, place = 0, 0
    found: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 12))):
        source += draw(st.integers(0, 3))
        place += draw(st.integers(0, 3))
        for _ in range(draw(st.integers(1, 9))):
            found.append((source, place))
            source, place = source + 1, place + 1
    table = np.array(found, dtype=np.int32).reshape(-1, 2)
    return Pages(table[:, 0], table[:, 1])


def pairs(pages: Pages) -> list[tuple[int, int]]:
    return list(zip(pages.source.tolist(), pages.place.tolist(), strict=True))


def pieces(pages: Pages) -> int:
    """Stretches of memory, counted one page at a time."""
    count, before = 0, None
    for source, place in pairs(pages):
        count += before != (source - 1, place - 1)
        before = (source, place)
    return count


@settings(max_examples=200, deadline=None)
@given(layouts(), st.integers(1, 3), st.integers(1, 8), st.integers(1, 20))
def test_every_page_is_posted_once_and_no_post_is_too_large(
    pages: Pages, buffers: int, limit: int, most_pages: int
) -> None:
    assert len(runs(pages)) == pieces(pages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_DESCRIPTORS", limit)
        patch.setattr(module, "MAX_PAGES", most_pages)
        merged = posts(pages, per_run=buffers, per_page=0)
        single = posts(pages, per_run=0, per_page=buffers)
    for found in (merged, single):
        assert [pair for post in found for pair in pairs(post)] == pairs(pages)
        assert all(0 < len(post) <= most_pages for post in found)
    assert all(pieces(post) <= max(1, limit // buffers) for post in merged)
    assert all(len(post) * buffers <= max(buffers, limit) for post in single)


def test_a_long_prompt_in_one_stretch_is_one_post() -> None:
    numbers = np.arange(module.MAX_PAGES, dtype=np.int32)
    assert len(posts(Pages(numbers + 7, numbers), per_run=2, per_page=0)) == 1


def test_the_buffers_of_a_layer() -> None:
    assert buffers_by_layer(4, [], first=0, paired=True) == {0: (0, 2), 1: (1, 3)}
    assert buffers_by_layer(2, [], first=3, paired=False) == {3: (0,), 4: (1,)}
    assert buffers_by_layer(4, [5, 9, 5, 9], first=0, paired=True) == {5: (0, 2), 9: (1, 3)}
    with pytest.raises(ValueError, match="choose another model"):
        buffers_by_layer(3, [], first=0, paired=True)
