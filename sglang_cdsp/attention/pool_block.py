"""A block whose rows lie in an instance's KV pool, each in a slot of its own."""

from __future__ import annotations

import torch

from sglang_cdsp.attention.answers import Answer
from sglang_cdsp.attention.blocks import BlockShape, TensorBlock
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.paged import PagedReader
from sglang_cdsp.attention.ring_layout import Visible


class PoolBlock:
    """A member's block of one layer, in the pool; see ``Block``.

    What travels is gathered once, into its message. With a reader attention reads the pool;
    without one it reads that message, or a gathered copy where nothing travels.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
        history_rows: int,
        own: tuple[torch.Tensor, torch.Tensor] | None = None,
        reader: PagedReader | None = None,
    ) -> None:
        """Look at a layer's pool.

        Args:
            keys, values: the pool, ``[slots, H, D]`` and ``[slots, H, Dv]``.
            slots: of the rows, int64 ``[history and chunk]``, history first.
            history_rows: how many of them are history.
            own: the chunk's rows as they were stored, where they are at hand outside the pool.
            reader: reads the pool; None for no kernel that can.
        """
        self._keys, self._values, self._slots = keys, values, slots
        self._history = history_rows
        self._own = own
        self._reader = reader
        self._copy: TensorBlock | None = None

    @property
    def shape(self) -> BlockShape:
        """See ``Block``."""
        return BlockShape.of(self._keys, self._values)

    @property
    def history_rows(self) -> int:
        """See ``Block``."""
        return self._history

    @property
    def chunk_rows(self) -> int:
        """See ``Block``."""
        return self._slots.numel() - self._history

    def message(self) -> torch.Tensor:
        """See ``Block``."""
        shape, slots = self.shape, self._slots
        message = shape.empty(slots.numel(), self._keys)
        k, v = shape.views(message)
        torch.index_select(self._keys, 0, slots, out=k)
        torch.index_select(self._values, 0, slots, out=v)
        past = self._history
        self._copy = TensorBlock(k[past:], v[past:], k[:past], v[:past])
        return message

    def attend_own(self, state: RunningState) -> None:
        """See ``Block``."""
        if self._reader is not None:
            self._reader.attend_own(state, self._keys, self._values)
        else:
            self._beside_each_other().attend_own(state)

    def serve(
        self, guest: torch.Tensor, parts: tuple[Visible, ...], scale: float, pacing: Pacing
    ) -> Answer:
        """See ``Block``. With a reader, ``scale`` is the one that it was planned for."""
        if self._reader is not None:
            return self._reader.serve(guest, parts, self._keys, self._values, pacing)
        return self._beside_each_other().serve(guest, parts, scale, pacing)

    def _beside_each_other(self) -> TensorBlock:
        """The rows as kernels want them that cannot follow slots; copied once."""
        if self._copy is None:
            past = self._history
            slots = self._slots if self._own is None else self._slots[:past]
            k = self._keys.index_select(0, slots)
            v = self._values.index_select(0, slots)
            own = (k[past:], v[past:]) if self._own is None else self._own
            self._copy = TensorBlock(*own, k[:past], v[:past])
        return self._copy
