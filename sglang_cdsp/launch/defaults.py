"""SGLang options that the pool chooses where the user left them open."""

from __future__ import annotations

import os
from typing import Any

import torch

CUDA_PAGE_SIZE = 64
"""Tokens of a KV page on GPUs.

SGLang's own choice is 1: a prompt of a million tokens would be as many descriptors of a transfer,
times its layers.
"""


UNLOGGED = "/cdsp/timeline"
"""What an open page at ``/cdsp`` asks every second: the access log leaves it out."""


def open_settings(namespace: Any) -> dict[str, object]:
    """``ServerArgs`` fields that the command line leaves open and the pool does not.

    Args:
        namespace: the parsed command line.
    """
    left_open = getattr(namespace, "page_size", None) is None
    return {"page_size": CUDA_PAGE_SIZE} if left_open and _on_cuda(namespace) else {}


def access_log_settings(namespace: Any) -> dict[str, object]:
    """The same of SGLang's access log, which stays readable while somebody watches the pool."""
    given = getattr(namespace, "uvicorn_access_log_exclude_prefixes", None) or []
    return {"uvicorn_access_log_exclude_prefixes": [*given, UNLOGGED]}


def _on_cuda(namespace: Any) -> bool:
    """Whether the servers will run on CUDA: nobody has named anything else, and it is there."""
    elsewhere = os.environ.get("SGLANG_PLATFORM") or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"
    on_cuda = getattr(namespace, "device", None) in (None, "cuda") and not elsewhere
    return on_cuda and torch.cuda.is_available()
