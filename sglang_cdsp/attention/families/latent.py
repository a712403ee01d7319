"""Multi-head latent attention (MLA): DeepSeek-V2, V3 and R1, Kimi-K2, GLM-4.7-Flash and others.

One latent row a token circulates; V is a part of it and is not sent twice, and of the ranks of an
instance, which all hold the same rows, each carries its share. Whether attention reads the rows
absorbed or expanded (``latent_rows.py``) is one answer for a chunk. SGLang's layers are told, so
that queries have the same form at all members. Where that is fewer bytes queries travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sglang_cdsp.attention.circulation import LSE_BYTES, wire_rows
from sglang_cdsp.attention.families.types import (
    Exchange,
    LayerCall,
    LayerSpec,
    ShardChunk,
    keeper,
)
from sglang_cdsp.attention.latent_rows import (
    AbsorbedRows,
    Expand,
    ExpandedRows,
    LatentBlock,
    LatentSizes,
    expanded_is_cheaper,
)
from sglang_cdsp.attention.layer_check import odd_features
from sglang_cdsp.attention.partial import served
from sglang_cdsp.attention.q_ring import q_ring_attention
from sglang_cdsp.attention.ring import ring_attention
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.steps import KvRing, QRing

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention

ABSORBED, EXPANDED = "absorbed", "expanded"
SCALED = (
    "queries that are scaled by their place, in the absorbed form alone, for which there is no "
    "kernel on this device"
)


@dataclass(frozen=True)
class LatentLayer:
    """What is known of one latent layer of a built model.

    Attributes:
        sizes: of its rows and heads.
        expand: how its rows are expanded.
        absorbed: SGLang's attention module of the absorbed form; the other one is expanded.
        faults: what of it would come out wrong.
    """

    sizes: LatentSizes
    expand: Expand
    absorbed: RadixAttention
    faults: tuple[str, ...] = ()


class Latent:
    """The family; see ``Family``."""

    name = "multi-head latent attention"
    keywords: frozenset[str] = frozenset()
    modules = 2

    def __init__(
        self,
        layers: Mapping[int, LatentLayer],
        *,
        scaled: bool = False,
        absorbs: bool = True,
    ) -> None:
        """Serve the latent layers of one model.

        Args:
            layers: by number.
            scaled: whether the model scales queries by their position, which it does in the
                absorbed form alone (Mistral Large 3).
            absorbs: whether there is a kernel for the long rows of the absorbed form here.
        """
        self.layers = layers
        self.scaled = scaled
        self.absorbs = absorbs

    def faults(self, layer: RadixAttention) -> list[str]:
        """See ``Family``."""
        return [
            *odd_features(layer, attributes=("kv_b_proj",)),
            *self.layers[layer.layer_id].faults,
            *([SCALED] if self.scaled and not self.absorbs else []),
        ]

    def spec(self, layer: RadixAttention) -> LayerSpec:
        """See ``Family``."""
        sizes = self.layers[layer.layer_id].sizes
        return LayerSpec(
            self.name, (Exchange.CIRCULATE,), ((1, sizes.row),), reading=ExpandedRows(sizes).made
        )

    def begin(self, chunk: ShardChunk) -> LatentAtWork:
        """See ``Family``."""
        return LatentAtWork(self, chunk)


class LatentAtWork:
    """Latent attention on one shard of one chunk; see ``AtWork``."""

    def __init__(self, family: Latent, chunk: ShardChunk) -> None:
        self._layers = family.layers
        self._chunk = chunk
        self._rings: dict[LatentSizes, KvRing | QRing] = {}
        sizes = next(iter(family.layers.values())).sizes
        cheaper = not family.scaled and expanded_is_cheaper(chunk.layout, sizes)
        self.form = EXPANDED if cheaper or not family.absorbs else ABSORBED

    def passes_all(self, call: LayerCall) -> bool:
        """See ``AtWork``. Where queries circulate, no block does."""
        return isinstance(self._ring(call), KvRing)

    def attend(self, call: LayerCall) -> torch.Tensor:
        """See ``AtWork``."""
        known, chunk, layout = self._layers[call.layer.layer_id], self._chunk, self._chunk.layout
        expanded = self.form == EXPANDED
        shape = self._shape(known, expanded)
        # Of the expanded form the model has stored the rows itself, and made K and V of its own.
        own = (call.k, call.v) if call.saved or expanded else None
        block = LatentBlock(
            call.buffers[0], chunk.slots, layout.history_tokens[layout.me], shape, own
        )
        ring = self._ring(call)
        common: dict[str, Any] = {
            "scale": call.layer.scaling,
            "layer": call.layer.layer_id,
            "pacing": chunk.pacing,
        }
        if isinstance(ring, KvRing):
            keep = keeper(chunk, call.buffers, shape.stored)
            return ring_attention(
                call.q, block, layout, chunk.links, ring=ring, keep=keep, **common
            )
        return q_ring_attention(call.q, block, layout, chunk.links, ring=ring, **common)

    def _shape(self, known: LatentLayer, expanded: bool) -> AbsorbedRows:
        """How rows are read, and what of them travels on this rank's links."""
        if expanded:
            return ExpandedRows(known.sizes, self._chunk.ranks, known.expand)
        return AbsorbedRows(known.sizes, self._chunk.ranks)

    def _ring(self, call: LayerCall) -> KvRing | QRing:
        """What circulates: latent rows, or queries where they and their answers are fewer bytes."""
        sizes = self._layers[call.layer.layer_id].sizes
        if sizes not in self._rings:
            queries = queries_circulate(
                self._chunk.layout,
                sizes,
                self.form == EXPANDED,
                call.q.element_size(),
                ranks=self._chunk.ranks.size,
            )
            made = QRing.of if queries else KvRing.of
            self._rings[sizes] = made(self._chunk.layout)
        return self._rings[sizes]


