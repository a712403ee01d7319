"""Sliding windows: each query sees its own position and a fixed number of positions before it.

No block circulates: each member gets the halo of its pieces (``halo.py``). Such layers stand beside
full ones in a model, and keep their rows in the same plain pool here. Sinks may take a part of the
softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.families.types import (
    Exchange,
    LayerCall,
    LayerSpec,
    ShardChunk,
    key_value_buffers,
)
from sglang_cdsp.attention.halo import Halo, exchange
from sglang_cdsp.attention.layer_check import WINDOW, odd_features
from sglang_cdsp.attention.windowed import window_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang.srt.layers.radix_attention import RadixAttention


class Window:
    """The family; see ``Family``."""

    name = "sliding window"
    keywords = frozenset({"sinks"})
    modules = 1

    def faults(self, layer: RadixAttention) -> list[str]:
        """See ``Family``."""
        return odd_features(layer, served=(WINDOW,))

    def spec(self, layer: RadixAttention) -> LayerSpec:
        """See ``Family``."""
        return LayerSpec(
            self.name, (Exchange.HALO,), key_value_buffers(layer), layer.sliding_window_size
        )

    def begin(self, chunk: ShardChunk) -> WindowAtWork:
        """See ``Family``."""
        return WindowAtWork(chunk)


@dataclass(frozen=True)
class _Piece:
    """Where the keys of one piece of the shard are, in the order of positions.

    Attributes:
        queries: its rows of the shard.
        keys: how many keys its queries see together.
        own, own_at: rows of the own block, and their places among the keys; int64.
        far, far_at: rows of the halo, and theirs.
    """

    queries: slice
    keys: int
    own: torch.Tensor
    own_at: torch.Tensor
    far: torch.Tensor
    far_at: torch.Tensor


class WindowAtWork:
    """Window layers on one shard of one chunk; see ``AtWork``."""

    form = ""

    def __init__(self, chunk: ShardChunk) -> None:
        self._chunk = chunk
        self._plans: dict[int, tuple[Halo, tuple[_Piece, ...]]] = {}

    def passes_all(self, call: LayerCall) -> bool:
        """See ``AtWork``. Only halos pass."""
        return self._chunk.layout.size == 1

    def attend(self, call: LayerCall) -> torch.Tensor:
        """See ``AtWork``."""
        chunk, layer = self._chunk, call.layer
        window = int(layer.sliding_window_size)
        halo, pieces = self._plan(window)
        far = exchange(halo, call.buffers, chunk.slots, chunk.links, layer.layer_id)
        outs = []
        for number, piece in enumerate(pieces):
            if number:
                chunk.pacing.boundary()
            keys, values = (
                _gathered(buffer, chunk.slots, arrived, piece)
                for buffer, arrived in zip(call.buffers, far, strict=True)
            )
            outs.append(
                window_attention(
                    call.q[piece.queries], keys, values,
                    window=window, scale=layer.scaling, pacing=chunk.pacing,
                    sinks=call.keywords.get("sinks"),
                )
            )  # fmt: skip
        empty = call.q.new_empty((0, call.q.shape[1], layer.v_head_dim))
        return torch.cat(outs) if outs else empty

    def _plan(self, window: int) -> tuple[Halo, tuple[_Piece, ...]]:
        """Exchange and places of keys, worked out at the first layer of a window."""
        if window not in self._plans:
            layout, device = self._chunk.layout, self._chunk.slots.device
            history = self._chunk.history or ((),) * layout.size
            halo = Halo.of(layout, history, window, device)
            self._plans[window] = halo, _pieces(self._chunk, halo.positions, window)
        return self._plans[window]


def _pieces(chunk: ShardChunk, positions: torch.Tensor, window: int) -> tuple[_Piece, ...]:
    """Find the keys of each piece.

    Args:
        positions: of the own block's rows, then of the halo's.

    Raises:
        AttentionError: a position that a query sees is not here.
    """
    held, device = chunk.slots.numel(), chunk.slots.device
    pieces, row = [], 0
    for span in chunk.layout.pieces[chunk.layout.me]:
        start = max(0, span.start - window)
        near = ((positions >= start) & (positions < span.stop)).nonzero().flatten()
        if near.numel() != span.stop - start:
            raise AttentionError(
                f"there are {near.numel()} rows of positions {start} to {span.stop - 1}, not one "
                "each: pass the spans of the history that are held"
            )
        place = positions[near] - start
        own = near < held
        pieces.append(
            _Piece(
                slice(row, row + span.tokens),
                span.stop - start,
                near[own].to(device),
                place[own].to(device),
                (near[~own] - held).to(device),
                place[~own].to(device),
            )
        )
        row += span.tokens
    return tuple(pieces)


def _gathered(
    buffer: torch.Tensor, slots: torch.Tensor, far: torch.Tensor, piece: _Piece
) -> torch.Tensor:
    """The keys, or the values, of one piece, ``[keys, ...]``."""
    rows = buffer.new_empty((piece.keys, *buffer.shape[1:]))
    rows.index_copy_(0, piece.own_at, buffer.index_select(0, slots[piece.own]))
    if piece.far.numel():
        rows.index_copy_(0, piece.far_at, far.index_select(0, piece.far))
    return rows


def claim(layers: Sequence[RadixAttention]) -> dict[int, Window]:
    """The layers of a model that are this family's."""
    family = Window()
    return {
        layer.layer_id: family
        for layer in layers
        if layer.sliding_window_size is not None and layer.sliding_window_size > -1
    }
