"""What each call of a paged kernel sees, against what the layout says that each row sees."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention import paged_calls
from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.paged_calls import Call, guest_calls, own_calls
from tests.parallel.ring_cases import RingCase, ring_cases

pacings = st.one_of(st.just(UNPACED), st.floats(1, 1e6).map(lambda flops: Pacing(None, flops)))


def seen(calls: tuple[Call, ...], held: torch.Tensor) -> dict[int, list[int]]:
    """The slots that each query row sees, as a paged kernel reads a call."""
    found: dict[int, list[int]] = {}
    for call in calls:
        slots = call.slots(held).tolist()
        ends = zip(pairwise(call.query_ends), pairwise(call.key_ends), strict=True)
        for (first, last), (start, stop) in ends:
            for row in range(first, last):
                hidden = last - 1 - row if call.causal else 0
                assert row + call.rows.start not in found, "each row is in one call"
                found[row + call.rows.start] = slots[start : stop - hidden]
        assert call.query_ends[-1] == call.rows.stop - call.rows.start
        assert call.key_ends[-1] == len(slots)
    return found


@settings(print_blob=True, deadline=None, max_examples=150)
@given(history=st.integers(0, 200), chunk=st.integers(0, 200), pacing=pacings)
def test_own_queries_see_the_history_and_the_chunk_up_to_themselves(
    history: int, chunk: int, pacing: Pacing
) -> None:
    held = torch.randperm(history + chunk)
    found = seen(own_calls(history, chunk, pacing, 64.0), held)
    expected = {row: held[: history + row + 1].tolist() for row in range(chunk)}
    assert found == expected


@settings(print_blob=True, deadline=None, max_examples=150)
@given(case=ring_cases(5), pacing=pacings)
def test_guests_see_what_the_layout_says(case: RingCase, pacing: Pacing) -> None:
    for holder in range(len(case.group)):
        layout = case.layout(holder)
        held = torch.randperm(layout.block_rows(holder))
        for member in range(layout.size):
            if member == holder:
                continue
            parts = layout.visible(member, holder)
            expected = {
                row: held[: part.keys].tolist()
                for part in parts
                for row in range(part.first, part.last)
            }
            assert seen(guest_calls(parts, pacing, 64.0), held) == expected


def test_one_prefix_is_not_copied() -> None:
    held = torch.arange(9)
    (call,) = own_calls(4, 5, UNPACED, 64.0)
    assert call.slots(held).data_ptr() == held.data_ptr()


@given(rows=st.integers(5000, 40_000), history=st.integers(0, 100_000))
@settings(print_blob=True, deadline=None, max_examples=20)
def test_plans_are_bounded_by_larger_tiles(rows: int, history: int) -> None:
    calls = own_calls(history, rows, Pacing(None, 1.0), 64.0)
    assert len(calls) <= paged_calls.MOST_CALLS
    assert calls[0].rows.start == 0
    assert calls[-1].rows.stop == rows
