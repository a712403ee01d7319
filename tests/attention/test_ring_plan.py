"""Whole plans: chunk by chunk on growing groups, history moved a layer ahead, several layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention.blocks import TensorBlock
from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.attention.ring import RingLayout, q_ring_attention, ring_attention
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Rebalance, Span, rebalance, split_chunk
from tests.parallel.ring_cases import in_threads, rows_of

RANKS, LAYERS = 5, 2
Q_HEADS, KV_HEADS, DIM = 4, 2, 8


@dataclass(frozen=True)
class Plan:
    """Tokens and group of each chunk."""

    chunks: tuple[tuple[int, tuple[int, ...]], ...]
    page_size: int
    seed: int

    @property
    def tokens(self) -> int:
        return sum(tokens for tokens, _ in self.chunks)

    def layer(self, index: int) -> tuple[torch.Tensor, ...]:
        """Return q, k and v of the whole prompt at one layer."""
        draw = torch.Generator().manual_seed(self.seed * LAYERS + index)
        return tuple(
            torch.randn(self.tokens, heads, DIM, generator=draw)
            for heads in (Q_HEADS, KV_HEADS, KV_HEADS)
        )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    page = draw(st.sampled_from([1, 4, 16]))
    order = tuple(draw(st.permutations(range(RANKS))))
    sizes = sorted(draw(st.lists(st.integers(1, RANKS), min_size=1, max_size=4)))
    lengths = [draw(st.integers(1, 6)) * page for _ in sizes]
    lengths[-1] += draw(st.integers(0, page - 1))  # only the last chunk may end inside a page
    chunks = tuple((length, order[:size]) for length, size in zip(lengths, sizes, strict=True))
    return Plan(chunks, page, draw(st.integers(0, 99)))


class Instance:
    """One rank's pools; the slot of a position is the position, scattered by a fixed order."""

    def __init__(self, plan: Plan, lane: Lane) -> None:
        self.plan, self.lane = plan, lane
        self.slots = torch.randperm(plan.tokens)
        shape = (LAYERS, 2, plan.tokens, KV_HEADS, DIM)
        self.pools = torch.full(shape, float("nan"))  # reading what is not held would show

    def run_chunk(
        self, start: int, layout: RingLayout, spread: Rebalance
    ) -> tuple[torch.Tensor, ...]:
        """Run all layers; the next layer's history moves while this one computes."""
        me = self.lane.seat
        own = rows_of(layout.pieces[layout.me])
        held = self.slots[rows_of(spread.held[me])]

        def start_layer(index: int):  # type: ignore[no-untyped-def]
            buffers = tuple(self.pools[index])
            return start_moves(
                buffers, spread.moves, me, lambda s: self.slots[s.start : s.stop], self.lane
            )

        outs = []
        handle = start_layer(0)
        for index in range(LAYERS):
            handle.wait()
            if index + 1 < LAYERS:
                handle = start_layer(index + 1)
            q, k, v = (x[own] for x in self.plan.layer(index))
            keys, values = self.pools[index]
            way = ring_attention if (start + index) % 2 else q_ring_attention
            block = TensorBlock(k, v, keys[held], values[held])
            outs.append(way(q, block, layout, self.lane, scale=0.7))
            keys[self.slots[own]], values[self.slots[own]] = k, v
            for move in spread.moves:
                if move.src == me:
                    gone = self.slots[move.span.start : move.span.stop]
                    keys[gone] = values[gone] = float("nan")
        return tuple(outs)


@settings(print_blob=True, deadline=None, max_examples=60)
@given(plan=plans())
def test_any_plan_equals_attention_over_the_full_prompt(lanes: list[Lane], plan: Plan) -> None:
    instances = [Instance(plan, lane) for lane in lanes]
    result = torch.full((LAYERS, plan.tokens, Q_HEADS, DIM), float("nan"))
    held: dict[int, tuple[Span, ...]] = {}
    start = 0
    for tokens, group in plan.chunks:
        pieces = split_chunk(start, tokens, len(group), plan.page_size)
        spread = rebalance(held, group, plan.page_size)
        history = tuple(sum(span.tokens for span in spread.held[rank]) for rank in group)

        def member(me: int) -> tuple[torch.Tensor, ...]:
            layout = RingLayout(group, me, history, pieces)  # noqa: B023  # used up at once
            return instances[group[me]].run_chunk(start, layout, spread)  # noqa: B023

        for spans, outs in zip(pieces, in_threads(member, range(len(group))), strict=True):
            result[:, rows_of(spans)] = torch.stack(outs)
        held = {
            rank: (*spread.held[rank], *spans) for rank, spans in zip(group, pieces, strict=True)
        }
        start += tokens
    for index in range(LAYERS):
        expected, _ = reference_attention(*plan.layer(index), causal=True, scale=0.7)
        torch.testing.assert_close(result[index].double(), expected, atol=1e-5, rtol=1e-5)
