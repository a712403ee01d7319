"""What a model that sees is sent beside text is refused before a prompt is tokenized."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput
from transformers import Gemma3Config, LlamaConfig, Qwen3VLConfig

from sglang_cdsp.control import text_only


def serving(config: Any) -> Any:
    """A tokenizer manager of a model."""
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=config))


async def stock(manager: Any, obj: Any) -> str:
    return str(obj.text)


@pytest.fixture(autouse=True)
def sglang_tokenizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_only, "STOCK_TOKENIZE", stock)


@pytest.mark.parametrize("config", [Gemma3Config, Qwen3VLConfig])
@pytest.mark.parametrize("field", ["image_data", "video_data", "audio_data"])
def test_a_model_that_sees_gets_text_only(field: str, config: Any) -> None:
    more: dict[str, Any] = {field: "data:image/png;base64,AAAA"}
    asked = GenerateReqInput(text="What is this?", **more)
    with pytest.raises(ValueError, match="a pool serves the model's text"):
        asyncio.run(text_only.tokenize_one_request(serving(config()), asked))
    plain = GenerateReqInput(text="What is this?")
    assert asyncio.run(text_only.tokenize_one_request(serving(config()), plain)) == plain.text


def test_a_model_of_text_answers_as_sglang_does() -> None:
    asked = GenerateReqInput(text="Hello", image_data="data:image/png;base64,AAAA")
    done = asyncio.run(text_only.tokenize_one_request(serving(LlamaConfig()), asked))
    assert done == "Hello"