def queries_circulate(
    layout: RingLayout, sizes: LatentSizes, expanded: bool, element_size: int, ranks: int = 1
) -> bool:
    """Whether queries and their answers are fewer bytes than latent rows; alike at all members.

    Counted for all ranks of an instance together: each has heads of its own, and a share of the
    same rows.
    """
    rows = wire_rows(layout)
    query = ranks * sizes.heads * (sizes.query[expanded] * element_size + LSE_BYTES)
    return rows.q * query < rows.kv * sizes.row * element_size


def latent_layers(model: nn.Module) -> dict[int, LatentLayer]:
    """The latent layers of a built model, by number."""
    layers: list[Any] = [
        module
        for module in model.modules()
        if hasattr(module, "attn_mqa") and hasattr(module, "attn_mha")
    ]
    return {layer.attn_mqa.layer_id: _known(layer) for layer in layers}


def claim(model: nn.Module) -> dict[int, Latent]:
    """The layers of a model that are this family's; none if it has no latent attention."""
    layers = latent_layers(model)
    scaled = any(getattr(m, "llama_4_scaling_config", None) for m in model.modules())
    family = Latent(layers, scaled=scaled, absorbs=_absorbs(model, layers.values()))
    return dict.fromkeys(layers, family)


def _absorbs(model: nn.Module, layers: Iterable[LatentLayer]) -> bool:
    """Whether partial attention takes rows as long as the absorbed form has them."""
    weight = next(model.parameters(), None)
    if weight is None:
        return True
    # Weights may be quantised: what is computed in is at least as wide as bfloat16.
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.bfloat16
    return all(served(weight.device, dtype, layer.sizes.row) for layer in layers)


def _known(module: Any) -> LatentLayer:
    """Read off SGLang's attention module (``DeepseekV2AttentionMLA``)."""
    sizes = LatentSizes(
        heads=module.num_local_heads,
        rank=module.kv_lora_rank,
        rope=module.qk_rope_head_dim,
        nope=module.qk_nope_head_dim,
        value=module.v_head_dim,
    )
    odd = {
        "sparse attention": bool(getattr(module, "use_dsa", False)),
        "attention sinks": getattr(module, "learnable_sink_param", None) is not None,
        "no weights to expand its latent rows by": not hasattr(module, "kv_b_proj"),
    }
    faults = tuple(what for what, present in odd.items() if present)
    return LatentLayer(sizes, _expander(module, sizes), module.attn_mqa, faults)


def _expander(module: Any, sizes: LatentSizes) -> Expand:
    def expand(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = module.kv_b_proj(latents)[0].view(-1, sizes.heads, sizes.nope + sizes.value)
        return both[..., : sizes.nope], both[..., sizes.nope :]

    return expand
