"""What circulates for a chunk: KV or Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sglang_cdsp.attention.ring_layout import RingLayout

Circulation = Literal["kv", "q"]

LSE_BYTES = 4


@dataclass(frozen=True)
class WireBytes:
    """Bytes that one layer puts on the wire, all members together, either way."""

    kv: int
    q: int


@dataclass(frozen=True)
class WireRows:
    """Rows that one layer puts on the wire, all members together, either way.

    Attributes:
        kv: rows of blocks, each counted once a hop.
        q: query rows, each counted once for each member that serves it.
    """

    kv: int
    q: int


def wire_rows(layout: RingLayout) -> WireRows:
    """Count the rows, see ``wire_bytes``."""
    members = range(layout.size)
    return WireRows(
        kv=sum(layout.hops(j) * layout.block_rows(j) for j in members),
        q=sum(len(layout.visible_rows(i, j)) for i in members for j in members if i != j),
    )


def wire_bytes(
    layout: RingLayout,
    kv_heads: int,
    q_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    element_size: int = 2,
) -> WireBytes:
    """Count what ``ring_attention`` and ``q_ring_attention`` send for one layer.

    With ``e`` bytes an element, ``B_j`` rows in the block of member j (history and chunk), which
    moves ``h_j`` hops (size - 1, or fewer where nobody further on sees it), and ``V_ij`` query
    rows of member i that see anything of member j's block:

        kv = Hkv * (D + Dv) * e * sum_j h_j * B_j
        q  = Hq * ((D + Dv) * e + 4) * sum_{i != j} V_ij

    (4 for the float32 log-sum-exp that comes back with each output.) For an even split of T new
    tokens behind P of history, and ``D = Dv``, Q is fewer bytes when about T / (T + P) is below
    Hkv / Hq: both K and V circulate, but so do Q and its output. arXiv 2411.01783 compares the
    messages around the ring alone, without the way back, and so has twice that threshold.

    Args:
        layout: the chunk on its group; ``me`` does not matter.
        kv_heads, q_heads: heads of one rank.
        head_dim: D.
        value_dim: Dv, by default D.
        element_size: bytes of one element of K, V and Q.
    """
    row = (head_dim + (value_dim or head_dim)) * element_size
    rows = wire_rows(layout)
    return WireBytes(kv=kv_heads * row * rows.kv, q=q_heads * (row + LSE_BYTES) * rows.q)


def choose_circulation(
    layout: RingLayout,
    kv_heads: int,
    q_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    element_size: int = 2,
) -> Circulation:
    """Return what costs fewer bytes (see ``wire_bytes``); the same at every member.

    Equal counts go to KV, whose last message is not followed by a way back.
    """
    cost = wire_bytes(
        layout, kv_heads, q_heads, head_dim, value_dim=value_dim, element_size=element_size
    )
    return "q" if cost.q < cost.kv else "kv"
