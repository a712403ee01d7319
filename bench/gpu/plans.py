"""Forced plans for two instances, and what circulates in them."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_cdsp.attention.circulation import Circulation, choose_circulation
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.parallel.spans import tokens_of
from sglang_cdsp.testing.checkpoint import LlamaShape

PAGE = 64
Chunks = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class PlanCase:
    """A plan by name.

    Attributes:
        name: what is special about it.
        chunks: tokens and instances of each chunk.
    """

    name: str
    chunks: Chunks

    @property
    def plan(self) -> list[tuple[int, list[int]]]:
        """In the form that a request carries."""
        return [(tokens, list(group)) for tokens, group in self.chunks]


def cases(length: int, shape: LlamaShape) -> list[PlanCase]:
    """One instance, two, growth from one to two, and Q circulating on a long history.

    Raises:
        ValueError: with this model the plan of two would not circulate KV, or the last not Q.
    """
    half, most = length // 2 // PAGE * PAGE, length * 7 // 8 // PAGE * PAGE
    found = [
        PlanCase("one instance", ((length, (0,)),)),
        PlanCase("one instance, two chunks", ((half, (1,)), (length - half, (1,)))),
        PlanCase("two instances", ((length, (0, 1)),)),
        PlanCase("growth", ((half, (1,)), (length - half, (1, 0)))),
        PlanCase("Q mode", ((most, (0, 1)), (length - most, (0, 1)))),
    ]
    by_name = {case.name: circulations(case.chunks, shape)[-1] for case in found}
    if (by_name["two instances"], by_name["Q mode"]) != ("kv", "q"):
        raise ValueError(f"{length} tokens with {shape} circulate {by_name}: choose another model")
    return found


def circulations(chunks: Chunks, shape: LlamaShape) -> list[Circulation]:
    """What each chunk circulates, as its members will choose."""
    return [
        choose_circulation(
            RingLayout(
                group=layout.group,
                me=0,
                history_tokens=tuple(tokens_of(held) for held in layout.history),
                pieces=layout.spans,
            ),
            shape.num_key_value_heads,
            shape.num_attention_heads,
            shape.head_dim,
            element_size=2,
        )
        for layout in plan_layout(chunks, PAGE)
    ]
