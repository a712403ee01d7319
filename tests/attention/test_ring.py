"""Ring attention, KV circulating, against attention over the full sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from sglang_cdsp.attention.blocks import TensorBlock
from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.ring import RingLayout, q_ring_attention, ring_attention
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.links.types import LinkShape
from tests.parallel.links.kinds import shuffled
from tests.parallel.ring_cases import (
    Attention,
    RingCase,
    ring_cases,
    run_member,
    run_threads,
    thread_lanes,
)

RANKS = 5


@settings(print_blob=True, deadline=None, max_examples=150)
@given(case=ring_cases(RANKS))
def test_equals_attention_over_the_full_sequence(lanes: list[Lane], case: RingCase) -> None:
    out = run_threads(case, lanes, ring_attention)
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", [ring_attention, q_ring_attention])
def test_links_that_deliver_late_and_out_of_order(way: Attention) -> None:
    lanes = thread_lanes(RANKS, LinkShape(lanes=1, depth=3, slot_bytes=512), shuffled)
    for tokens, history in ((101, 96), (7, 300), (1, 0)):
        case = RingCase(group=(2, 0, 4, 1, 3), history=history, tokens=tokens)
        out = run_threads(case, lanes, way)
        torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


def test_bfloat16_is_as_good_as_its_own_rounding(lanes: list[Lane]) -> None:
    case = RingCase(group=(0, 1, 2), history=96, tokens=101)
    out = run_threads(case, lanes, ring_attention, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), case.expected(), atol=3e-2, rtol=3e-2)


def test_a_group_of_one_needs_no_links() -> None:
    case = RingCase(group=(3,), history=10, tokens=7)
    out = case.assemble([run_member(case, None, 0, ring_attention)])
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


def test_leaving_a_block_out_shows(lanes: list[Lane]) -> None:
    """The comparison above is not blind: without one member's history the result is far off."""
    case = RingCase(group=(0, 1, 2), history=30, tokens=12)

    def without_history_of_1(
        q: torch.Tensor, block: TensorBlock, layout: RingLayout, links: Lane, *, scale: float
    ) -> torch.Tensor:
        if layout.me == 1:
            block = replace(block, v_history=torch.zeros_like(block.v_history))
        return ring_attention(q, block, layout, links, scale=scale)

    out = run_threads(case, lanes, without_history_of_1)
    assert float((out.double() - case.expected()).abs().max()) > 0.05


def test_rows_that_do_not_fit_the_layout_are_refused(lanes: list[Lane]) -> None:
    case = RingCase(group=(0, 1), history=4, tokens=8)
    q, block = case.member_inputs(0, torch.float32)
    layout = case.layout(0)
    with pytest.raises(AttentionError, match="exactly its spans"):
        ring_attention(q[1:], block, layout, lanes[0], scale=1.0)
    less = replace(block, k_history=block.k_history[1:], v_history=block.v_history[1:])
    with pytest.raises(AttentionError, match="tokens of history"):
        ring_attention(q, less, layout, lanes[0], scale=1.0)
    with pytest.raises(AttentionError, match="needs links"):
        ring_attention(q, block, layout, None, scale=1.0)
    with pytest.raises(AttentionError, match="as many keys as values"):
        replace(block, k=block.k[1:])
