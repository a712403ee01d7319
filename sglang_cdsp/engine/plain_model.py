"""Whether a built model's parts are those of plain attention, whatever its class says."""

from __future__ import annotations

import re

from torch import nn

from sglang_cdsp.architectures import IMAGE_PARTS, SEEING
from sglang_cdsp.attention.families.claims import Claims, claim
from sglang_cdsp.engine.call_keywords import odd_calls, passes_sinks

# Parts that look at other tokens beside attention, or choose which tokens attention sees.
MIXERS = re.compile(
    "conv1d|mamba|(?<!gpto)ssm|linearattention|linearattn|deltanet|gateddelta|retention|lightning"
    "|indexer|ngram|visiontransformer|visionmodel|audioencoder",
    re.IGNORECASE,
)


def odd_parts(model: nn.Module, layers: int) -> list[str]:
    """What a chunk task would get wrong of a model, in words; [] for a plain one.

    Args:
        model: the built model, all of its layers on this rank.
        layers: how many layers its configuration has.
    """
    claims = claim(model)
    return [
        *claims.faults(),
        *_odd_counts(claims, layers),
        *odd_calls(model, claims),
        *_sinks(model),
        *_mixers(model),
    ]


def _odd_counts(claims: Claims, layers: int) -> list[str]:
    problems = []
    found = set(claims.layers)
    if several := claims.several():
        problems.append(f"layers {_short(several)} have several attention modules")
    without = sorted(set(range(layers)) - found)
    if without:
        problems.append(f"layers {_short(without)} have no keys and values of their own")
    beyond = sorted(found - set(range(layers)))
    if beyond:
        problems.append(f"there is attention in layers {_short(beyond)}, beyond its {layers}")
    return problems


def _sinks(model: nn.Module) -> list[str]:
    """Sinks that a layer does not hand to its attention, where its family would know them."""
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        owner, _, own_name = name.rpartition(".")
        if "sink" in own_name.lower() and not passes_sinks(model.get_submodule(owner)):
            return [f"it has attention sinks ({name})"]
    return []


def _mixers(model: nn.Module) -> list[str]:
    kinds = {type(module) for part in _of_text(model) for module in part.modules()}
    odd = sorted(k.__name__ for k in kinds if issubclass(k, nn.Conv1d) or MIXERS.search(k.__name__))
    return [f"it has parts of the kind {', '.join(odd)}, which look at other tokens"] if odd else []


def _of_text(model: nn.Module) -> list[nn.Module]:
    """The model, or its parts without those that see images alone."""
    if type(model).__name__ not in SEEING:
        return [model]
    return [part for name, part in model.named_children() if name not in IMAGE_PARTS]


def _short(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return shown if len(numbers) <= 4 else f"{shown}, ... ({len(numbers)} of them)"
