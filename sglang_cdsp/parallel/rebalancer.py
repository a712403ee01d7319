"""Moves history to its new holders one layer ahead of the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch

from sglang_cdsp.parallel.links.types import Exchanger
from sglang_cdsp.parallel.moves import MoveHandle, start_moves
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.spans import Move, Span


class LayerBuffers(Protocol):
    """A KV pool, layer by layer; SGLang's is one."""

    def get_key_buffer(self, layer_id: int, /) -> torch.Tensor:
        """K of a layer, ``[slots, Hkv, D]``."""

    def get_value_buffer(self, layer_id: int, /) -> torch.Tensor:
        """V of a layer, ``[slots, Hkv, Dv]``."""


def rows_of_layer(pool: LayerBuffers, layer: int) -> tuple[torch.Tensor, ...]:
    """The buffers of a layer that hold a row a token: K and V, or K alone where V is a view of it.

    So it is with multi-head latent attention, whose values are the leading part of its keys, and
    whose rows all tensor-parallel ranks of an instance hold alike.
    """
    keys, values = pool.get_key_buffer(layer), pool.get_value_buffer(layer)
    return (keys,) if values.data_ptr() == keys.data_ptr() else (keys, values)


class Rebalancer:
    """The moves of one chunk's history on this instance, each layer's one layer ahead.

    Layer ``i + 1``'s history travels while layer ``i`` projects and runs its MLP: the links are
    free once layer ``i``'s attention is over (Tetris, section 4, "overlap of balancing").
    """

    def __init__(
        self,
        *,
        pool: LayerBuffers,
        layers: Sequence[int],
        moves: Sequence[Move],
        instance: int,
        slots_of: Callable[[Span], torch.Tensor],
        links: Exchanger,
        ranks: Ranks = ALONE,
    ) -> None:
        """Start the first layer's move.

        Args:
            pool: KV of this instance.
            layers: the model's attention layer ids in the order they run.
            moves: all moves of the group, the same list at every member.
            instance: this one.
            slots_of: pool rows of a span here, see ``start_moves``.
            links: to the others.
            ranks: of this instance, see ``start_moves``.
        """
        self._pool = pool
        self._next = dict(pairwise(layers))
        self._moves = list(moves)
        self._instance = instance
        self._slots_of = slots_of
        self._links = links
        self._ranks = ranks
        self._running: dict[int, MoveHandle] = {}
        self._start(layers[0])

    def _start(self, layer: int) -> None:
        self._running[layer] = start_moves(
            rows_of_layer(self._pool, layer),
            self._moves,
            self._instance,
            self._slots_of,
            self._links,
            note=layer,
            ranks=self._ranks,
        )

    def before_attention(self, layer: int) -> None:
        """Wait until this layer's history lies at its new holders."""
        self._running.pop(layer).wait()

    def after_attention(self, layer: int) -> None:
        """Start the next layer's move; the links are free now."""
        following = self._next.get(layer)
        if following is not None:
            self._start(following)
