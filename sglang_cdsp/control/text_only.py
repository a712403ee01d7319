"""Images, audio and video are refused before a prompt is tokenized.

SGLang leaves out what a model of text is sent beside text, and answers as if it had not been sent.
That would be a wrong answer where the client knows the model as one that takes images.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.tokenizer_manager import TokenizerManager

# Taken before ours stands in its place.
STOCK_TOKENIZE = TokenizerManager._tokenize_one_request

REFUSAL = "images, audio or video: a pool serves text prompts; send text or input_ids"


async def tokenize_one_request(manager: Any, obj: Any) -> Any:
    """In place of ``TokenizerManager._tokenize_one_request``.

    Raises:
        ValueError: the request has more than text; SGLang answers 400 with it.
    """
    if obj.contains_mm_input():
        raise ValueError(REFUSAL)
    return await STOCK_TOKENIZE(manager, obj)
