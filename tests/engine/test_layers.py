"""What surrounds a layer's attention: it counts, gives way, and then attends."""

from __future__ import annotations

from types import SimpleNamespace
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


class Gathering:
    """Layers of which something is gathered: the newest of them is on its way."""

    def __init__(self, *layers: int) -> None:
        self._layers = layers
        self.pending: int | None = None

    def after(self, layer: int) -> None:
        self.pending = layer if layer in self._layers else self.pending

    def finish(self) -> None:
        self.pending = None


def test_a_layer_is_kept_when_all_of_it_has_come() -> None:
    """A layer of which nothing is gathered says nothing of the one before it."""
    gather: Any = Gathering(10, 13)
    attention: Any = SimpleNamespace(
        token_to_kv_pool=None,
        req_to_token_pool=None,
        forward=lambda q, k, v, layer, *more: gather.after(layer.layer_id),
    )
    kept: list[int] = []
    steps = LayerSteps(attention, Pace(lambda ready: None, None), lambda: None, gather, kept.append)
    for layer in (10, 11, 12, 13):
        steps.forward(None, None, None, SimpleNamespace(layer_id=layer), None)  # type: ignore[arg-type]
    assert kept == [0, 0, 0, 3]
    steps.finish()
    assert kept[-1] == 4


def test_where_nothing_is_gathered_each_layer_is_kept_at_once() -> None:
    kept: list[int] = []
    attention: Any = Attention([])
    steps = LayerSteps(attention, Pace(lambda ready: None, None), lambda: None, None, kept.append)
    for layer in (10, 11):
        steps.forward(None, None, None, SimpleNamespace(layer_id=layer), None)  # type: ignore[arg-type]
    assert kept == [1, 2]
