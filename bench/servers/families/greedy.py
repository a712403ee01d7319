"""Greedy requests with log-probabilities, as a pool and a stock server are asked alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests

from sglang_cdsp.testing.answers import TOP

OUTPUT = 6
"""Tokens of an answer."""


def generate(url: str, tokens: Sequence[int], **fields: Any) -> dict[str, Any]:
    """POST ``/generate``, greedy, with log-probabilities.

    Args:
        url: of the server.
        tokens: the prompt.
        fields: of the request's body; ``sampling_params`` are added to those for greedy answers.

    Raises:
        AssertionError: it is refused.
    """
    sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": OUTPUT}
    body: dict[str, Any] = {
        "input_ids": list(tokens),
        "sampling_params": {**sampling, **fields.pop("sampling_params", {})},
        "return_logprob": True,
        "top_logprobs_num": TOP,
        **fields,
    }
    response = requests.post(f"{url}/generate", json=body, timeout=300)
    if response.status_code != requests.codes.ok:
        raise AssertionError(f"{response.status_code}: {response.text[:300]}")
    found: dict[str, Any] = response.json()
    return found
