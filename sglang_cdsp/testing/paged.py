"""FlashInfer's paged prefill in plain torch, for tests and dry runs of the GPU check.

It has the same interface and the same ways to be misused.
A plan belongs to the wrapper that made it, keys are found by page numbers, masks are aligned to the
last key, and the log-sum-exp has base 2. ``tests/attention/test_flashinfer_names.py`` compares the
signatures with an installed FlashInfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sglang_cdsp.attention.paged_kernel import PagedKernel
from sglang_cdsp.attention.partial import reference_attention


@dataclass(frozen=True)
class Plan:
    """What ``plan`` was told, as far as it is used here."""

    query_ends: tuple[int, ...]
    key_ends: tuple[int, ...]
    pages: torch.Tensor
    last: tuple[int, ...]
    heads: tuple[int, int]
    head_dim: int
    page_size: int
    causal: bool
    scale: float
    dtype: torch.dtype


class BatchPrefillWithPagedKVCacheWrapper:
    """Stands in for ``flashinfer.BatchPrefillWithPagedKVCacheWrapper``."""

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
    ) -> None:
        assert float_workspace_buffer.numel() >= 16
        assert kv_layout == "NHD"
        assert backend == "auto"
        self._plan: Plan | None = None

    def reset_workspace_buffer(
        self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor
    ) -> None:
        assert float_workspace_buffer.dtype == int_workspace_buffer.dtype == torch.uint8
        assert self._plan is None, "a plan in the old buffer is gone"

    def workspace_size(self, *unnamed: Any, **planned: Any) -> tuple[int, int]:
        raise NotImplementedError("as FlashInfer's FA3")

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        for numbers in (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len):
            assert numbers.dtype == torch.int32
            assert numbers.dim() == 1
        assert qo_indptr.numel() == paged_kv_indptr.numel() == paged_kv_last_page_len.numel() + 1
        assert int(paged_kv_indptr[-1]) == paged_kv_indices.numel()
        assert sm_scale is not None
        assert q_data_type == kv_data_type
        self._plan = Plan(
            tuple(qo_indptr.tolist()),
            tuple(paged_kv_indptr.tolist()),
            paged_kv_indices,
            tuple(paged_kv_last_page_len.tolist()),
            (num_qo_heads, num_kv_heads),
            head_dim_qk,
            page_size,
            causal,
            sm_scale,
            q_data_type,
        )

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        *,
        out: torch.Tensor,
        lse: torch.Tensor,
        return_lse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan, (keys, values) = self._plan, paged_kv_cache
        assert plan is not None, "planned before it is run"
        assert return_lse
        assert q.shape == (plan.query_ends[-1], plan.heads[0], plan.head_dim)
        assert keys.shape[1:] == (plan.page_size, plan.heads[1], plan.head_dim)
        assert q.dtype == keys.dtype == out.dtype == plan.dtype
        assert lse.dtype == torch.float32
        assert out.shape == (*q.shape[:2], values.shape[3])
        assert lse.shape == q.shape[:2]
        assert out.data_ptr() % 16 == 0, "written in vectors"
        for index, last in enumerate(plan.last):
            rows = slice(*plan.query_ends[index : index + 2])
            pages = plan.pages[slice(*plan.key_ends[index : index + 2])]
            count = (pages.numel() - 1) * plan.page_size + last
            k, v = (x[pages].flatten(0, 1)[:count] for x in (keys, values))
            found, logs = reference_attention(
                q[rows], k, v, causal=plan.causal, scale=plan.scale,
                q_start=count - (rows.stop - rows.start),
            )  # fmt: skip
            out[rows] = found
            lse[rows] = logs / math.log(2.0)
        return out, lse


@dataclass
class Emulated:
    """A paged kernel for any layer on the CPU, that counts its wrappers.

    Attributes:
        wrappers: all that were made.
        around: what surrounds each launch, for tests that watch what reads the pool.
    """

    wrappers: list[BatchPrefillWithPagedKVCacheWrapper] = field(default_factory=list)
    around: Callable[[], Any] | None = None

    def kernel(self) -> PagedKernel:
        """As it is given to ``ShardAttention``."""
        return PagedKernel("emulated", math.log(2.0), lambda *_: True, self._make)

    def _make(self, workspace: torch.Tensor) -> BatchPrefillWithPagedKVCacheWrapper:
        emulated = self

        class Counted(BatchPrefillWithPagedKVCacheWrapper):
            def run(self, *args: Any, **kwargs: Any) -> Any:
                if emulated.around is None:
                    return super().run(*args, **kwargs)
                with emulated.around():
                    return super().run(*args, **kwargs)

        wrapper = Counted(workspace)
        self.wrappers.append(wrapper)
        return wrapper
