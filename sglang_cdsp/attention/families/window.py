"""Windows: each query sees its own position and some before it, none that lie far back.

A sliding window has a fixed number of positions; chunked attention (Llama 4) begins anew at the
multiples of one. No block circulates: each member gets the halo of its pieces (``halo.py``). Such
layers stand beside full ones in a model, and keep their rows in the same plain pool here. Sinks may
take a part of the softmax.
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
from sglang_cdsp.attention.layer_check import CHUNKED, WINDOW, odd_features
from sglang_cdsp.attention.reach import Reach
from sglang_cdsp.attention.windowed import window_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang.srt.layers.radix_attention import RadixAttention
    from torch import nn


class Window:
    """The family; see ``Family``.

    Sliding windows have the size that each layer says, chunked layers that of the model.
    """

    keywords = frozenset({"sinks"})
    modules = 1

    def __init__(self, chunk_size: int | None = None) -> None:
        """``chunk_size``: of chunked layers; None for sliding windows."""
        self._chunk_size = chunk_size

    @property
    def name(self) -> str:
        """See ``Family``."""
        return "sliding window" if self._chunk_size is None else CHUNKED

    def faults(self, layer: RadixAttention) -> list[str]:
        """See ``Family``."""
        return odd_features(layer, served=(WINDOW if self._chunk_size is None else CHUNKED,))

    def spec(self, layer: RadixAttention) -> LayerSpec:
        """See ``Family``."""
        reach = self.reach(layer)
        rows = reach.rows - 1 if reach.chunked else reach.rows
        return LayerSpec(self.name, (Exchange.HALO,), key_value_buffers(layer), rows)

    def reach(self, layer: RadixAttention) -> Reach:
        """What the queries of a layer see."""
        if self._chunk_size is not None:
            return Reach(self._chunk_size, chunked=True)
        return Reach(int(layer.sliding_window_size))

    def begin(self, chunk: ShardChunk) -> WindowAtWork:
        """See ``Family``."""
        return WindowAtWork(chunk, self)


@dataclass(frozen=True)
class _Piece:
    """Where the keys of queries are that see each other, in the order of positions.

    Attributes:
        queries: their rows of the shard.
        keys: how many keys they see together.
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

    def __init__(self, chunk: ShardChunk, family: Window) -> None:
        self._chunk = chunk
        self._family = family
        self._plans: dict[Reach, tuple[Halo, tuple[_Piece, ...]]] = {}

    def passes_all(self, call: LayerCall) -> bool:
        """See ``AtWork``. Only halos pass."""
        return self._chunk.layout.size == 1

    def attend(self, call: LayerCall) -> torch.Tensor:
        """See ``AtWork``."""
        chunk, layer = self._chunk, call.layer
        reach = self._family.reach(layer)
        halo, pieces = self._plan(reach)
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
                    window=reach.rows, scale=layer.scaling, pacing=chunk.pacing,
                    sinks=call.keywords.get("sinks"),
                )
            )  # fmt: skip
        empty = call.q.new_empty((0, call.q.shape[1], layer.v_head_dim))
        return torch.cat(outs) if outs else empty

    def _plan(self, reach: Reach) -> tuple[Halo, tuple[_Piece, ...]]:
        """Exchange and places of keys, worked out at the first layer of a reach."""
        if reach not in self._plans:
            layout, device = self._chunk.layout, self._chunk.slots.device
            history = self._chunk.history or ((),) * layout.size
            halo = Halo.of(layout, history, reach, device)
            self._plans[reach] = halo, _pieces(self._chunk, halo.positions, reach)
        return self._plans[reach]


def _pieces(chunk: ShardChunk, positions: torch.Tensor, reach: Reach) -> tuple[_Piece, ...]:
    """Find the keys of each piece, of queries that see each other.

    Args:
        positions: of the own block's rows, then of the halo's.

    Raises:
        AttentionError: a position that a query sees is not here.
    """
    held, device = chunk.slots.numel(), chunk.slots.device
    pieces, row = [], 0
    for span in chunk.layout.pieces[chunk.layout.me]:
        for run in reach.runs(span):
            start = reach.first(run.start)
            near = ((positions >= start) & (positions < run.stop)).nonzero().flatten()
            if near.numel() != run.stop - start:
                raise AttentionError(
                    f"there are {near.numel()} rows of positions {start} to {run.stop - 1}, not "
                    "one each: pass the spans of the history that are held"
                )
            place = positions[near] - start
            own = near < held
            pieces.append(
                _Piece(
                    slice(row, row + run.tokens),
                    run.stop - start,
                    near[own].to(device),
                    place[own].to(device),
                    (near[~own] - held).to(device),
                    place[~own].to(device),
                )
            )
            row += run.tokens
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


def claim(model: nn.Module, layers: Sequence[RadixAttention]) -> dict[int, Window]:
    """The layers of a model that are this family's.

    SGLang's chunked layers leave it to the backend how long a chunk is: the model's configuration
    says so.
    """
    config = getattr(model, "config", None)
    size = getattr(getattr(config, "text_config", config), "attention_chunk_size", None)
    sliding, chunked = Window(), Window(size)
    found = {layer.layer_id: chunked for layer in layers if layer.use_irope and size is not None}
    for layer in layers:
        if layer.sliding_window_size is not None and layer.sliding_window_size > -1:
            found[layer.layer_id] = sliding
    return found
