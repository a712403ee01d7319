"""Attention kernels that read keys and values in a KV pool, with the log-sum-exp to merge by.

FlashInfer has one (``BatchPrefillWithPagedKVCacheWrapper``, read in 0.6.18 and 0.7.2, which the
served SGLang releases pin). A call is *planned* on the host: which blocks of the device do what is
written to a buffer that the kernel reads. Plan and buffer are then good for every layer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.paged_calls import PAGE, Call
from sglang_cdsp.attention.partial import served_by_flashinfer
from sglang_cdsp.attention.steps import LayerShape

_SLACK = 4096
"""Bytes beyond what a kernel says that it needs, for alignment."""

_STRETCH = 32
"""Plans made before others may run: some ten milliseconds of the host."""


class Wrapper(Protocol):
    """One planned call. The names of arguments are FlashInfer's."""

    def reset_workspace_buffer(
        self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor
    ) -> None:
        """Take other memory for partial results (``float``) and for the plan (``int``)."""

    def workspace_size(self, *unnamed: Any, **planned: Any) -> tuple[int, int]:
        """Bytes of either that ``plan`` needs.

        Raises:
            NotImplementedError: this kernel cannot tell.
        """

    def plan(self, *unnamed: Any, **planned: Any) -> None:
        """Plan the call, and start copying the plan to the device."""

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        *,
        out: torch.Tensor,
        lse: torch.Tensor,
        return_lse: bool,
    ) -> Any:
        """Launch it; ``out`` and ``lse`` are filled."""


@dataclass(frozen=True)
class PagedKernel:
    """One way to attend to keys where they lie.

    Attributes:
        name: shown in benchmarks and tests.
        lse_unit: what one unit of its log-sum-exp is worth in natural units, as of
            ``Implementation``.
        usable: whether it can serve layers of this shape in this dtype on this device.
        make: a wrapper from memory for partial results.
    """

    name: str
    lse_unit: float
    usable: Callable[[torch.device, torch.dtype, LayerShape], bool]
    make: Callable[[torch.Tensor], Wrapper]


@dataclass(frozen=True)
class PlannedCall:
    """A call that can be launched for any layer of the shape that it was planned for."""

    call: Call
    wrapper: Wrapper
    lse_unit: float

    def run(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        """Attend the call's rows of ``q``.

        Args:
            q: ``[Tq, Hq, D]``, all rows.
            keys, values: a layer's pool, ``[slots, Hkv, D]`` and ``[slots, Hkv, Dv]``.
            out: filled, ``[rows of the call, Hq, Dv]``, the dtype of ``q``.
            lse: filled, ``[rows of the call, Hq]``, float32, natural.
        """
        pages = keys.unsqueeze(1), values.unsqueeze(1)
        self.wrapper.run(q[self.call.rows], pages, out=out, lse=lse, return_lse=True)
        if self.lse_unit != 1.0:
            lse.mul_(self.lse_unit)


def plan_calls(
    kernel: PagedKernel,
    calls: list[Call],
    held: torch.Tensor,
    shape: LayerShape,
    dtype: torch.dtype,
    scale: float,
    pacing: Pacing,
) -> list[PlannedCall]:
    """Plan calls, each with memory of its own for its plan, all with one for partial results.

    That one is used from a launch to its end alone, and all are launched on one stream. Nothing
    may be launched before the device has the plans: they come from buffers of the host that are
    free for other plans as soon as a wrapper is gone.

    Args:
        kernel: which kernel.
        calls: what to plan.
        held: slots of the rows held, int32 ``[rows]``, on the device.
        shape, dtype, scale: of the layers; q, k and v have one dtype.
        pacing: where others may run meanwhile.
    """
    device = held.device
    empty = torch.empty(_SLACK, dtype=torch.uint8, device=device)
    arguments = [_arguments(call, held, shape, dtype, scale) for call in calls]
    ruler = kernel.make(empty)
    sizes = [
        _sizes(ruler, call, shape, planned) for call, planned in zip(calls, arguments, strict=True)
    ]
    partial_bytes = max((size for size, _ in sizes), default=0)
    results = torch.empty(partial_bytes + _SLACK, dtype=torch.uint8, device=device)
    planned_calls: list[PlannedCall] = []
    for call, planned, (_, plan_bytes) in zip(calls, arguments, sizes, strict=True):
        if planned_calls and len(planned_calls) % _STRETCH == 0:
            pacing.boundary()
        wrapper = kernel.make(results)
        # A wrapper begins with 8 MiB on either side, whatever the call.
        wrapper.reset_workspace_buffer(
            results, torch.empty(plan_bytes + _SLACK, dtype=torch.uint8, device=device)
        )
        wrapper.plan(**planned)
        planned_calls.append(PlannedCall(call, wrapper, kernel.lse_unit))
    return planned_calls


def _arguments(
    call: Call, held: torch.Tensor, shape: LayerShape, dtype: torch.dtype, scale: float
) -> dict[str, Any]:
    """What ``plan`` is told. What it reads on the host is there already, so that nothing waits."""

    def on_host(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    return {
        "qo_indptr": on_host(call.query_ends),
        "paged_kv_indptr": on_host(call.key_ends),
        "paged_kv_indices": call.slots(held),
        "paged_kv_last_page_len": on_host([PAGE] * len(call.sequences)),
        "num_qo_heads": shape.q_heads,
        "num_kv_heads": shape.kv_heads,
        "head_dim_qk": shape.head_dim,
        "page_size": PAGE,
        "causal": call.causal,
        "sm_scale": scale,
        "q_data_type": dtype,
        "kv_data_type": dtype,
    }


def _sizes(
    wrapper: Wrapper, call: Call, shape: LayerShape, planned: dict[str, Any]
) -> tuple[int, int]:
    try:
        return wrapper.workspace_size(**planned)
    except NotImplementedError:
        # FA3's: no partial results, and seven int32 for each head and 128 rows of a sequence.
        # (``PrefillSM90Plan`` in FlashInfer's scheduler.cuh; this is four times as much.)
        pieces = sum((part.last - part.first) // 64 + 2 for part in call.sequences)
        return 0, (64 << 10) + 64 * pieces * shape.q_heads


def _flashinfer_serves(device: torch.device, dtype: torch.dtype, shape: LayerShape) -> bool:
    # FA3's paged kernel wants K and V with the same strides.
    return shape.value_dim == shape.head_dim and served_by_flashinfer(device, dtype, shape.head_dim)


def _flashinfer_wrapper(workspace: torch.Tensor) -> Wrapper:
    # Imported by name: it is installed with SGLang on CUDA machines only.
    flashinfer = importlib.import_module("flashinfer")
    return flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="auto")


PAGED_KERNELS = (
    PagedKernel("flashinfer-paged", math.log(2.0), _flashinfer_serves, _flashinfer_wrapper),
)
