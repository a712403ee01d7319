"""Attention of consecutive queries that see a window of keys each, all of which are at hand."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator

import torch

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.partial import served_by_flashinfer

MASKED_ROWS = 256
"""Query rows of one masked call: it computes as many keys more than the window has for each row."""


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int,
    scale: float,
    pacing: Pacing,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend queries to their own position and the ``window`` positions before it.

    Args:
        q: ``[T, Hq, D]``, consecutive positions.
        k, v: ``[n, Hkv, D]`` and ``[n, Hkv, Dv]``, ``n >= T`` consecutive positions; the last one
            is the last query's. What is missing of the first queries' windows there is not.
        window: positions before a query that it sees.
        scale: factor on the logits.
        pacing: where others may run meanwhile.
        sinks: see ``RunningState.result``.

    Returns:
        ``[T, Hq, Dv]`` in the dtype of ``q``.
    """
    queries, before = q.shape[0], k.shape[0] - q.shape[0]
    out = q.new_empty((queries, q.shape[1], v.shape[2]))
    flops = 2.0 * q.shape[1] * (k.shape[2] + v.shape[2])
    seen = min(k.shape[0], window + MASKED_ROWS)
    for first, last in pacing.tiles(queries, seen, flops, causal=False) if queries else ():
        if first:
            pacing.boundary()
        keys = slice(max(0, before + first - window), before + last)
        part, lse = _attend(q[first:last], k[keys], v[keys], window, scale)
        if sinks is not None:
            part = part * torch.sigmoid(lse - sinks.float()).unsqueeze(-1)
        out[first:last] = part
    return out


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[T, Hq, Dv]`` and natural log-sum-exp ``[T, Hq]``, float32."""
    width = max(k.shape[2], v.shape[2])
    if k.shape[2] == v.shape[2] and served_by_flashinfer(q.device, q.dtype, width):
        return _by_flashinfer(q, k, v, window, scale)
    attend = _masked_on_cpu if q.device.type == "cpu" else masked_attention
    parts = []
    for rows, keys in _masked_calls(q.shape[0], k.shape[0], window):
        mask = _mask(rows, keys, k.shape[0] - q.shape[0], window, q)
        parts.append(attend(q[rows], k[keys], v[keys], mask, scale))
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _masked_calls(queries: int, keys: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Tiles of query rows, and the keys that any of their rows sees."""
    before = keys - queries
    for first in range(0, queries, MASKED_ROWS):
        last = min(first + MASKED_ROWS, queries)
        yield slice(first, last), slice(max(0, before + first - window), before + last)


def _mask(rows: slice, keys: slice, before: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """0 where a row sees a key and -inf elsewhere, ``[rows, keys]``, a tensor like ``like``."""
    query = torch.arange(rows.start, rows.stop, device=like.device)[:, None] + before
    key = torch.arange(keys.start, keys.stop, device=like.device)[None, :]
    hidden = (key > query) | (key < query - window)
    return like.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention under a mask ``[Tq, Tk]`` that is added to the logits, in float32.

    Returns:
        Output ``[Tq, Hq, Dv]`` in the dtype of ``q``, natural log-sum-exp ``[Tq, Hq]``.
    """
    shared = q.shape[1] // k.shape[1]
    keys = k.float().repeat_interleave(shared, dim=1)
    values = v.float().repeat_interleave(shared, dim=1)
    logits = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale + mask.float()
    lse = torch.logsumexp(logits, dim=-1)
    out = torch.einsum("hqk,khd->qhd", torch.exp(logits - lse[..., None]), values)
    return out.to(q.dtype), lse.T


def _masked_on_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``masked_attention``, by torch's kernel, which takes one head dimension for K and V."""
    if k.shape[2] != v.shape[2]:
        return masked_attention(q, k, v, mask, scale)
    first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *first, 0.0, False, attn_mask=mask, scale=scale
    )
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _by_flashinfer(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # Its mask is aligned to the last key, as here. Its log-sum-exp has base 2.
    flashinfer = importlib.import_module("flashinfer")
    out, lse = flashinfer.single_prefill_with_kv_cache(
        q, k, v, causal=True, window_left=window, sm_scale=scale, return_lse=True, kv_layout="NHD"
    )
    return out, lse * math.log(2.0)
