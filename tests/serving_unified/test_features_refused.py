"""What one server refuses is 400 with the reason, on every way through the pool, and at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.client import text_tokens
from tests.serving.shared.refusals import GENERATE, LENGTH, OPENAI, refused
from tests.serving.ways import sampling
from tests.serving_unified.client import OneServerClient
from tests.serving_unified.conftest import CONTEXT_LENGTH

# Here they are answered.
SEVERAL = {"several_samples", "several_completions", "several_chats"}


@pytest.mark.parametrize("name", sorted(GENERATE.keys() - SEVERAL))
def test_generate(name: str, client: OneServerClient, checkpoint: Path) -> None:
    fields, words = GENERATE[name]
    for way in ("forced", "turn"):
        params = {**sampling(way, LENGTH), **fields.get("sampling_params", {})}
        tokens = text_tokens(checkpoint, LENGTH, 4)
        body = {"input_ids": tokens, **fields, "sampling_params": params}
        assert refused(f"{client.servers.url}/generate", body, words) == 400


def test_embeddings_as_a_prompt(client: OneServerClient) -> None:
    body = {"input_embeds": [[0.01] * 256] * LENGTH, "sampling_params": sampling("planned", LENGTH)}
    assert refused(f"{client.servers.url}/generate", body, "input_embeds") == 400


def test_an_invalid_plan(client: OneServerClient) -> None:
    params = {"custom_params": {"cdsp_plan": [[10, [0]]]}}
    body = {"input_ids": [5] * LENGTH, "sampling_params": params}
    assert refused(f"{client.servers.url}/generate", body, f"the prompt has {LENGTH}") == 400


def test_a_prompt_over_the_limit(client: OneServerClient) -> None:
    body = {"input_ids": [5] * (CONTEXT_LENGTH + 1)}
    assert refused(f"{client.servers.url}/generate", body, "tokens") == 400


@pytest.mark.parametrize("name", sorted(OPENAI.keys() - SEVERAL))
def test_openai(name: str, client: OneServerClient) -> None:
    path, body, words = OPENAI[name]
    url = f"{client.servers.url}/{path}"
    assert refused(url, {"model": "any", "max_tokens": 4, **body}, words) == 400
