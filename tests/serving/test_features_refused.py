"""What no pool can serve is refused at once, on every entry, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.client import Client, text_tokens
from tests.serving.conftest import CONTEXT_LENGTH, INSTANCE_TOKENS, POOL_SIZE
from tests.serving.shared.refusals import GENERATE, LENGTH, OPENAI, refused
from tests.serving.ways import WAYS, generate, plan_of, same, sampling

FREE = [INSTANCE_TOKENS] * POOL_SIZE
# Refusals of admission beside those: by name, fields of a /generate body.
ADMISSION: dict[str, dict[str, Any]] = {
    "too_long": {"input_ids": [5] * (CONTEXT_LENGTH + 1)},
    "plan": {"sampling_params": {"custom_params": {"cdsp_plan": [[LENGTH, [0, 9]]]}}},
    "negative_length": {"sampling_params": {"max_new_tokens": -1}},
}
CASES = {**{name: fields for name, (fields, _) in GENERATE.items()}, **ADMISSION}
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


# -- through other routers ------------------------------------------------------------------


def body_of(name: str, checkpoint: Path, **more: Any) -> dict[str, Any]:
    """A request that is refused."""
    fields = CASES[name]
    params = {**sampling("planned", LENGTH), **fields.get("sampling_params", {})}
    tokens = text_tokens(checkpoint, LENGTH, 4)
    return {"input_ids": tokens, **fields, "sampling_params": params, **more}


def events(response: requests.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def status_of(event: dict[str, Any]) -> int:
    """The status with which an event ends a request."""
    error = event.get("error") or event["meta_info"]["finish_reason"]
    return int(error.get("code") or error["status_code"])


@pytest.mark.parametrize("name", CASES)
def test_the_patched_router_passes_refusals_on(
    name: str, patched: str, client: Client, checkpoint: Path
) -> None:
    body = body_of(name, checkpoint)
    response = requests.post(f"{patched}/generate", json=body, timeout=60)
    assert response.status_code == 400, response.text
    streamed = requests.post(f"{patched}/generate", json={**body, "stream": True}, timeout=60)
    assert {status_of(event) for event in events(streamed)} == {400}, streamed.text
    assert client.wait_free([INSTANCE_TOKENS] * POOL_SIZE) == [INSTANCE_TOKENS] * POOL_SIZE


@pytest.mark.parametrize("name", OPENAI)
def test_openais_refusals_through_the_patched_router(name: str, patched: str) -> None:
    path, fields, words = OPENAI[name]
    body = {"model": "any", "max_tokens": 4, **fields}
    response = requests.post(f"{patched}/{path}", json=body, timeout=60)
    assert response.status_code == 400, response.text
    assert words in response.text
    streamed = requests.post(f"{patched}/{path}", json={**body, "stream": True}, timeout=60)
    assert 400 in [event["error"]["code"] for event in events(streamed) if "error" in event]


def test_the_mini_router_passes_decodes_500_on(client: Client, checkpoint: Path) -> None:
    """The patch is needed: the router as it is returns what decode says."""
    body = body_of("several_samples", checkpoint)
    response = requests.post(f"{client.servers.url}/generate", json=body, timeout=60)
    assert response.status_code == 500
    assert "Decode transfer failed" in response.text
    assert "n=1" in response.text


def test_the_rust_router_passes_decodes_500_on(rust: str, checkpoint: Path) -> None:
    response = requests.post(
        f"{rust}/generate", json=body_of("unknown_token", checkpoint), timeout=60
    )
    assert response.status_code == 500
    assert "vocabulary" in response.text
