"""Whether an attention layer is plain: causal softmax attention over all earlier tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class UnsupportedLayer(NotImplementedError):
    """The model has an attention layer that a chunk task cannot run exactly."""


WINDOW = "a sliding window"
CHUNKED = "chunked attention"


def odd_features(
    layer: Any, *, served: Collection[str] = (), attributes: Collection[str] = ()
) -> list[str]:
    """What makes a layer's result differ from plain attention, in words; [] for a plain layer.

    Whatever is not known of a ``RadixAttention`` is odd: a subclass, or an attribute that a model
    has put there for its backend to read.

    Args:
        layer: SGLang's.
        served: features that whoever computes the layer knows, such as ``WINDOW``.
        attributes: that it knows.
    """
    features = {
        "a logit soft cap": bool(layer.logit_cap),
        WINDOW: layer.sliding_window_size is not None and layer.sliding_window_size > -1,
        CHUNKED: layer.use_irope,
        "scores that depend on the length": layer.xai_temperature_len > 0,
        "positions in its scores": layer.pos_encoding_mode != "NONE",
        "cross attention": layer.is_cross_attention,
        "bidirectional attention": layer.attn_type != AttentionType.DECODER,
        f"a class of its own ({type(layer).__name__})": type(layer) is not RadixAttention,
    }
    unknown = sorted(_public(vars(layer)) - _known() - set(attributes))
    features[f"attributes {unknown} of its own"] = bool(unknown)
    return [what for what, present in features.items() if present and what not in served]


def check_layer(
    layer: Any,
    keywords: Mapping[str, Any],
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    *,
    known: frozenset[str] = frozenset(),
    faults: Callable[[Any], list[str]] = odd_features,
) -> None:
    """Refuse what would make the merged result differ from stock's.

    Args:
        layer: the attention layer.
        keywords: further arguments of its call, such as sinks.
        k, v: its keys and values; None where it uses another layer's.
        known: keywords that whoever computes the layer understands.
        faults: what of a layer it would get wrong.

    Raises:
        UnsupportedLayer: names the property.
    """
    odd = faults(layer)
    if unknown := keywords.keys() - known:
        odd.append(f"attention arguments {sorted(unknown)}")
    if k is None or v is None:
        odd.append("no keys and values of its own")
    if odd:
        raise UnsupportedLayer(
            f"layer {layer.layer_id} has {' and '.join(odd)}, which --cdsp cannot run; serve this "
            "model without --cdsp"
        )


def _public(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


@cache
def _known() -> set[str]:
    """The attributes of SGLang's own layer."""
    return _public(vars(RadixAttention(1, 1, 1.0, 1, layer_id=0)))
