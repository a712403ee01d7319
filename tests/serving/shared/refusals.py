"""What a pool refuses of a request's options, and the words that it says so with."""

from __future__ import annotations

import time
from typing import Any

import requests

from tests.serving.asking import REFUSED_WITHIN_S

LENGTH = 300
"""Tokens of the prompts."""

TEXT = "The import system looks up modules by name. "


def schema(kind: str, text: str) -> dict[str, Any]:
    return {"sampling_params": {kind: text}}


GENERATE: dict[str, tuple[dict[str, Any], str]] = {
    "several_samples": ({"sampling_params": {"n": 2}}, "n=1"),
    "beam_search": ({"sampling_params": {"beam_width": 2}}, "eam"),
    "sampling_mask": ({"return_sampling_mask": True, "sampling_params": {"top_k": 1}}, "mask"),
    "session": ({"session_params": {"id": "s1"}}, "session"),
    "lora": ({"lora_path": "adapter"}, "LoRA"),
    "hidden_states": ({"return_hidden_states": True}, "hidden states"),
    "thinking_budget": ({"require_reasoning": True, "max_thinking_tokens": 3}, "strict-thinking"),
    "json_schema": (schema("json_schema", "{not json"), "Failed to compile json grammar"),
    "regex": (schema("regex", "([a"), "Failed to compile regex grammar"),
    "ebnf": (schema("ebnf", "root ::= ("), "Failed to compile ebnf grammar"),
    "logprob_start": ({"return_logprob": True, "logprob_start_len": 400}, "smaller"),
    "temperature": ({"sampling_params": {"temperature": -1}}, "temperature"),
    "unknown_token": ({"input_ids": [5] * (LENGTH - 1) + [10**7]}, "vocabulary"),
    "negative_token": ({"input_ids": [-3] + [5] * (LENGTH - 1)}, "vocabulary"),
}
"""By name: fields of a ``/generate`` body, with "sampling_params" beside the usual ones, and words
of the answer that tell the reason."""

OPENAI: dict[str, tuple[str, dict[str, Any], str]] = {
    "several_completions": ("v1/completions", {"prompt": TEXT, "n": 2}, "n=1"),
    "several_chats": (
        "v1/chat/completions",
        {"messages": [{"role": "user", "content": TEXT}], "n": 2},
        "n=1",
    ),
    "image_in_a_chat": (
        "v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;,"}}],
                }
            ]
        },
        "image",
    ),
}
"""By name: path, fields of a body, and words of the answer."""


def refused(url: str, body: dict[str, Any], words: str) -> int:
    """POST ``body``, which is refused with these words at once; returns the status.

    Raises:
        AssertionError: it is not.
    """
    start = time.monotonic()
    response = requests.post(url, json=body, timeout=60)
    seconds = time.monotonic() - start
    assert response.status_code >= 400, response.text
    assert words in response.text
    assert seconds < REFUSED_WITHIN_S
    return response.status_code
