"""Bytes of the last chunk of a plan whose home is to hold all KV, counted on the links.

What circulates past home is kept and not sent again; what does not pass is fetched, once
(LoongServe, section 4.2, "proactive scale-down").
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention.circulation import choose_circulation, wire_bytes
from sglang_cdsp.attention.q_ring import PARTIAL_TAG, Q_TAG
from sglang_cdsp.attention.ring import RING_TAG
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.chunk_layout import ChunkLayout, plan_layout
from sglang_cdsp.parallel.moves import MOVE_TAG
from sglang_cdsp.parallel.spans import Span, tokens_of
from tests.engine.one_thread import DIM, INSTANCES, KV_HEADS, LAYERS, Q_HEADS, run_plan
from tests.engine.plans import PAGE_SIZES, Chunks, plans
from tests.engine.wire import counted

ELEMENT = 4
"""Bytes of an element: the instances compute in float32."""

ROW = LAYERS * 2 * KV_HEADS * DIM * ELEMENT
"""Bytes of one token's K and V at all layers."""

KV_CIRCULATES: Chunks = [(96, [0, 1, 2])]
Q_CIRCULATES: Chunks = [(400, [0, 1]), (8, [0, 1])]
AND_MOVES: Chunks = [(300, [0]), (8, [0, 1, 2])]


def ring_of(layout: ChunkLayout) -> RingLayout:
    """The layout of a chunk as attention has it."""
    held = tuple(tokens_of(spans) for spans in layout.history)
    return RingLayout(layout.group, 0, held, layout.spans)


def at_home(layout: ChunkLayout) -> int:
    """Rows of the prompt that home has of its own: history, shard, and history that leaves it."""
    home = layout.group[0]
    leaves: list[Span] = [move.span for move in layout.moves if move.src == home]
    return tokens_of((*layout.history[0], *layout.spans[0], *leaves))


def checked(chunks: Chunks, page: int, seed: int) -> str:
    """Run a plan, compare its bytes with the formulas, and return what circulated."""
    last = plan_layout(chunks, page)[-1]
    ring, serial, home = ring_of(last), len(chunks), last.group[0]
    shape = {"element_size": ELEMENT}
    cost = wire_bytes(ring, KV_HEADS, Q_HEADS, DIM, **shape)
    way = choose_circulation(ring, KV_HEADS, Q_HEADS, DIM, **shape)
    with counted() as wire:
        run_plan(chunks, page, seed)
    with counted() as spread:
        run_plan(chunks, page, seed, gathers=False)

    prompt, balanced = last.start + last.tokens, tokens_of([move.span for move in last.moves])
    lacking = prompt - at_home(last)
    assert spread.of(serial, MOVE_TAG) == ROW * balanced
    if way == "kv":
        # Everything passes home, and not a byte is sent for its sake.
        assert wire.of(serial, RING_TAG) == LAYERS * cost.kv
        assert wire.of(serial, MOVE_TAG) == ROW * balanced
        assert wire.of(serial, RING_TAG, dst=home) == ROW * (prompt - ring.block_rows(0))
        assert wire.sent == spread.sent
    else:
        assert wire.of(serial, Q_TAG, PARTIAL_TAG) == LAYERS * cost.q
        assert wire.of(serial, MOVE_TAG) == ROW * (balanced + lacking)
        assert wire.of(serial, MOVE_TAG, dst=home) == ROW * (lacking + arriving(last))
        assert wire.of(serial, RING_TAG) == 0
    assert sum(wire.sent.values()) - sum(spread.sent.values()) == (
        ROW * lacking if way == "q" else 0
    )
    return way


def arriving(layout: ChunkLayout) -> int:
    """Rows of history that come to home before the chunk, whoever decodes."""
    return tokens_of([move.span for move in layout.moves if move.dst == layout.group[0]])


@settings(max_examples=30, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_home_gets_what_it_lacks_once_and_nothing_that_it_has(
    data: st.DataObject, page: int, seed: int
) -> None:
    checked(data.draw(plans(page, instances=INSTANCES, longest=6)), page, seed)


@pytest.mark.parametrize(
    ("chunks", "way"), [(KV_CIRCULATES, "kv"), (Q_CIRCULATES, "q"), (AND_MOVES, "q")]
)
def test_both_ways_are_among_them(chunks: Chunks, way: str) -> None:
    assert checked(chunks, 1, seed=5) == way


def test_figures_by_hand() -> None:
    """Home has 204 of 408 tokens; each is two layers of K and V, two heads of eight float32."""
    with counted() as wire:
        run_plan(Q_CIRCULATES, 1, seed=5)
    assert ROW == 2 * 2 * 2 * 8 * 4 == 256
    assert wire.of(2, MOVE_TAG) == wire.of(2, MOVE_TAG, dst=0) == 204 * 256
