"""Images, audio and video for a model that takes them are refused before a prompt is tokenized.

The pool serves its text. SGLang, whose text-only way it takes, leaves the images out and answers as
if they had not been sent: a wrong answer where the client knows the model as one that sees. A model
of text is asked as by SGLang.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.tokenizer_manager import TokenizerManager

# Taken before ours stands in its place.
STOCK_TOKENIZE = TokenizerManager._tokenize_one_request

REFUSAL = "images, audio or video: a pool serves the model's text; send text or input_ids"

SENSES = ("vision_config", "audio_config", "thinker_config")
"""What a checkpoint's configuration has of a model that takes more than text."""


async def tokenize_one_request(manager: Any, obj: Any) -> Any:
    """In place of ``TokenizerManager._tokenize_one_request``.

    Raises:
        ValueError: the request has more than text; SGLang answers 400 with it.
    """
    if obj.contains_mm_input() and takes_more_than_text(manager.model_config.hf_config):
        raise ValueError(REFUSAL)
    return await STOCK_TOKENIZE(manager, obj)


def takes_more_than_text(config: Any) -> bool:
    """Whether a checkpoint's configuration, as transformers has it, is of such a model."""
    return any(getattr(config, name, None) is not None for name in SENSES)
