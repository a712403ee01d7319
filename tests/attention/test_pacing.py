"""Attention gives way between ring steps and between tiles, and stays exact."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.families import grouped
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.attention.q_ring import GUESTS, PARTIAL_TAG, Q_TAG
from sglang_cdsp.attention.ring import RingLayout, q_ring_attention, ring_attention
from sglang_cdsp.attention.steps import KvRing, LayerShape, QRing, ring_of
from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable
from tests.parallel.ring_cases import RingCase, in_threads, run_member, thread_lanes

HEADS, DIM = 2, 8


def blocks(test: Callable[..., None]) -> Callable[..., None]:
    """Any block, and any price of one row and one key."""
    drawn = given(
        rows=st.integers(1, 300),
        keys=st.integers(1, 300),
        flops=st.floats(1, 1e6),
        causal=st.booleans(),
    )(test)
    found: Callable[..., None] = settings(print_blob=True, deadline=None, max_examples=100)(drawn)
    return found


@blocks
def test_tiles_cover_the_rows_and_keep_to_the_limit(
    rows: int, keys: int, flops: float, causal: bool
) -> None:
    """Of a causal block the keys may begin before the rows."""
    limit = 1e5
    keys = rows + keys if causal else keys
    tiles = list(Pacing(None, limit).tiles(rows, keys, flops, causal=causal))
    assert [first for first, _ in tiles] == [0, *(last for _, last in tiles[:-1])]
    assert tiles[-1][1] == rows
    for first, last in tiles:
        assert last > first
        seen = keys - rows + last if causal else keys
        assert last - first <= 16 or (last - first) * seen * flops <= limit * (1 + 1e-9)


@blocks
def test_pieces_show_every_row_its_keys_once_and_keep_to_the_limit(
    rows: int, keys: int, flops: float, causal: bool
) -> None:
    limit = 1e6
    keys = rows if causal else keys
    seen = torch.zeros(rows, keys, dtype=torch.int)
    for tile in Pacing(None, limit).pieces(rows, keys, flops, causal=causal):
        part = seen[tile.rows, tile.keys]
        assert part.numel()
        part += torch.ones_like(part).tril() if tile.causal else 1
        several = tile.rows.stop - tile.rows.start
        # Borders of the keys are whole numbers.
        assert several <= 16 or (part.numel() - several) * flops <= limit * (1 + 1e-9)
    everything = torch.ones_like(seen)
    assert torch.equal(seen, everything.tril() if causal else everything)


def test_many_keys_are_cut_before_rows_are_few() -> None:
    """Red where tiles see all their keys: these would have 183 rows."""
    tiles = list(Pacing(None, 1.5e6).pieces(8192, 8192, 1.0, causal=True))
    assert min(tile.rows.stop - tile.rows.start for tile in tiles if tile.rows.stop < 8192) >= 1024
    assert max(tile.keys.stop - tile.keys.start for tile in tiles) < 1500


@pytest.mark.parametrize("causal", [True, False])
def test_tiles_change_nothing_but_rounding(causal: bool) -> None:
    draw = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(130, heads, DIM, generator=draw) for heads in (HEADS, 1, 1))
    calls: list[object] = []
    pacing = Pacing(calls.append, 4.0 * HEADS * DIM * 130 * 20)
    state = RunningState(q, DIM, 0.5, pacing)
    state.attend(k, v, causal=causal)
    out, lse = reference_attention(q, k, v, causal=causal, scale=0.5)
    torch.testing.assert_close(state.out.double(), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.lse.double(), lse, atol=1e-5, rtol=1e-5)
    tiles = list(pacing.pieces(130, 130, 4.0 * HEADS * DIM, causal=causal))
    assert len(tiles) > 2
    assert calls == [None] * (len(tiles) - 1)


@pytest.mark.parametrize("way", [ring_attention, q_ring_attention])
def test_it_gives_way_between_steps(way: Callable[..., torch.Tensor]) -> None:
    case = RingCase(group=(0, 1, 2, 3), history=80, tokens=60)
    lanes = thread_lanes(4)
    calls: list[list[object]] = [[] for _ in lanes]

    def member(me: int) -> torch.Tensor:
        inputs = case.member_inputs(me, torch.float32)
        pacing = Pacing(calls[me].append, 1e4)
        return way(*inputs, case.layout(me), lanes[me], scale=case.scale, pacing=pacing)

    out = case.assemble(in_threads(member, range(4)))
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)
    assert all(len(made) >= 3 for made in calls)
    assert {call for made in calls for call in made} == {None}


class InFlight:
    """Knows how many exchanges of queries have been started and not waited for."""

    def __init__(self, links: Exchanger) -> None:
        self._links = links
        self.now = self.most = 0

    def exchange(
        self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0
    ) -> Waitable:
        work = self._links.exchange(sends, recvs, note)
        self.now += 1
        self.most = max(self.most, self.now)

        def wait() -> None:
            work.wait()
            self.now -= 1

        return SimpleNamespace(wait=wait)


def test_the_q_ring_keeps_few_exchanges_in_flight() -> None:
    """Two members' queries and two answers, in a group of six: red where all go at once."""
    case = RingCase(group=tuple(range(6)), history=300, tokens=24)
    counting = [InFlight(lane) for lane in thread_lanes(6)]
    out = case.assemble(
        in_threads(lambda me: run_member(case, counting[me], me, q_ring_attention), range(6))
    )
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)
    assert {links.most for links in counting} <= {3, 4}
    assert {links.now for links in counting} == {0}


