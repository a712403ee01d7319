"""Arguments that a built model's layers hand to SGLang's attention, read off their source.

Whatever an argument does to scores, its family must know. A chunk that meets an unknown one fails;
this says so at the server's start.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

from sglang_cdsp.attention.families.claims import Claims
from sglang_cdsp.attention.families.latent import Latent

EVERY = frozenset({"q", "k", "v", "forward_batch", "save_kv_cache"})
"""Arguments that every family takes."""

SOME = "**"
"""Stands for arguments that are not written out."""


def odd_calls(model: nn.Module, claims: Claims) -> list[str]:
    """Arguments that a layer's family does not name, in words; [] where all are known.

    Latent layers have calls for many backends, of which chunks take those of one; what else they
    could be asked for is in their family's ``faults``.
    """
    odd: dict[str, int] = {}
    for module in model.modules():
        for name, attention in module.named_children():
            if not isinstance(attention, RadixAttention):
                continue
            family = claims.families[attention.layer_id]
            if isinstance(family, Latent):
                continue
            for keyword in keywords_of(type(module), name) - EVERY - family.keywords:
                odd.setdefault(keyword, attention.layer_id)
    return [
        f"layer {layer} calls attention with {keyword}, which chunk tasks do not know"
        for keyword, layer in sorted(odd.items())
    ]


def passes_sinks(module: nn.Module) -> bool:
    """Whether a module hands sinks to its attention."""
    return any(
        "sinks" in keywords_of(type(module), name)
        for name, child in module.named_children()
        if isinstance(child, RadixAttention)
    )


def keywords_of(kind: type, attribute: str) -> frozenset[str]:
    """Keywords of the calls ``self.<attribute>(...)`` in a class and its bases."""
    return frozenset(
        keyword.arg or SOME
        for tree in _trees(kind)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{attribute}"
        for keyword in node.keywords
    )


def _trees(kind: type) -> Iterator[ast.Module]:
    for base in kind.__mro__:
        if base is nn.Module:
            return
        try:
            yield ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # made in a running program
            continue
