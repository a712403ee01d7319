"""Attention over one block of keys, with the log-sum-exp that makes it mergeable.

Implementations differ in the base of their log-sum-exp: torch returns natural logarithms,
FlashInfer base 2. ``Implementation.lse_unit`` is the one place where that is written down.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sglang_cdsp.attention.errors import AttentionError, AttentionUnsupported

_HALF = (torch.float16, torch.bfloat16)
_Run = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, bool, float], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class Implementation:
    """One way to compute partial attention.

    Attributes:
        name: shown in errors and tests.
        lse_unit: what one unit of its log-sum-exp is worth in natural units: 1 for base e,
            ln 2 for base 2.
        head_multiple: head dimensions are padded with zeros to a multiple of this.
        usable: whether it can serve tensors of this device, dtype and head dimension here.
        run: ``(q, k, v, causal, scale) -> (out, lse)``; q, k and v have one head dimension.
    """

    name: str
    lse_unit: float
    head_multiple: int
    usable: Callable[[torch.device, torch.dtype, int], bool]
    run: _Run


def partial_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend ``q`` to the keys of one block.

    Args:
        q: ``[Tq, Hq, D]``, float32, bfloat16 or float16 (on CUDA: the latter two).
        k: ``[Tk, Hkv, D]``; query head h reads KV head ``h // (Hq / Hkv)``.
        v: ``[Tk, Hkv, Dv]``.
        causal: query row i sees key rows 0 to i; needs ``Tq == Tk``. Otherwise it sees all.
        scale: factor on the logits, usually ``D ** -0.5``.

    Returns:
        The softmax-weighted values ``[Tq, Hq, Dv]`` in the dtype of ``q``, and the natural
        log-sum-exp of the scaled logits ``[Tq, Hq]``, float32. Without keys: zeros and ``-inf``.

    Raises:
        AttentionError: shapes or dtypes that do not fit together.
        AttentionUnsupported: a device, dtype or head dimension that nothing here serves.
    """
    _check(q, k, v, causal)
    queries, heads, _ = q.shape
    value_dim = v.shape[2]
    if queries == 0 or k.shape[0] == 0:
        # The CPU kernel divides by these lengths, so it must not be called.
        return (
            q.new_zeros((queries, heads, value_dim)),
            torch.full((queries, heads), -math.inf, dtype=torch.float32, device=q.device),
        )
    implementation = select(q.device, q.dtype, max(q.shape[2], value_dim))
    return attend_with(implementation, q, k, v, causal=causal, scale=scale)


def attend_with(
    implementation: Implementation,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what ``partial_attention`` does with one implementation; there are queries and keys."""
    value_dim = v.shape[2]
    # Zeros beyond D leave every logit as it is; zeros beyond Dv are cut off again below.
    width = max(q.shape[2], value_dim)
    width += -width % implementation.head_multiple
    q, k, v = (F.pad(x, (0, width - x.shape[2])) if x.shape[2] < width else x for x in (q, k, v))
    out, lse = implementation.run(q, k, v, causal, scale)
    if implementation.lse_unit != 1.0:
        lse = lse * implementation.lse_unit
    return out[..., :value_dim], lse


def select(device: torch.device, dtype: torch.dtype, head_dim: int) -> Implementation:
    """Return the first implementation that serves this kind of tensor.

    Raises:
        AttentionUnsupported: none does.
    """
    for implementation in IMPLEMENTATIONS:
        if implementation.usable(device, dtype, head_dim):
            return implementation
    raise AttentionUnsupported(
        f"no partial attention for {dtype} with head dimension {head_dim} on {device}: use "
        "--dtype bfloat16 or float16 and a head dimension of at most 256 on CUDA; on the CPU "
        "float32, bfloat16 and float16 are served"
    )


def served(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether ``partial_attention`` takes tensors of this kind."""
    return any(i.usable(device, dtype, head_dim) for i in IMPLEMENTATIONS)


def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    scale: float,
    q_start: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what ``partial_attention`` does, plainly and in float64, for tests.

    Args:
        q, k, v, scale: as there, of any float dtype.
        causal: query row i sees the key rows 0 to ``q_start + i``.
        q_start: key row that the first query row sits at.

    Returns:
        ``(out [Tq, Hq, Dv], lse [Tq, Hq])``, both float64.
    """
    shared = q.shape[1] // k.shape[1]
    keys = k.double().repeat_interleave(shared, dim=1)
    values = v.double().repeat_interleave(shared, dim=1)
    logits = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    if causal:
        rows = torch.arange(q.shape[0], device=q.device)[:, None] + q_start
        hidden = torch.arange(k.shape[0], device=q.device)[None, :] > rows
        logits = logits.masked_fill(hidden, -math.inf)
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.where(lse[..., None].isinf(), 0.0, torch.exp(logits - lse[..., None]))
    return torch.einsum("hqk,khd->qhd", weights, values), lse.T


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 3 or k.dim() != 3 or v.dim() != 3:
        raise AttentionError(f"q, k and v are [tokens, heads, head_dim], not {shapes}")
    if q.shape[2] != k.shape[2] or k.shape[:2] != v.shape[:2]:
        raise AttentionError(
            f"q and k need one head dimension, k and v the same tokens and heads: {shapes}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise AttentionError(f"query heads must be a multiple of KV heads: {shapes}")
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise AttentionError(f"one dtype is needed, not {q.dtype}, {k.dtype}, {v.dtype}")
    if causal and q.shape[0] != k.shape[0]:
        raise AttentionError(f"a causal block needs as many queries as keys: {shapes}")


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).unsqueeze(0)


def _run_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads_first(q), _heads_first(k), _heads_first(v), 0.0, causal, scale=scale
    )
    # Both come back with tokens outermost in memory, so these are views without a copy.
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _run_torch_cuda(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    result = torch.ops.aten._scaled_dot_product_flash_attention(
        _heads_first(q), _heads_first(k), _heads_first(v), 0.0, causal, False, scale=scale
    )
    return result[0][0].transpose(0, 1), result[1][0].transpose(0, 1)


def _run_flashinfer(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # Imported by name: it is installed with SGLang on CUDA machines only.
    flashinfer = importlib.import_module("flashinfer")
    out, lse = flashinfer.single_prefill_with_kv_cache(
        q, k, v, causal=causal, sm_scale=scale, return_lse=True, kv_layout="NHD"
    )
    return out, lse


def _on_cpu(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    return device.type == "cpu" and dtype in (torch.float32, *_HALF)


def _on_cuda(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    return device.type == "cuda" and dtype in _HALF and head_dim <= 256


def served_by_flashinfer(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashInfer is installed and has prefill kernels for tensors of this kind."""
    return (
        _on_cuda(device, dtype, head_dim)
        and head_dim in (64, 128, 256)
        and importlib.util.find_spec("flashinfer") is not None
    )


IMPLEMENTATIONS = (
    Implementation("flashinfer", math.log(2.0), 1, served_by_flashinfer, _run_flashinfer),
    Implementation("torch-cuda-flash", 1.0, 8, _on_cuda, _run_torch_cuda),
    Implementation("torch-cpu-flash", 1.0, 1, _on_cpu, _run_cpu),
)
