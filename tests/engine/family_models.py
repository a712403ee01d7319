"""Models of attention alone, one for each family, as an instance of ``one_thread`` runs them.

Each has an embedding and a place for every position, layers of attention between, and says what it
gives for a whole prompt at once, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_context import get_attn_backend

from sglang_cdsp.attention.families.latent import EXPANDED

LAYERS = 2
LONGEST = 600


def fixed(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pool:
    """Rows of one instance by layer and slot; what was never written is not a number."""

    dtype = torch.float32

    def __init__(self, slots: int, widths: tuple[tuple[int, int], ...], value_of: int = 0) -> None:
        """``widths``: heads and dimension of each buffer; ``value_of``: V's part of one buffer."""
        self.buffers = [
            [torch.full((slots, *width), math.nan) for width in widths] for _ in range(LAYERS)
        ]
        self.value_of = value_of

    def get_key_buffer(self, layer_id: int, /) -> torch.Tensor:
        return self.buffers[layer_id][0]

    def get_value_buffer(self, layer_id: int, /) -> torch.Tensor:
        rows = self.buffers[layer_id]
        return rows[1] if len(rows) > 1 else rows[0][..., : self.value_of]

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: Any) -> None:
        slots = getattr(where, "loc", where)
        for buffer, rows in zip(self.buffers[layer.layer_id], (k, v), strict=False):
            buffer[slots] = rows.reshape(-1, *buffer.shape[1:])


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        model: makes one.
        pool: makes a pool of so many slots.
        alone: the model over a whole prompt at once, ``[L, width]``, float64.
    """

    model: Callable[[], torch.nn.Module]
    pool: Callable[[int], Pool]
    alone: Callable[[torch.Tensor], torch.Tensor]


def masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention, plainly: with a window, and with sinks as a column without a value."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * scale
    at = torch.arange(q.shape[0])
    hidden = at[None, :] > at[:, None]
    if window is not None:
        hidden |= at[None, :] < at[:, None] - window
    logits = logits.masked_fill(hidden, -math.inf)
    if sinks is not None:
        column = sinks.to(q.dtype)[:, None, None].expand(-1, q.shape[0], 1)
        logits = torch.cat((logits, column), dim=-1)
    weights = logits.softmax(dim=-1)[..., : k.shape[0]]
    return torch.einsum("hqk,khd->qhd", weights, v)


# -- windows and sinks ------------------------------------------------------------------------

Q_HEADS, KV_HEADS, DIM, WINDOW = 4, 2, 8, 13
WIDTH = Q_HEADS * DIM
EMBEDDING = fixed(LONGEST, WIDTH, seed=11)
PLACES = fixed(LONGEST, WIDTH, seed=12)
QKV = fixed(LAYERS, WIDTH, (Q_HEADS + 2 * KV_HEADS) * DIM, seed=13) / 5
SINKS = fixed(LAYERS, Q_HEADS, seed=14)


def heads(hidden: torch.Tensor, layer: int) -> list[torch.Tensor]:
    """Q, K and V of a layer, by head."""
    widths = [Q_HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM]
    parts = torch.split(hidden @ QKV[layer].to(hidden.dtype), widths, dim=1)
    return [part.view(-1, part.shape[1] // DIM, DIM) for part in parts]


class Windows(torch.nn.Module):
    """A layer with a window, then a full one; both have sinks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            RadixAttention(Q_HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=layer,
                           sliding_window_size=-1 if layer else WINDOW)
            for layer in range(LAYERS)
        )  # fmt: skip

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, batch: Any) -> Any:
        hidden, places = EMBEDDING[input_ids], PLACES[positions]
        for number, layer in enumerate(self.layers):
            q, k, v = heads(hidden + places, number)
            out = get_attn_backend().forward(q, k, v, layer, batch, sinks=SINKS[number])
            hidden = torch.tanh(hidden + places + out) - places
        return SimpleNamespace(hidden=hidden + places)


def windows_alone(tokens: torch.Tensor) -> torch.Tensor:
    hidden, places = EMBEDDING[tokens].double(), PLACES[: tokens.numel()].double()
    for layer in range(LAYERS):
        window = None if layer else WINDOW
        q, k, v = heads(hidden + places, layer)
        out = masked(q, k, v, DIM**-0.5, window, SINKS[layer])
        hidden = torch.tanh(hidden + places + out.flatten(1)) - places
    return hidden + places


WINDOWS = Kind(
    Windows, lambda slots: Pool(slots, ((KV_HEADS, DIM), (KV_HEADS, DIM))), windows_alone
)


