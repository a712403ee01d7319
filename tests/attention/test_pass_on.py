"""A state that goes through a chunk's pieces in token order, whoever computes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention.pacing import UNPACED
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.streams import pass_on
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.spans import split_chunk
from tests.parallel.ring_cases import in_threads, thread_lanes

RANKS = 4


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(RANKS)
    yield lanes
    for lane in lanes:
        lane.close()


def through(state: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """A recurrence in which the order of tokens matters."""
    for position in range(start, stop):
        state = state.roll(1) * 0.9 + position
    return state


@settings(print_blob=True, deadline=None, max_examples=60)
@given(
    size=st.integers(1, RANKS),
    tokens=st.integers(1, 90),
    page=st.sampled_from([1, 4]),
    history=st.integers(0, 20),
)
def test_each_piece_begins_where_the_one_before_it_ended(
    lanes: list[Lane], size: int, tokens: int, page: int, history: int
) -> None:
    pieces = split_chunk(history * page, tokens, size, page)
    first = history * page
    start = torch.arange(5, dtype=torch.float64)

    def member(me: int) -> list[tuple[int, int, torch.Tensor]]:
        layout = RingLayout(tuple(range(size)), me, (0,) * size, pieces)
        state = torch.full_like(start, float("nan")) if me else start.clone()
        ended: list[tuple[int, int, torch.Tensor]] = []
        stream = pass_on(layout, state, lanes[me], layer=3, pacing=UNPACED)
        given = next(stream, None)
        while given is not None:
            piece, before = given
            after = through(before, piece.start, piece.stop)
            ended.append((piece.start, piece.stop, after))
            try:
                given = stream.send(after)
            except StopIteration:
                given = None
        return ended

    found = in_threads(member, range(size))
    for ended in found:
        for _, stop, state in ended:
            torch.testing.assert_close(state, through(start, first, stop))
    assert max(stop for _, stop, _ in found[0]) == first + tokens, "home has the last state"
