"""SGLang options that the pool chooses where the user left them open."""

from __future__ import annotations

from typing import Any

import torch

from sglang_cdsp.platforms.detect import torch_only_platform_wanted

CUDA_PAGE_SIZE = 64
"""Tokens of a KV page on GPUs.

SGLang's own choice is 1: a prompt of a million tokens would be as many descriptors of a transfer,
times its layers.
"""


def open_settings(namespace: Any) -> dict[str, object]:
    """``ServerArgs`` fields that the command line leaves open and the pool does not.

    Args:
        namespace: the parsed command line.
    """
    left_open = getattr(namespace, "page_size", None) is None
    return {"page_size": CUDA_PAGE_SIZE} if left_open and _on_cuda(namespace) else {}


def _on_cuda(namespace: Any) -> bool:
    """Whether the servers will run on CUDA; a platform that is named on purpose goes before it."""
    named = getattr(namespace, "device", None)
    return (
        named in (None, "cuda") and torch.cuda.is_available() and not torch_only_platform_wanted()
    )
