"""What no pool can serve is refused at once, on every entry, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.client import Client, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.ways import WAYS, generate, plan_of, same, sampling

LENGTH = 300
ANSWER_WITHIN_S = 5.0
FREE = [INSTANCE_TOKENS] * POOL_SIZE
TEXT = "The import system looks up modules by name. "


def schema(kind: str, text: str) -> dict[str, Any]:
    return {"sampling_params": {kind: text}}


# By name: fields of a /generate body ("sampling_params" are added to the usual ones), and words
# of the answer that tell the reason.
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
# The router has no such entries.
ROUTES = ("encode", "classify", "v1/embeddings", "v1/score", "v1/rerank", "v1/responses")


@pytest.fixture(scope="module")
def expected(client: Client, checkpoint: Path) -> dict[str, Any]:
    body = {"input_ids": text_tokens(checkpoint, LENGTH, 4)}
    found: dict[str, Any] = generate(
        client, "single", {**body, "sampling_params": sampling("planned", LENGTH)}
    )
    return found


@pytest.fixture(autouse=True)
def nothing_left_and_still_right(
    client: Client, checkpoint: Path, expected: dict[str, Any]
) -> Iterator[None]:
    """After each test all slots are free and a request on all instances gets stock's answer."""
    yield
    assert client.wait_free(FREE) == FREE
    body = {"input_ids": text_tokens(checkpoint, LENGTH, 4)}
    params = sampling("forced", LENGTH)
    same(expected, generate(client, "router", {**body, "sampling_params": params}))


def refused(url: str, body: dict[str, Any], words: str) -> None:
    start = time.monotonic()
    response = requests.post(url, json=body, timeout=60)
    seconds = time.monotonic() - start
    assert response.status_code >= 400, response.text
    assert words in response.text
    assert seconds < ANSWER_WITHIN_S


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GENERATE)
def test_generate(name: str, way: str, client: Client, checkpoint: Path) -> None:
    fields, words = GENERATE[name]
    params = {**sampling(way, LENGTH), **fields.get("sampling_params", {})}
    body = {"input_ids": text_tokens(checkpoint, LENGTH, 4), **fields, "sampling_params": params}
    refused(f"{client.servers.url}/generate", body, words)


@pytest.mark.parametrize("way", WAYS)
def test_embeddings_as_a_prompt(way: str, client: Client) -> None:
    embeddings = [[0.01] * 256 for _ in range(LENGTH)]
    body = {"input_embeds": embeddings, "sampling_params": sampling(way, LENGTH)}
    refused(f"{client.servers.url}/generate", body, "input_embeds")


@pytest.mark.parametrize("name", OPENAI)
def test_openai(name: str, client: Client) -> None:
    path, body, words = OPENAI[name]
    refused(f"{client.servers.url}/{path}", {"model": "any", "max_tokens": 4, **body}, words)


@pytest.mark.parametrize("path", ROUTES)
def test_entries_that_the_router_lacks(path: str, client: Client) -> None:
    refused(f"{client.servers.url}/{path}", {"model": "any", "input": "a", "text": "a"}, "ot Found")


@pytest.mark.parametrize("way", WAYS)
def test_prefill_without_a_room(way: str, client: Client, checkpoint: Path) -> None:
    """Sent past the router, by mistake: nobody would ever take the KV."""
    tokens = text_tokens(checkpoint, LENGTH, 4)
    body = {"input_ids": tokens, "sampling_params": sampling(way, LENGTH)}
    refused(f"{client.servers.urls['prefill']}/generate", body, "bootstrap_room")


def test_one_bad_prompt_of_a_batch(client: Client, checkpoint: Path) -> None:
    good = text_tokens(checkpoint, LENGTH, 4)
    plan = plan_of("forced", LENGTH)
    params = [sampling("planned", LENGTH), {**sampling("planned", LENGTH), "n": 1}]
    params[1]["custom_params"] = {"cdsp_plan": [*(plan or []), (1, [1, 2, 0, 3])]}
    body = {"input_ids": [good, good], "sampling_params": params}
    refused(f"{client.servers.url}/generate", body, "")
