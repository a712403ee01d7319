"""SGLang's torch attention on the CPU, without the work that it does twice.

Stock's extend gives a chunk that follows a prefix as many query rows as the prompt has tokens so
far, and throws the rows of the prefix away: a prompt in k chunks costs about k times what it
should. Stock's decode copies the keys and values of every row, then once more for grouped heads.
Both are computed here from the new queries alone; the result is the same up to rounding.

What is not plain causal attention (windows, encoders, head dimensions that differ) stays stock's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_Stock = Callable[..., torch.Tensor]

_EXACT = (torch.float32, torch.float64)
_DTYPES = (*_EXACT, torch.bfloat16, torch.float16)


def extend(
    stock: _Stock,
    backend: Any,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_prefix_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> torch.Tensor:
    """AROUND hook on ``TorchNativeAttnBackend._run_sdpa_forward_extend``.

    Args:
        stock: the stock method, bound to nothing.
        backend: its ``self``.
        query: ``[tokens, Hq, D]``, the new tokens of all requests, one after the other.
        output: ``[tokens, Hq, D]``, written to.
        k_cache, v_cache: ``[slots, Hkv, D]``.
        req_to_token: int ``[rows, positions]``, a request's slots by position.
        req_pool_indices: int ``[requests]``, its row.
        seq_lens, extend_prefix_lens, extend_seq_lens: int ``[requests]``, tokens so far, of them
            before this batch, of them new.
        encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size: as in stock.

    Returns:
        ``output``.
    """
    window = sliding_window_size is not None and sliding_window_size > -1
    if not causal or encoder_lens is not None or window or not _plain(query, k_cache, v_cache):
        return stock(
            backend,
            *(query, output, k_cache, v_cache, req_to_token, req_pool_indices),
            *(seq_lens, extend_prefix_lens, extend_seq_lens, encoder_lens),
            scaling=scaling,
            enable_gqa=enable_gqa,
            causal=causal,
            is_cross_attn=is_cross_attn,
            sliding_window_size=sliding_window_size,
        )
    rows, lengths = req_pool_indices.tolist(), seq_lens.tolist()
    prefixes, counts = extend_prefix_lens.tolist(), extend_seq_lens.tolist()
    start = 0
    for row, length, prefix, count in zip(rows, lengths, prefixes, counts, strict=True):
        if count == 0:  # the kernel divides by the number of queries
            continue
        queries = query[start : start + count]
        slots = req_to_token[row, :length]
        parts = [
            _attend(queries, _at(k_cache, part), _at(v_cache, part), sees_all, scaling)
            for part, sees_all in ((slots[:prefix], True), (slots[prefix:], False))
            if len(part)
        ]
        output[start : start + count] = _merge(parts)
        start += count
    return output


def decode(
    stock: _Stock,
    backend: Any,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> torch.Tensor:
    """AROUND hook on ``TorchNativeAttnBackend._run_sdpa_forward_decode``.

    One query a request; the rest as in ``extend``. Half precision stays stock's: its logits would
    have to be summed up in float32, which torch's matrix product does not offer.
    """
    window = sliding_window_size is not None and sliding_window_size > -1
    exact = query.dtype == k_cache.dtype == v_cache.dtype and query.dtype in _EXACT
    if encoder_lens is not None or window or not exact or not _plain(query, k_cache, v_cache):
        return stock(
            backend,
            *(query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens),
            encoder_lens,
            scaling=scaling,
            enable_gqa=enable_gqa,
            causal=causal,
            is_cross_attn=is_cross_attn,
            sliding_window_size=sliding_window_size,
        )
    _, heads, width = query.shape
    kv_heads = k_cache.shape[1]
    # The heads that share a KV head become queries of that head: nothing is repeated.
    grouped = query.reshape(-1, kv_heads, heads // kv_heads, width)
    scale = width**-0.5 if scaling is None else scaling
    for index, (row, length) in enumerate(
        zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)
    ):
        # At one query a row plain products are up to twice as fast as torch's attention kernel.
        parts = _runs(req_to_token[row, :length])
        keys = [_at(k_cache, part).permute(1, 2, 0) for part in parts]
        values = [_at(v_cache, part).transpose(0, 1) for part in parts]
        logits = torch.cat([torch.bmm(grouped[index], k) for k in keys], dim=-1) * scale
        weights = logits.softmax(dim=-1).split([len(part) for part in parts], dim=-1)
        out = torch.stack([torch.bmm(w, v) for w, v in zip(weights, values, strict=True)]).sum(0)
        output[index] = out.reshape(heads, width)
    return output


def _plain(query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> bool:
    """Whether torch's CPU kernel takes such tensors."""
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and query.shape[-1] == k_cache.shape[-1] == v_cache.shape[-1]
    )


def _leading_run(slots: torch.Tensor) -> int:
    """How many slots from the first on lie one after the other; there is at least one."""
    breaks = (slots[1:] - slots[:-1] != 1).nonzero()
    return int(breaks[0]) + 1 if len(breaks) else len(slots)


def _runs(slots: torch.Tensor) -> list[torch.Tensor]:
    """A row's slots in parts, so that most of it need not be copied.

    A prompt is mostly written in one go, and the tokens made since lie between those of others.
    """
    run = _leading_run(slots)
    return [slots[:run], slots[run:]] if len(slots) > run >= len(slots) // 2 else [slots]


def _at(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """What the cache holds at ``slots``, a view of it where they lie one after the other."""
    first, count = int(slots[0]), len(slots)
    if int(slots[-1]) - first == count - 1 and _leading_run(slots) == count:
        return cache[first : first + count]
    return torch.index_select(cache, 0, slots)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees_all: bool, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of ``q`` to one part of its keys.

    Args:
        q: ``[Tq, Hq, D]``.
        k, v: ``[Tk, Hkv, D]``; query head h reads KV head ``h // (Hq / Hkv)``.
        sees_all: every row sees every key; else row i sees keys 0 to i.
        scale: factor on the logits, ``D ** -0.5`` if None.

    Returns:
        Out ``[Tq, Hq, D]`` and the log-sum-exp of the logits ``[Tq, Hq]``.
    """
    q, k, v = (x.to(q.dtype).transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, not sees_all, scale=scale
    )
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _merge(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention to all keys from the attention to one or two parts of them."""
    if len(parts) == 1:
        return parts[0][0]
    (first, first_lse), (second, second_lse) = parts
    lse = torch.logaddexp(first_lse, second_lse)
    first_weight = (first_lse - lse).exp().unsqueeze(-1)
    second_weight = (second_lse - lse).exp().unsqueeze(-1)
    return first * first_weight + second * second_weight
