"""Which links a pool uses."""

from __future__ import annotations

import importlib.util
import os

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.shared_memory import SharedMemoryLinks
from sglang_cdsp.parallel.links.types import Links, LinkShape

LINKS_VAR = "SGLANG_CDSP_LINKS"
"""Environment variable that names the pool's links where the device's own will not do."""
KINDS = ("shared-memory", "nixl")


def pool_links(device: str) -> str:
    """Return the kind of links of a pool whose tensors live on ``device`` ("cuda", "cpu").

    Host memory on one machine is shared; CUDA tensors go over NIXL. ``SGLANG_CDSP_LINKS`` takes
    precedence: ``nixl`` also carries host memory, ``shared-memory`` also copies CUDA tensors by way
    of the host, slowly.

    Raises:
        LinkError: the variable names no kind, or NIXL is not installed.
    """
    chosen = os.environ.get(LINKS_VAR, "")
    if chosen and chosen not in KINDS:
        raise LinkError(f"{LINKS_VAR}={chosen!r} is no kind of links: use one of {KINDS}")
    kind = chosen or ("nixl" if device == "cuda" else "shared-memory")
    if kind == "nixl" and importlib.util.find_spec("nixl") is None:
        raise LinkError(
            "links over NIXL need the package nixl: run `pip install nixl`, or set "
            f"{LINKS_VAR}=shared-memory, which is slow for CUDA tensors"
        )
    return kind


def make_links(
    kind: str, seat: int, incarnation: int, shape: LinkShape, device: torch.device
) -> Links:
    """Make the links of this process.

    Args:
        kind: from ``pool_links``.
        seat, incarnation: this process.
        shape: alike at all instances.
        device: where the tensors live; NIXL's areas are made there.

    Raises:
        LinkError: they cannot work here; the message says why.
    """
    if kind == "shared-memory":
        return SharedMemoryLinks(seat, incarnation, shape)
    from sglang_cdsp.parallel.links.nixl import NixlLinks

    return NixlLinks(seat, incarnation, shape, device)
