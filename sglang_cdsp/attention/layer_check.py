"""Whether an attention layer is plain: causal softmax attention over all earlier tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

if TYPE_CHECKING:
    from collections.abc import Iterable


class UnsupportedLayer(NotImplementedError):
    """The model has an attention layer that a chunk task cannot run exactly."""


def odd_features(layer: Any) -> list[str]:
    """What makes a layer's result differ from plain attention, in words; [] for a plain layer.

    Whatever is not known of a ``RadixAttention`` is odd: a subclass, or an attribute that a model
    has put there for its backend to read.
    """
    features = {
        "a logit soft cap": bool(layer.logit_cap),
        "a sliding window": layer.sliding_window_size is not None
        and layer.sliding_window_size > -1,
        "chunked attention": layer.use_irope,
        "scores that depend on the length": layer.xai_temperature_len > 0,
        "positions in its scores": layer.pos_encoding_mode != "NONE",
        "cross attention": layer.is_cross_attention,
        "bidirectional attention": layer.attn_type != AttentionType.DECODER,
        f"a class of its own ({type(layer).__name__})": type(layer) is not RadixAttention,
    }
    unknown = sorted(_public(vars(layer)) - _known())
    features[f"attributes {unknown} of its own"] = bool(unknown)
    return [what for what, present in features.items() if present]


def check_layer(
    layer: Any,
    unknown: Mapping[str, Any],
    k: torch.Tensor | None,
    v: torch.Tensor | None,
) -> None:
    """Refuse what would make the merged result differ from stock's.

    Args:
        layer: the attention layer.
        unknown: further arguments of its call, such as sinks.
        k, v: its keys and values; None where it uses another layer's.

    Raises:
        UnsupportedLayer: names the property.
    """
    odd = odd_features(layer)
    if unknown:
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
