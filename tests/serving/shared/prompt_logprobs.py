"""What a client can ask of the pool, answered as stock answers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import Client, Plan, text_tokens

TOLERANCE = 1e-3
PLAN: Plan = [(100, [1]), (57, [1, 2]), (143, [1, 2, 0, 3])]


def prompt_logprobs(client: Client, url: str, tokens: list[int], **fields: Any) -> dict[str, Any]:
    response = client.generate(url, tokens, **fields)
    assert response.status_code == 200, response.text
    meta: dict[str, Any] = response.json()["meta_info"]
    return meta


@pytest.mark.parametrize("start", [0, 1, 99, 100, 156, 157, 298, 299])
def test_prompt_logprobs_across_pieces_and_chunks(
    start: int, client: Client, checkpoint: Path
) -> None:
    tokens = text_tokens(checkpoint, 300, 4)
    wish = {"logprob_start_len": start, "token_ids_logprob": [7, 11]}
    stock = prompt_logprobs(client, client.servers.urls["single"], tokens, **wish)
    sampling = {"custom_params": {"cdsp_plan": PLAN}}
    for fields in ({"sampling_params": sampling}, {}):
        ours = prompt_logprobs(client, client.servers.url, tokens, **wish, **fields)
        same(stock["input_token_logprobs"], ours["input_token_logprobs"], "through the router")
        # The router merges no more than that; the prefill server's own answer has it all.
        response = client.prefill(tokens, **wish, **fields)
        assert response.status_code == 200, response.text
        own = response.json()["meta_info"]
        for name in ("input_token_logprobs", "input_token_ids_logprobs", "input_top_logprobs"):
            same(stock[name], own[name], name)


def same(stock: Any, ours: Any, name: str) -> None:
    """Equal in shape and in every token id; log-probabilities within the tolerance."""
    if isinstance(stock, list):
        assert len(stock) == len(ours), name
        for left, right in zip(stock, ours, strict=True):
            same(left, right, name)
    elif isinstance(stock, float):
        assert ours == pytest.approx(stock, abs=TOLERANCE), name
    else:
        assert ours == stock, name
