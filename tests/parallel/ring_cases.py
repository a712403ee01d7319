"""Draws cases for ring attention; the cases themselves are in ``sglang_cdsp.testing.rings``."""

from __future__ import annotations

from hypothesis import strategies as st

from sglang_cdsp.testing.links import thread_lanes
from sglang_cdsp.testing.rings import (
    Attention,
    RingCase,
    in_threads,
    rows_of,
    run_member,
    run_threads,
)

__all__ = [
    "Attention",
    "RingCase",
    "in_threads",
    "ring_cases",
    "rows_of",
    "run_member",
    "run_threads",
    "thread_lanes",
]


@st.composite
def ring_cases(draw: st.DrawFn, available: int) -> RingCase:
    """Draw cases on groups of 1 to ``available`` ranks."""
    ranks = draw(st.permutations(range(available)))
    page = draw(st.sampled_from([1, 3, 16, 64]))
    kv_heads = draw(st.integers(1, 3))
    return RingCase(
        group=tuple(ranks[: draw(st.integers(1, available))]),
        history=draw(st.one_of(st.just(0), st.integers(0, 12))) * page,
        tokens=draw(st.one_of(st.integers(1, 12), st.sampled_from([63, 64, 65, 127, 129, 251]))),
        page_size=page,
        q_heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([8, 24])),
        value_dim=draw(st.sampled_from([8, 24])),
        seed=draw(st.integers(0, 1000)),
        lopsided=draw(st.booleans()),
    )
