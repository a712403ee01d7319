"""What surrounds a layer's attention: it gives way first, and the device is not left far behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sglang_cdsp.engine.layers import LAYERS_AHEAD, LayerSteps


class Attention:
    """Notes when it runs."""

    token_to_kv_pool = req_to_token_pool = None

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def forward(self, *args: Any, **more: Any) -> None:
        self.said.append("attends")


def run(steps: LayerSteps, count: int) -> None:
    for _ in range(count):
        steps.forward(None, None, None, None, None)  # type: ignore[arg-type]


def test_each_layer_counts_then_gives_way_then_attends() -> None:
    said: list[str] = []
    attention: Any = Attention(said)

    def give_way(ready: Any) -> None:
        assert ready is None, "the host computes itself"
        said.append("gives way")

    run(LayerSteps(attention, give_way, lambda: said.append("counts"), "cpu"), 2)
    assert said == ["counts", "gives way", "attends"] * 2


class Event:
    """A point in a device's stream that the test passes."""

    all: list[Event] = []  # noqa: RUF012  # one test's

    def __init__(self) -> None:
        self.passed = False
        Event.all.append(self)

    def record(self) -> None:
        """Recorded where it is made."""

    def query(self) -> bool:
        return self.passed


def test_the_host_runs_only_so_many_layers_ahead_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is launched cannot be taken back. Red when a layer does not wait for an earlier one."""
    Event.all = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    said: list[str] = []
    attention: Any = Attention(said)

    def give_way(ready: Any) -> None:
        if ready is None:
            return
        assert not ready(), "the device has not come that far"
        Event.all[len(said) - LAYERS_AHEAD].passed = True
        assert ready(), "it waits for the oldest layer, not for the newest"

    run(LayerSteps(attention, give_way, lambda: None, "cuda"), 6)
    assert len(said) == 6
    assert [event.passed for event in Event.all] == [True] * 4 + [False] * 2