class Memory:
    """Knows how many tensors that something comes into are alive, by tag."""

    def __init__(self, links: Exchanger) -> None:
        self._links = links
        self._made: dict[int, list[weakref.ref[torch.Tensor]]] = {}
        self.most: dict[int, int] = {}

    def exchange(
        self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0
    ) -> Waitable:
        for message in recvs:
            made = self._made.setdefault(message.tag, [])
            made.append(weakref.ref(message.tensor))
            alive = sum(tensor() is not None for tensor in made)
            self.most[message.tag] = max(self.most.get(message.tag, 0), alive)
        return self._links.exchange(sends, recvs, note)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_no_more_guests_are_in_memory_in_a_larger_group(size: int) -> None:
    """Of the others' queries, and of the answers to the own ones."""
    case = RingCase(group=tuple(range(size)), history=300, tokens=24)
    memories = [Memory(lane) for lane in thread_lanes(size)]
    out = case.assemble(
        in_threads(lambda me: run_member(case, memories[me], me, q_ring_attention), range(size))
    )
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)
    for memory in memories:
        assert memory.most == dict.fromkeys((Q_TAG, PARTIAL_TAG), min(GUESTS, size - 1))


class Pool:
    """One layer's KV by slot, for all layers."""

    def __init__(self) -> None:
        self.kv = torch.zeros(2, 64, 1, DIM)

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        self.kv[0, where.loc], self.kv[1, where.loc] = k.view(-1, 1, DIM), v.view(-1, 1, DIM)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.kv[0]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.kv[1]


def test_steps_are_worked_out_once_for_layers_of_one_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[LayerShape] = []

    def counted(layout: RingLayout, shape: LayerShape) -> KvRing | QRing:
        made.append(shape)
        return ring_of(layout, shape)

    monkeypatch.setattr(grouped, "ring_of", counted)
    case = RingCase(group=(0, 1), history=0, tokens=40)
    lanes = thread_lanes(2)
    calls: list[object] = []

    def member(me: int) -> torch.Tensor:
        layout = case.layout(me)
        slots = torch.arange(layout.own_tokens)
        attention = ShardAttention(
            inner=SimpleNamespace(token_to_kv_pool=Pool(), req_to_token_pool=None),
            layout=layout,
            links=lanes[me],
            own_slots=slots,
            history_slots=torch.empty(0, dtype=torch.int64),
            rebalancer=None,
            give_way=calls.append,
            tile_flops=1.0,
        )
        batch: Any = SimpleNamespace(out_cache_loc=slots)
        for number in range(5):
            layer = RadixAttention(HEADS, DIM, 0.3, 1, layer_id=number)
            q, k, v = (torch.ones(layout.own_tokens, heads * DIM) for heads in (HEADS, 1, 1))
            out = attention.forward(q, k, v, layer, batch)
        return out

    outs = in_threads(member, range(2))
    assert len(made) == 2, "once at each member"
    assert all(bool((out == 1).all()) for out in outs)
    assert len(calls) >= 2 * 5 * 2, "between the two steps of each layer, and between tiles"
