"""What surrounds a layer's attention: it counts, gives way, and then attends."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.engine.device import Pace
from sglang_cdsp.engine.layers import LayerSteps


class Attention:
    """Notes when it runs."""

    token_to_kv_pool = req_to_token_pool = None

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def forward(self, *args: Any, **more: Any) -> None:
        self.said.append("attends")


def test_each_layer_counts_then_gives_way_then_attends() -> None:
    said: list[str] = []
    attention: Any = Attention(said)

    def give_way(ready: Any) -> None:
        assert ready is None, "the host computes itself"
        said.append("gives way")

    steps = LayerSteps(attention, Pace(give_way, None), lambda: said.append("counts"))
    for _ in range(2):
        steps.forward(None, None, None, None, None)  # type: ignore[arg-type]
    assert said == ["counts", "gives way", "attends"] * 2
