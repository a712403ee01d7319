"""How many tokens one forward may have, by the memory that its activations take.

A rank's KV pool leaves some memory free. A forward fills it with activations, in proportion to
its rows, and with what travels: blocks of KV, or other members' queries and the answers to them.
History itself is read in the pool, or, where no kernel can, in the one block that is gathered.
Reckoned from the widths of the built model; what kernels need beside these, plans of calls among
it, is in the share that is kept back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sglang_cdsp.attention.families.claims import claim
from sglang_cdsp.attention.q_ring import GUESTS
from sglang_cdsp.engine.model_check import UnsupportedModel

if TYPE_CHECKING:
    from sglang_cdsp.engine.stock import StockScheduler

SHARE = 0.7
"""Of the free memory, for the longest shard: short prompts pass it, and stock batches run beside.
"""

BLOCKS = 2
"""Blocks of KV at once where KV circulates: the one at hand, and the one that comes."""

GATHERED = 1
"""Blocks of KV at once where Q circulates: its own, gathered, where no kernel reads the pool."""

LEAST_TOKENS = 256
"""With fewer tokens a shard, a GPU does little but start kernels."""

FLOAT32 = 4


@dataclass(frozen=True)
class Widths:
    """Widths of a model on one rank, in elements a token.

    Attributes:
        hidden: of the residual stream.
        query, key, value: heads times head dimension of one layer, as far as this rank has them.
        row: numbers that a token has in the pool, of one layer.
        value_out: query heads times the values' dimension: what attention gives.
        mlp: what the widest MLP makes of a token on this rank, all experts that it goes to.
        routed: copies of a token on its way through experts, 1 without them.
        vocabulary: columns of the logits.
        element: bytes of an element.
        reading: numbers that reading a block makes, however long the shard is.
    """

    hidden: int
    query: int
    key: int
    value: int
    row: int
    value_out: int
    mlp: int
    routed: int
    vocabulary: int
    element: int
    reading: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of activations a token where a layer needs most, KV circulating."""
        return self._kept + max(self._attention, self._mlp)

    @property
    def q_ring_bytes(self) -> int:
        """The same with Q circulating.

        ``GUESTS`` members' queries, as many answers to them and as many to the own queries, each
        as long as the shard; one of the answers is in float32 while it is computed.
        """
        guests = GUESTS * (self.query + 2 * self.value_out) * self.element
        return self._kept + max(self._attention + guests + self.value_out * FLOAT32, self._mlp)

    @property
    def _kept(self) -> int:
        """The residual, what a layer was given and what a norm makes of it."""
        return 3 * self.hidden * self.element

    @property
    def _attention(self) -> int:
        """The fused product and its parts, then the output; the state is float32 to the end."""
        qkv = self.query + self.key + self.value
        return (2 * qkv + 2 * self.value_out) * self.element + self.value_out * FLOAT32

    @property
    def _mlp(self) -> int:
        """Gate and up in one product, what the activation makes of them, and the output."""
        return (3 * self.mlp + self.routed * self.hidden) * self.element

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token in one layer, as they lie in the pool and travel."""
        return self.row * self.element

    @property
    def fixed_bytes(self) -> int:
        """Whatever the shard: home's last row of logits, as the model gives it and in float32."""
        return self.vocabulary * (self.element + FLOAT32) + self.reading * self.element


def largest_shard(free_bytes: int, capacity: int, widths: Widths) -> int:
    """Tokens that one forward may have at most; 0 or less where there is room for none.

    Args:
        free_bytes: what the device has free beside weights and KV.
        capacity: KV slots of the rank: no more rows are in a block.
        widths: of the model.
    """
    shared = SHARE * free_bytes - widths.fixed_bytes
    block = capacity * widths.kv_bytes
    return int(
        min(
            (shared - BLOCKS * block) // widths.token_bytes,
            (shared - GATHERED * block) // widths.q_ring_bytes,
        )
    )


def widths_of(scheduler: StockScheduler, tp_size: int) -> Widths:
    """The widths of a built model on this rank."""
    runner, config = scheduler.tp_worker.model_runner, scheduler.model_config
    claims = claim(runner.model)
    layers = claims.modules
    text = config.hf_text_config
    hidden = int(config.hidden_size)
    experts = int(getattr(text, "num_experts_per_tok", None) or 0)
    # Models without the name make four times their hidden width.
    dense = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    each = int(getattr(text, "moe_intermediate_size", None) or dense)
    return Widths(
        hidden=hidden,
        query=max(layer.tp_q_head_num * layer.qk_head_dim for layer in layers),
        key=max(layer.tp_k_head_num * layer.qk_head_dim for layer in layers),
        value=max(layer.tp_v_head_num * layer.v_head_dim for layer in layers),
        row=max(spec.row for spec in claims.specs.values()),
        value_out=max(layer.tp_q_head_num * layer.v_head_dim for layer in layers),
        mlp=-(-max(dense, experts * each) // tp_size),
        routed=max(1, experts),
        vocabulary=int(config.vocab_size),
        element=runner.dtype.itemsize,
        reading=max(spec.reading for spec in claims.specs.values()),
    )


def measured_shard(scheduler: StockScheduler, tp_size: int, capacity: int) -> int | None:
    """Tokens that a forward of this rank may have, once all is loaded; None on a host.

    A host's memory is not this rank's alone, and it has swap.

    Raises:
        UnsupportedModel: too few to be of use.
    """
    if torch.device(scheduler.tp_worker.model_runner.device).type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info()
    # Torch's cache is free to us as well.
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    tokens = largest_shard(free, capacity, widths_of(scheduler, tp_size))
    if tokens < LEAST_TOKENS:
        raise UnsupportedModel(
            f"sglang-cdsp: {free / 2**30:.1f} GiB of device memory are left beside weights and KV, "
            f"which holds the activations of {max(tokens, 0)} tokens at once; lower "
            "--mem-fraction-static or --max-total-tokens"
        )
    return tokens
