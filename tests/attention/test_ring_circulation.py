"""Q circulating, and the choice of what circulates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from sglang_cdsp.attention.circulation import WireBytes, choose_circulation, wire_bytes
from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.parallel.links.lanes import Lane
from tests.parallel.counting import Counting
from tests.parallel.ring_cases import (
    RingCase,
    in_threads,
    ring_cases,
    run_member,
    run_threads,
)

RANKS = 5


@settings(print_blob=True, deadline=None, max_examples=100)
@given(case=ring_cases(RANKS))
def test_q_circulation_equals_attention_over_the_full_sequence(
    lanes: list[Lane], case: RingCase
) -> None:
    out = run_threads(case, lanes, q_ring_attention)
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


def test_both_ways_agree_in_bfloat16(lanes: list[Lane]) -> None:
    case = RingCase(group=(4, 1, 2), history=96, tokens=31, page_size=4)
    by_q, by_kv = (
        run_threads(case, lanes, way, torch.bfloat16) for way in (q_ring_attention, ring_attention)
    )
    assert by_q.dtype == torch.bfloat16
    torch.testing.assert_close(by_q.double(), case.expected(), atol=3e-2, rtol=3e-2)
    torch.testing.assert_close(by_q, by_kv, atol=3e-2, rtol=3e-2)


def test_q_circulation_in_a_group_of_one() -> None:
    case = RingCase(group=(3,), history=10, tokens=7)
    out = case.assemble([run_member(case, None, 0, q_ring_attention)])
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


def bytes_sent(case: RingCase, lanes: list[Lane], way: Callable[..., torch.Tensor]) -> int:
    counting = [Counting(lane) for lane in lanes]
    in_threads(
        lambda me: run_member(case, counting[case.group[me]], me, way), range(len(case.group))
    )
    return sum(links.sent for links in counting)


@settings(print_blob=True, deadline=None, max_examples=50)
@given(case=ring_cases(RANKS))
def test_the_formula_counts_what_is_sent(lanes: list[Lane], case: RingCase) -> None:
    counted = wire_bytes(
        case.layout(0),
        case.kv_heads,
        case.q_heads,
        case.head_dim,
        value_dim=case.value_dim,
        element_size=4,
    )
    measured = WireBytes(
        kv=bytes_sent(case, lanes, ring_attention), q=bytes_sent(case, lanes, q_ring_attention)
    )
    assert counted == measured


@pytest.mark.parametrize(
    ("tokens", "choice"), [(1, "q"), (1000, "q"), (2900, "q"), (3600, "kv"), (12800, "kv")]
)
def test_short_chunks_on_a_long_history_circulate_q(tokens: int, choice: str) -> None:
    # 32 query heads over 8 KV heads: the border is near a quarter of all tokens.
    case = RingCase(group=(0, 1, 2, 3), history=9600, tokens=tokens)
    assert choose_circulation(case.layout(0), kv_heads=8, q_heads=32, head_dim=128) == choice


def test_every_member_chooses_the_same() -> None:
    case = RingCase(group=(0, 1, 2), history=100, tokens=30)
    layouts = [replace(case.layout(0), me=me) for me in range(3)]
    assert len({choose_circulation(layout, 2, 8, 64) for layout in layouts}) == 1


def test_no_other_member_nothing_on_the_wire() -> None:
    layout = RingCase(group=(0,), history=5, tokens=3).layout(0)
    assert wire_bytes(layout, 2, 8, 64) == WireBytes(0, 0)
    assert choose_circulation(layout, 2, 8, 64) == "kv"
