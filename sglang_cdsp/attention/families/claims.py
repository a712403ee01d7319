"""Which family runs each attention layer of a built model.

Families are asked in turn; the last one, grouped-query attention, takes what is left, and says of
each layer what it would get wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

from sglang_cdsp.attention.families import latent, window
from sglang_cdsp.attention.families.grouped import Grouped
from sglang_cdsp.attention.families.types import Family, LayerSpec


@dataclass(frozen=True)
class Claims:
    """The families of a model's layers.

    Attributes:
        families: by layer, in the order in which layers run.
        modules: SGLang's attention layers, several of one number where a family computes in
            several forms.
    """

    families: Mapping[int, Family]
    modules: tuple[RadixAttention, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have rows in the pool, in order, each once."""
        return tuple(self.families)

    @property
    def specs(self) -> dict[int, LayerSpec]:
        """What the engine has to know, by layer."""
        return {m.layer_id: self.families[m.layer_id].spec(m) for m in self.modules}

    def described(self) -> str:
        """The model's attention in a few words, for the log."""
        kinds = Counter(self.specs.values())
        return ", ".join(
            f"{count} layers of {spec.family} ({_words(spec)})" for spec, count in kinds.items()
        )

    def faults(self) -> list[str]:
        """What the families would get wrong, in words; [] where they run every layer."""
        by_fault: dict[str, list[int]] = {}
        for module in self.modules:
            for fault in self.families[module.layer_id].faults(module):
                by_fault.setdefault(fault, []).append(module.layer_id)
        return [
            f"layer {ids[0]} has {fault}" if len(ids) == 1 else f"{len(ids)} layers have {fault}"
            for fault, ids in by_fault.items()
        ]

    def several(self) -> list[int]:
        """Layers that have more attention modules than their family has forms."""
        counts = Counter(module.layer_id for module in self.modules)
        return sorted(n for n, count in counts.items() if count > self.families[n].modules)


def claim(model: nn.Module) -> Claims:
    """Ask the families for the attention layers of a built model."""
    modules = tuple(m for m in model.modules() if isinstance(m, RadixAttention))
    known: dict[int, Family] = {**window.claim(model, modules), **latent.claim(model)}
    rest = Grouped()
    numbers = sorted({module.layer_id for module in modules})
    return Claims({number: known.get(number, rest) for number in numbers}, modules)


def _words(spec: LayerSpec) -> str:
    exchanges = " and ".join(exchange.value for exchange in spec.exchanges)
    window = "" if spec.window is None else f", {spec.window} rows before each"
    return f"{exchanges}, {spec.row} numbers a token{window}"
