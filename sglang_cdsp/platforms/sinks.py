"""Attention sinks on SGLang's torch backend, which knows none: gpt-oss on a CPU.

A sink is a logit of each head that takes its part of the softmax and has no value.

SGLang takes hooks in before it is imported itself, so what needs it is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_Stock = Callable[..., torch.Tensor]


def extend(
    stock: _Stock,
    backend: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """AROUND hook on ``TorchNativeAttnBackend.forward_extend``.

    Args:
        stock: the stock method, bound to nothing.
        backend: its ``self``.
        q, k, v, layer, forward_batch, save_kv_cache: as in stock.
        sinks: ``[Hq]``; None for stock's own way.

    Returns:
        ``[tokens, Hq * Dv]``.
    """
    if sinks is None:
        return stock(backend, q, k, v, layer, forward_batch, save_kv_cache)
    _store(backend, k, v, layer, forward_batch, save_kv_cache)
    return _attend(backend, q, layer, forward_batch, forward_batch.extend_seq_lens.tolist(), sinks)


def decode(
    stock: _Stock,
    backend: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """AROUND hook on ``TorchNativeAttnBackend.forward_decode``: one query a request."""
    if sinks is None:
        return stock(backend, q, k, v, layer, forward_batch, save_kv_cache)
    _store(backend, k, v, layer, forward_batch, save_kv_cache)
    return _attend(backend, q, layer, forward_batch, [1] * len(forward_batch.seq_lens), sinks)


def _store(
    backend: Any, k: torch.Tensor, v: torch.Tensor, layer: Any, batch: Any, save: bool
) -> None:
    if save:
        from sglang.srt.mem_cache.memory_pool import KVWriteLoc

        where = KVWriteLoc(batch.out_cache_loc, None)
        backend.token_to_kv_pool.set_kv_buffer(layer, where, k, v)


def _attend(
    backend: Any,
    q: torch.Tensor,
    layer: Any,
    batch: Any,
    counts: Sequence[int],
    sinks: torch.Tensor,
) -> torch.Tensor:
    """Attention of each request's last ``counts`` tokens, one request after the other."""
    from sglang_cdsp.attention.pacing import UNPACED
    from sglang_cdsp.attention.windowed import window_attention

    by_head = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
    out = q.new_zeros((by_head.shape[0], layer.tp_q_head_num, layer.v_head_dim))
    keys = backend.token_to_kv_pool.get_key_buffer(layer.layer_id)
    values = backend.token_to_kv_pool.get_value_buffer(layer.layer_id)
    window = layer.sliding_window_size
    start = 0
    rows, lengths = batch.req_pool_indices.tolist(), batch.seq_lens.tolist()
    for row, length, count in zip(rows, lengths, counts, strict=True):
        before = length if window is None or window < 0 else window
        first = max(0, length - count - before)
        slots = backend.req_to_token_pool.req_to_token[row, first:length]
        out[start : start + count] = window_attention(
            by_head[start : start + count],
            keys[slots],
            values[slots],
            window=before,
            scale=layer.scaling,
            pacing=UNPACED,
            sinks=sinks,
        )
        start += count
    return out.flatten(1)
