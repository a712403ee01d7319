"""Moves history to its new holders one layer ahead of the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from sglang_cdsp.parallel.mesh import Mesh
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Move, Span


class Rebalancer:
    """Layer ``i + 1``'s history travels while layer ``i`` projects and runs its MLP.

    (Tetris, "overlap of balancing": the links are free once layer ``i``'s attention is over.)
    """

    def __init__(
        self,
        *,
        pool: Any,
        layers: Sequence[int],
        moves: Sequence[Move],
        me: int,
        slots_of: Callable[[Span], torch.Tensor],
        mesh: Mesh,
    ) -> None:
        """``layers`` are the model's attention layer ids in the order they run."""
        self._pool = pool
        self._next = dict(pairwise(layers))
        self._moves = list(moves)
        self._me = me
        self._slots_of = slots_of
        self._mesh = mesh
        self._running: dict[int, Any] = {}
        self._start(layers[0])

    def _start(self, layer: int) -> None:
        self._running[layer] = start_moves(
            self._pool.get_key_buffer(layer),
            self._pool.get_value_buffer(layer),
            self._moves,
            self._me,
            self._slots_of,
            self._mesh,
        )

    def before_attention(self, layer: int) -> None:
        """Wait until this layer's history lies at its new holders."""
        self._running.pop(layer).wait()

    def after_attention(self, layer: int) -> None:
        """Start the next layer's move; the links are free now."""
        following = self._next.get(layer)
        if following is not None:
            self._start(following)
