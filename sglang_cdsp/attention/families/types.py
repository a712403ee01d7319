"""What a family of attention is: the one interface between models and the engine.

The engine knows chunks, slots, links and layers by number. What a layer computes, what it
exchanges with the other members and what its rows are in the pool is its family's. A model's layers
may belong to several families; a layer that none can run is refused at the server's start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.paged_kernel import PAGED_KERNELS, PagedKernel
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.links.types import Exchanger
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.spans import Span

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


class Exchange(Enum):
    """What the members of a group do with each other in one layer."""

    CIRCULATE = "circulate"
    """Blocks go around the ring (``streams.circulate``), or queries where that is fewer bytes."""

    HALO = "halo"
    """Each member gets the rows just before each of its pieces (``halo.exchange``)."""

    PASS_ON = "pass on"
    """A state of fixed size goes through the pieces in token order (``streams.pass_on``). No family
    here has one."""


class Component(Enum):
    """What of a layer goes to decode, in SGLang's words."""

    KV = "kv"
    """Pages of the KV pool; every holder sends its own."""


@dataclass(frozen=True)
class LayerSpec:
    """What the engine has to know of one layer; the same on all members.

    Attributes:
        family: name of its family.
        exchanges: what it exchanges in a group, in order; () for nothing.
        buffers: what one token has in each of the layer's buffers in the pool, ``(heads, dim)`` on
            this rank. It lies in one slot, and moves with it when a group grows.
        window: rows before a query that it sees; None for all. The next chunk needs no others.
        leaves: what of it goes to decode.
        reading: numbers that reading a block makes on this rank at most, whatever its rows are.
    """

    family: str
    exchanges: tuple[Exchange, ...]
    buffers: tuple[tuple[int, int], ...]
    window: int | None = None
    leaves: Component = Component.KV
    reading: int = 0

    @property
    def row(self) -> int:
        """Numbers that one token has in the pool."""
        return sum(heads * dim for heads, dim in self.buffers)


@dataclass(frozen=True)
class ShardChunk:
    """One member's shard of a chunk, as all layers of a forward find it.

    Attributes:
        layout: who holds and computes what.
        links: to the other members; None for a group of one.
        slots: KV slots of the rows held here, history then chunk, int64.
        history: by member, the spans of the history that it holds, in the order of their rows;
            () where no family of the model asks for them.
        pacing: where others may run meanwhile.
        kept_slots: where this member, which is to end with all KV, keeps each member's block,
            int64 ``[rows]`` by index; None for a member that keeps nothing.
        kernels: that read the pool, in the order of preference.
        ranks: the instance's tensor parallelism.
    """

    layout: RingLayout
    links: Exchanger | None
    slots: torch.Tensor
    history: tuple[tuple[Span, ...], ...] = ()
    pacing: Pacing = field(default_factory=Pacing)
    kept_slots: Sequence[torch.Tensor] | None = None
    kernels: Sequence[PagedKernel] = PAGED_KERNELS
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class LayerCall:
    """SGLang's call of one attention layer, for the shard's own tokens.

    Attributes:
        layer: SGLang's layer.
        q: ``[T, Hq, D]``.
        k, v: ``[T, Hkv, D]`` and ``[T, Hkv, Dv]`` of the same tokens, as the model passes them.
        saved: whether they were stored as they are passed; else the model has stored what counts.
        buffers: the layer's rows in the pool, ``[slots, ...]`` each (``rows_of_layer``).
        keywords: further arguments, all of which the family understands.
    """

    layer: RadixAttention
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    saved: bool
    buffers: tuple[torch.Tensor, ...]
    keywords: Mapping[str, Any]


def key_value_buffers(layer: RadixAttention) -> tuple[tuple[int, int], ...]:
    """``LayerSpec.buffers`` of a layer with keys and values of its own."""
    return (
        (layer.tp_k_head_num, layer.qk_head_dim),
        (layer.tp_v_head_num, layer.v_head_dim),
    )


def keeper(
    chunk: ShardChunk,
    buffers: Sequence[torch.Tensor],
    stored: Callable[[torch.Tensor], Sequence[torch.Tensor]],
) -> Callable[[int, torch.Tensor], None] | None:
    """What stores a layer's blocks that come past, at the member that keeps them; None elsewhere.

    Args:
        buffers: the layer's rows in the pool.
        stored: a block's message as rows of each buffer.
    """
    slots = chunk.kept_slots
    if slots is None:
        return None

    def keep(holder: int, message: torch.Tensor) -> None:
        for buffer, rows in zip(buffers, stored(message), strict=True):
            buffer.index_copy_(0, slots[holder], rows)

    return keep


class AtWork(Protocol):
    """A family on one shard of one chunk."""

    @property
    def form(self) -> str:
        """What SGLang's layer shall compute, in the family's words; alike at all members."""

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Return the attention of the shard's queries, ``[T, Hq, Dv]`` in the dtype of ``q``.

        All members call it, whatever they hold. The KV of the shard is in the pool.

        Raises:
            LinkError: a partner is gone.
        """

    def passes_all(self, call: LayerCall) -> bool:
        """Whether every block comes past each member, so that one has kept them all."""


class Family(Protocol):
    """One kind of attention.

    Attributes:
        name: shown in errors and documents.
        keywords: arguments of SGLang's attention layer, beside q, k and v, that it understands.
        modules: attention modules of one layer at most: one for each form that it computes.
    """

    @property
    def name(self) -> str: ...

    @property
    def keywords(self) -> frozenset[str]: ...

    @property
    def modules(self) -> int: ...

    def faults(self, layer: RadixAttention) -> list[str]:
        """What of a layer it would get wrong, in words; [] for a layer that it can run."""

    def spec(self, layer: RadixAttention) -> LayerSpec:
        """What the engine has to know of a layer."""

    def begin(self, chunk: ShardChunk) -> AtWork:
        """Start on a chunk."""