# -- latent attention -------------------------------------------------------------------------

HEADS, RANK, ROPE, NOPE, VALUE = 3, 10, 4, 6, 5
QUERY = NOPE + ROPE
LATENT_WIDTH = HEADS * VALUE
LATENT_EMBEDDING = fixed(LONGEST, LATENT_WIDTH, seed=21)
LATENT_PLACES = fixed(LONGEST, LATENT_WIDTH, seed=22)
W_Q = fixed(LAYERS, LATENT_WIDTH, HEADS * QUERY, seed=23) / 3
W_LATENT = fixed(LAYERS, LATENT_WIDTH, RANK + ROPE, seed=24) / 3
W_KV = fixed(LAYERS, RANK, HEADS * (NOPE + VALUE), seed=25) / 2
LATENT_SCALE = QUERY**-0.5


class LatentLayer(torch.nn.Module):
    """One layer as SGLang's ``DeepseekV2AttentionMLA`` computes it, without RoPE and norms."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.num_local_heads, self.kv_lora_rank, self.qk_rope_head_dim = HEADS, RANK, ROPE
        self.qk_nope_head_dim, self.v_head_dim = NOPE, VALUE
        self.attn_mqa = RadixAttention(
            HEADS, RANK + ROPE, LATENT_SCALE, 1, layer_id=number, v_head_dim=RANK
        )
        self.attn_mha = RadixAttention(
            HEADS, QUERY, LATENT_SCALE, HEADS, layer_id=number, v_head_dim=VALUE
        )

    def kv_b_proj(self, latents: torch.Tensor) -> tuple[torch.Tensor, None]:
        return latents @ W_KV[self.number], None

    def forward(self, hidden: torch.Tensor, batch: Any) -> torch.Tensor:
        """``[T, HEADS * VALUE]``, in the form that the backend in force asks for."""
        backend = get_attn_backend()
        q = (hidden @ W_Q[self.number]).view(-1, HEADS, QUERY)
        rows = (hidden @ W_LATENT[self.number])[:, None]
        both = W_KV[self.number].view(RANK, HEADS, NOPE + VALUE)
        if backend.form == EXPANDED:
            backend.token_to_kv_pool.set_kv_buffer(self.attn_mha, batch.out_cache_loc, rows, None)
            kv = torch.einsum("tr,rhd->thd", rows[:, 0, :RANK], both)
            shared = rows[..., RANK:].expand(-1, HEADS, -1)
            k, v = torch.cat((kv[..., :NOPE], shared), dim=-1), kv[..., NOPE:]
            return backend.forward(q, k, v, self.attn_mha, batch, save_kv_cache=False)
        absorbed = torch.einsum("thd,rhd->thr", q[..., :NOPE], both[..., :NOPE])
        out = backend.forward(
            torch.cat((absorbed, q[..., NOPE:]), dim=-1), rows, rows[..., :RANK],
            self.attn_mqa, batch,
        ).view(-1, HEADS, RANK)  # fmt: skip
        return torch.einsum("thr,rhd->thd", out, both[..., NOPE:]).flatten(1)


class LatentModel(torch.nn.Module):
    """Latent attention alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(LatentLayer(number) for number in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, batch: Any) -> Any:
        hidden, places = LATENT_EMBEDDING[input_ids], LATENT_PLACES[positions]
        for layer in self.layers:
            out = layer(hidden + places, batch)
            hidden = torch.tanh(hidden + places + out) - places
        return SimpleNamespace(hidden=hidden + places)


def latent_alone(tokens: torch.Tensor) -> torch.Tensor:
    hidden = LATENT_EMBEDDING[tokens].double()
    places = LATENT_PLACES[: tokens.numel()].double()
    for layer in range(LAYERS):
        given = hidden + places
        q = (given @ W_Q[layer].double()).view(-1, HEADS, QUERY)
        rows = given @ W_LATENT[layer].double()
        kv = (rows[:, :RANK] @ W_KV[layer].double()).view(-1, HEADS, NOPE + VALUE)
        shared = rows[:, None, RANK:].expand(-1, HEADS, -1)
        k = torch.cat((kv[..., :NOPE], shared), dim=-1)
        out = masked(q, k, kv[..., NOPE:], LATENT_SCALE)
        hidden = torch.tanh(given + out.flatten(1)) - places
    return hidden + places


LATENT = Kind(LatentModel, lambda slots: Pool(slots, ((1, RANK + ROPE),), RANK), latent_alone)
