"""Whether a built model's parts are those of plain attention, whatever its class says."""

from __future__ import annotations

import re
from collections import Counter

from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

from sglang_cdsp.attention.layer_check import odd_features

# Parts that look at other tokens beside attention, or choose which tokens attention sees.
MIXERS = re.compile(
    "conv1d|mamba|ssm|linearattention|linearattn|deltanet|gateddelta|retention|lightning"
    "|indexer|ngram|visiontransformer|visionmodel|audioencoder",
    re.IGNORECASE,
)


def odd_parts(model: nn.Module, layers: int) -> list[str]:
    """What a chunk task would get wrong of a model, in words; [] for a plain one.

    Args:
        model: the built model, all of its layers on this rank.
        layers: how many layers its configuration has.
    """
    attention = [m for m in model.modules() if isinstance(m, RadixAttention)]
    return [
        *_odd_attention(attention),
        *_odd_counts(Counter(layer.layer_id for layer in attention), layers),
        *_sinks(model),
        *_mixers(model),
    ]


def _odd_attention(attention: list[RadixAttention]) -> list[str]:
    by_feature: dict[str, list[int]] = {}
    for layer in attention:
        for feature in odd_features(layer):
            by_feature.setdefault(feature, []).append(layer.layer_id)
    return [
        f"layer {ids[0]} has {feature}" if len(ids) == 1 else f"{len(ids)} layers have {feature}"
        for feature, ids in by_feature.items()
    ]


def _odd_counts(found: Counter[int], layers: int) -> list[str]:
    problems = []
    several = sorted(layer for layer, count in found.items() if count > 1)
    if several:
        problems.append(f"layers {_short(several)} have several attention modules")
    without = sorted(set(range(layers)) - set(found))
    if without:
        problems.append(f"layers {_short(without)} have no keys and values of their own")
    beyond = sorted(set(found) - set(range(layers)))
    if beyond:
        problems.append(f"there is attention in layers {_short(beyond)}, beyond its {layers}")
    return problems


def _sinks(model: nn.Module) -> list[str]:
    """Attention sinks are arguments of the call, so the layer does not show them."""
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        if "sink" in name.rpartition(".")[2].lower():
            return [f"it has attention sinks ({name})"]
    return []


def _mixers(model: nn.Module) -> list[str]:
    kinds = {type(m) for m in model.modules()}
    odd = sorted(k.__name__ for k in kinds if issubclass(k, nn.Conv1d) or MIXERS.search(k.__name__))
    return [f"it has parts of the kind {', '.join(odd)}, which look at other tokens"] if odd else []


def _short(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return shown if len(numbers) <= 4 else f"{shown}, ... ({len(numbers)} of them)"
