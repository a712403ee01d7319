"""Copies between a device and host memory, for links that carry host memory only.

Host buffers of CUDA tensors are pinned. PyTorch's allocator gives a freed one away only after the
copies from and to it have ended on their stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return copies in host memory, complete: whoever does not know streams may read them.

    The copies are ordered after everything that the current stream has to do so far. The host
    waits for them, not for the whole device.
    """
    copies = [landing(tensor).copy_(tensor, non_blocking=True) for tensor in tensors]
    if tensors and tensors[0].is_cuda:
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(tensors[0].device))
        copied.synchronize()
    return copies


def landing(tensor: torch.Tensor) -> torch.Tensor:
    """Return an unfilled buffer in host memory, shape and dtype as ``tensor``."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)


def arrive(tensor: torch.Tensor, host: torch.Tensor) -> None:
    """Copy ``host`` into ``tensor``, before whatever the current stream is given from now on."""
    tensor.copy_(host, non_blocking=True)
