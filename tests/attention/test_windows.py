"""Window layers over a group: halos instead of rings, sinks once, the same answer."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.families.claims import claim
from sglang_cdsp.attention.halo import Halo, halo_rows
from sglang_cdsp.attention.pacing import UNPACED
from sglang_cdsp.attention.reach import Reach
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.windowed import masked_attention, window_attention
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.spans import Span, split_chunk
from tests.engine.family_models import Pool, masked
from tests.parallel.ring_cases import in_threads, rows_of, thread_lanes

RANKS = 4
HEADS, KV_HEADS, DIM = 4, 2, 8
SCALE = 2.0 / math.sqrt(DIM)


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(RANKS)
    yield lanes
    for lane in lanes:
        lane.close()


def scattered(history: int, size: int, page: int, seed: int) -> tuple[tuple[Span, ...], ...]:
    """History in pieces of whole pages, dealt out to members in a drawn order."""
    draw = random.Random(seed)
    held: list[list[Span]] = [[] for _ in range(size)]
    start = 0
    while start < history:
        stop = min(history, start + page * draw.randint(1, 3))
        draw.choice(held).append(Span(start, stop))
        start = stop
    for spans in held:
        draw.shuffle(spans)
    return tuple(tuple(spans) for spans in held)


@settings(print_blob=True, deadline=None, max_examples=80)
@given(
    size=st.integers(1, RANKS),
    history=st.integers(0, 12),
    tokens=st.one_of(st.integers(1, 12), st.sampled_from([63, 64, 129, 300])),
    page=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([0, 1, 5, 40, 500]),
    chunked=st.booleans(),
    sinks=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_masked_attention_over_the_full_sequence(
    lanes: list[Lane],
    size: int,
    history: int,
    tokens: int,
    page: int,
    window: int,
    chunked: bool,
    sinks: bool,
    seed: int,
) -> None:
    """Pieces longer and shorter than the window, history in any order at anybody."""
    reach = Reach(max(1, window), chunked=True) if chunked else Reach(window)
    history *= page
    total = history + tokens
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(total, HEADS, DIM, generator=draw)
    k, v = (torch.randn(total, KV_HEADS, DIM, generator=draw) for _ in range(2))
    sink = torch.randn(HEADS, generator=draw) if sinks else None
    spans = scattered(history, size, page, seed)
    pieces = split_chunk(history, tokens, size, page)
    group = tuple(random.Random(seed).sample(range(RANKS), size))
    layer = RadixAttention(HEADS, DIM, SCALE, KV_HEADS, layer_id=0, use_irope=chunked)
    layer.sliding_window_size = -1 if chunked else window
    model: Any = torch.nn.ModuleList([layer])
    model.config = SimpleNamespace(attention_chunk_size=reach.rows if chunked else None)

    def member(me: int) -> torch.Tensor:
        held, own = rows_of(spans[me]), rows_of(pieces[me])
        slots = torch.randperm(total, generator=torch.Generator().manual_seed(me))
        pool = Pool(total, ((KV_HEADS, DIM), (KV_HEADS, DIM)))
        for buffer, rows in zip(pool.buffers[0], (k, v), strict=True):
            buffer[slots[held]] = rows[held]
        attention = ShardAttention(
            inner=SimpleNamespace(token_to_kv_pool=pool, req_to_token_pool=None),
            layout=RingLayout(group, me, tuple(len(rows_of(s)) for s in spans), pieces),
            links=lanes[group[me]],
            own_slots=slots[own],
            history_slots=slots[held],
            rebalancer=None,
            history=spans,
            families=claim(model).families,
        )
        batch: Any = SimpleNamespace(out_cache_loc=slots[own])
        more: dict[str, Any] = {} if sink is None else {"sinks": sink}
        return attention.forward(
            q[own].flatten(1), k[own].flatten(1), v[own].flatten(1), layer, batch, **more
        )

    outs = in_threads(member, range(size))
    rows = [rows_of([run]) for run in reach.runs(Span(0, total))]
    before = None if chunked else window
    logit = None if sink is None else sink.double()
    expected = torch.cat(
        [
            masked(q[at].double(), k[at].double(), v[at].double(), SCALE, before, logit)
            for at in rows
        ]
    )
    for own, out in zip(pieces, outs, strict=True):
        torch.testing.assert_close(
            out.double(), expected[rows_of(own)].flatten(1), atol=2e-5, rtol=2e-5
        )


@pytest.mark.parametrize("window", [3, 100, 600])
def test_masked_calls_agree_with_the_plain_one(window: int) -> None:
    """As a GPU without FlashInfer computes it, and in bfloat16."""
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(700, heads, DIM, generator=draw) for heads in (HEADS, 2, 2))
    expected = masked(q.double(), k.double(), v.double(), SCALE, window)
    out = window_attention(q, k, v, window=window, scale=SCALE, pacing=UNPACED)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    rows = torch.arange(700)
    hidden = (rows[None, :] > rows[:, None]) | (rows[None, :] < rows[:, None] - window)
    mask = torch.zeros(700, 700).masked_fill(hidden, -math.inf)
    plain, _ = masked_attention(q, k, v, mask, SCALE)
    torch.testing.assert_close(plain.double(), expected, atol=1e-5, rtol=1e-5)
    half = (x.bfloat16() for x in (q, k, v))
    rounded = window_attention(*half, window=window, scale=SCALE, pacing=UNPACED)
    torch.testing.assert_close(rounded.double(), expected, atol=5e-2, rtol=5e-2)


@given(rows=st.integers(1, 50), start=st.integers(0, 200), tokens=st.integers(1, 200))
def test_a_chunk_is_seen_from_its_beginning_on(rows: int, start: int, tokens: int) -> None:
    reach, span = Reach(rows, chunked=True), Span(start, start + tokens)
    runs = list(reach.runs(span))
    assert [at for run in runs for at in range(run.start, run.stop)] == list(
        range(span.start, span.stop)
    )
    for run in runs:
        first = reach.first(run.start)
        assert first % rows == 0
        assert all(reach.first(at) == first for at in range(run.start, run.stop))
        assert run.stop - first <= rows


def test_rows_ahead_of_pieces_travel_and_no_others() -> None:
    """Four members, a window of 32: each of seven pieces after the first needs 32 rows, of which
    neighbouring pieces of one member need none twice."""
    pieces = split_chunk(0, 1024, 4, 1)
    rows = halo_rows(RingLayout((0, 1, 2, 3), 0, (0,) * 4, pieces), ((),) * 4, Reach(32))
    # Zigzag: pieces 3 and 4 lie side by side at the last member.
    assert rows == 6 * 32


def test_spans_that_do_not_fit_the_layout_are_refused() -> None:
    layout = RingLayout((0, 1), 0, (4, 0), split_chunk(4, 8, 2, 1))
    with pytest.raises(AttentionError, match="pass those that are held"):
        Halo.of(layout, ((Span(0, 3),), ()), Reach(2), torch.device("cpu"))
