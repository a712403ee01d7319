"""One forward of a shard, with a stand-in for SGLang's model runner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_cdsp.engine.forward import run_forward


class Stream:
    """Says in which order things happen."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def synchronize(self) -> None:
        self._events.append("device done")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", ["forward"]),
        ("cuda", ["forward", "device done"]),
        ("cuda:1", ["forward", "device done"]),
    ],
)
def test_a_chunk_is_over_when_the_device_is_done(
    device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(events))

    def execute(forward: Any) -> str:
        events.append(forward)
        return "logits"

    runner = SimpleNamespace(device=device, eager_runner=SimpleNamespace(execute=execute))
    logits = run_forward(runner, "forward", attention=object())  # type: ignore[arg-type]
    assert logits == "logits"
    assert events == expected
