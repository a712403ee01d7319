"""More than text is refused before a prompt is tokenized."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_cdsp.control import text_only


@pytest.mark.parametrize("field", ["image_data", "video_data", "audio_data"])
def test_images_audio_and_video_are_refused(field: str) -> None:
    more: dict[str, Any] = {field: "data:image/png;base64,AAAA"}
    asked = GenerateReqInput(text="What is this?", **more)
    with pytest.raises(ValueError, match="a pool serves text prompts"):
        asyncio.run(text_only.tokenize_one_request(None, asked))


def test_text_is_tokenized_as_sglang_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stock(manager: Any, obj: Any) -> tuple[Any, Any]:
        return manager, obj.text

    monkeypatch.setattr(text_only, "STOCK_TOKENIZE", stock)
    done = asyncio.run(text_only.tokenize_one_request("manager", GenerateReqInput(text="Hello")))
    assert done == ("manager", "Hello")
