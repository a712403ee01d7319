"""What a layer puts on the wire for a token, by family, in the sizes of real models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.families.latent import Latent, LatentLayer
from sglang_cdsp.attention.families.types import Family
from sglang_cdsp.attention.families.window import Window
from sglang_cdsp.attention.latent_rows import LatentSizes
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.links.types import LinkShape
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.spans import split_chunk, tokens_of
from tests.parallel.counting import Counting
from tests.parallel.joint_ranks import Joint
from tests.parallel.ring_cases import in_threads, thread_lanes

MEMBERS, TOKENS = 4, 512
SHAPE = LinkShape(lanes=1, depth=2, slot_bytes=1 << 18)


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(MEMBERS, SHAPE)
    yield lanes
    for lane in lanes:
        lane.close()


class Pool:
    """One layer's rows by slot, bfloat16, zeros."""

    def __init__(self, widths: Sequence[tuple[int, int]], value_of: int) -> None:
        self.buffers = [torch.zeros(TOKENS, *width, dtype=torch.bfloat16) for width in widths]
        self._value_of = value_of

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.buffers[0]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.buffers[1] if len(self.buffers) > 1 else self.buffers[0][..., : self._value_of]

    def set_kv_buffer(self, *arguments: Any) -> None: ...


def sent(
    lanes: list[Lane],
    layer: RadixAttention,
    family: Family | None,
    ranks: Sequence[Ranks] = (ALONE,) * MEMBERS,
) -> int:
    """Bytes of one layer of a prompt in one chunk, all members together, of one rank each.

    ``ranks``: which one, by member.
    """
    pieces = split_chunk(0, TOKENS, MEMBERS, 1)
    counting = [Counting(lane) for lane in lanes]

    def member(me: int) -> None:
        own = tokens_of(pieces[me])
        widths = (
            family.spec(layer).buffers
            if family is not None
            else ((layer.tp_k_head_num, layer.qk_head_dim),) * 2
        )
        attention = ShardAttention(
            inner=SimpleNamespace(
                token_to_kv_pool=Pool(widths, layer.v_head_dim), req_to_token_pool=None
            ),
            layout=RingLayout(tuple(range(MEMBERS)), me, (0,) * MEMBERS, pieces),
            links=counting[me],
            own_slots=torch.arange(own),
            history_slots=torch.arange(0),
            rebalancer=None,
            history=((),) * MEMBERS,
            families={} if family is None else {0: family},
            ranks=ranks[me],
        )
        q = torch.zeros(own, layer.tp_q_head_num * layer.qk_head_dim, dtype=torch.bfloat16)
        k = torch.zeros(own, layer.tp_k_head_num * layer.qk_head_dim, dtype=torch.bfloat16)
        v = torch.zeros(own, layer.tp_v_head_num * layer.v_head_dim, dtype=torch.bfloat16)
        attention.forward(q, k, v, layer, SimpleNamespace(out_cache_loc=None))

    in_threads(member, range(MEMBERS))
    return sum(links.sent for links in counting)


def latent(heads: int) -> tuple[RadixAttention, Latent]:
    """DeepSeek-V3's rows, absorbed, with so many heads on a rank."""
    sizes = LatentSizes(heads=heads, rank=512, rope=64, nope=128, value=128)
    layer = RadixAttention(heads, 576, 0.1, 1, layer_id=0, v_head_dim=512)
    expand = lambda latents: (latents, latents)  # noqa: E731 - not asked for in this form
    return layer, Latent({0: LatentLayer(sizes, expand, layer)}, scaled=True)


def rows_on_the_way() -> int:
    """Rows of a ring, each counted once a hop: no member needs the last one's block of the chunk's
    middle, and so on, as the layout says."""
    layout = RingLayout(
        tuple(range(MEMBERS)), 0, (0,) * MEMBERS, split_chunk(0, TOKENS, MEMBERS, 1)
    )
    return sum(layout.hops(j) * layout.block_rows(j) for j in range(MEMBERS))


def grouped() -> RadixAttention:
    """Llama-3-70B's, Hy3's and GLM-4.7's: 8 KV heads of 128."""
    return RadixAttention(64, 128, 0.1, 8, layer_id=0)


def test_grouped_query_attention_sends_4096_bytes_a_row(lanes: list[Lane]) -> None:
    assert sent(lanes, grouped(), None) == 4096 * rows_on_the_way()


def test_latent_attention_sends_1152_bytes_a_row(lanes: list[Lane]) -> None:
    """DeepSeek-V3's rows, whose values are not sent twice: with them it would be 2,176 bytes."""
    assert sent(lanes, *latent(4)) == 1152 * rows_on_the_way()


def test_so_it_does_with_several_ranks_an_instance(lanes: list[Lane]) -> None:
    """All ranks hold the same rows and have links of their own: each sends a half of them."""
    other = thread_lanes(MEMBERS, SHAPE)
    joints = [Joint(2) for _ in range(MEMBERS)]

    def rank(number: int) -> int:
        ranks = [joint.of(number) for joint in joints]
        return sent((lanes, other)[number], *latent(2), ranks)

    by_rank = in_threads(rank, range(2))
    assert by_rank == [576 * rows_on_the_way()] * 2
    for lane in other:
        lane.close()


def test_a_window_sends_its_halo_and_no_ring(lanes: list[Lane]) -> None:
    """gpt-oss's: 8 KV heads of 64 and a window of 128, longer than a piece of 64 rows."""
    layer = RadixAttention(64, 64, 0.1, 8, layer_id=0, sliding_window_size=31)
    window = sent(lanes, layer, Window())
    # Seven borders of eight pieces; at the last member two pieces lie side by side.
    assert window == 2048 * 31 * 6
    full = RadixAttention(64, 64, 0.1, 8, layer_id=0)
    assert window * 6 < sent(lanes, full, None)
