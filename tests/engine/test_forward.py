"""One forward of a shard, with a stand-in for SGLang's model runner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.model_executor.forward_context import get_attn_backend, has_forward_context

from sglang_cdsp.engine.forward import run_forward


class Model:
    """Notes what SGLang's layers would find."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen: list[Any] = []

    def forward(self, input_ids: Any, positions: Any, batch: Any, **more: Any) -> str:
        self.seen += [get_attn_backend(), input_ids, positions, more]
        if self.error is not None:
            raise self.error
        return "logits"


def runner_of(model: Model) -> Any:
    extra = {"input_embeds": None}
    return SimpleNamespace(model=model, _extend_forward_kwargs=lambda batch, proxies: extra)


def test_the_model_finds_the_chunks_attention_and_its_own_tensors() -> None:
    """The batch's tensors themselves: SGLang's runner would copy them into buffers that all share.
    """  # fmt: skip
    model = Model()
    batch: Any = SimpleNamespace(input_ids=object(), positions=object())
    attention: Any = object()
    assert run_forward(runner_of(model), batch, attention) == "logits"
    assert model.seen[0] is attention
    assert model.seen[1] is batch.input_ids
    assert model.seen[2] is batch.positions
    assert model.seen[3] == {"input_embeds": None}
    assert not has_forward_context()


def test_a_forward_that_fails_leaves_no_attention_behind() -> None:
    batch: Any = SimpleNamespace(input_ids=None, positions=None)
    attention: Any = object()
    with pytest.raises(ValueError, match="broke"):
        run_forward(runner_of(Model(ValueError("broke"))), batch, attention)
    assert not has_forward_context()
