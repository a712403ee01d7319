"""Requests that end with their first token, at a prefill server alone."""

from collections.abc import Sequence
from typing import Any

import requests

NO_DECODE = {"bootstrap_host": "2.2.2.2", "bootstrap_room": 0}
"""SGLang's own stand-in for a decode server: the first token is sampled, no KV is sent."""

Plan = Sequence[tuple[int, Sequence[int]]]
"""A forced plan: tokens and instances of each chunk."""


def prompt_tokens(seed: int, length: int) -> list[int]:
    """So many token ids, without special ones; prompts of two seeds differ from the start on."""
    return [(seed * 7919 + i * 104729) % 4000 + 5 for i in range(length)]


def post_prompt(
    url: str,
    input_ids: Sequence[int],
    *,
    rid: str | None = None,
    plan: Plan | None = None,
    timeout_s: float = 600.0,
) -> requests.Response:
    """Sends a prompt and waits for the answer with its first token, sampled greedily.

    Args:
        url: of a prefill server.
        input_ids: the prompt.
        rid: the request's id; SGLang chooses one if not given.
        plan: which the server must allow (`--cdsp-allow-request-plans`).
        timeout_s: seconds that the answer may take.
    """
    sampling: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0}
    if plan is not None:
        sampling["custom_params"] = {"cdsp_plan": plan}
    body: dict[str, Any] = {"input_ids": input_ids, "sampling_params": sampling, **NO_DECODE}
    if rid is not None:
        body["rid"] = rid
    return requests.post(f"{url}/generate", json=body, timeout=timeout_s)
