"""What clients of SGLang's routers see of a pool: refusals, batches, metrics, one replica."""

from __future__ import annotations

import json
import pydoc_data.topics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sglang as sgl
from prometheus_client.parser import text_string_to_metric_families

from sglang_cdsp.testing.stack import RunningStack
from tests.serving.client import Client, text_tokens
from tests.serving.conftest import CONTEXT_LENGTH, INSTANCE_TOKENS, POOL_SIZE
from tests.serving.routers import bootstrap_port, patched_router, router_before
from tests.serving.test_features_refused import GENERATE, LENGTH, OPENAI
from tests.serving.ways import generate, sampling

WITHIN_S = 60.0
DOCUMENT = "\n\n".join(pydoc_data.topics.topics.values())[:6_000]
CHOICES = ["names", "numbers", "a loop", "exceptions and how they are raised"]

# Refusals of admission beside those of the features' tests: by name, fields of a /generate body.
ADMISSION: dict[str, dict[str, Any]] = {
    "too_long": {"input_ids": [5] * (CONTEXT_LENGTH + 1)},
    "plan": {"sampling_params": {"custom_params": {"cdsp_plan": [[LENGTH, [0, 9]]]}}},
    "negative_length": {"sampling_params": {"max_new_tokens": -1}},
}
# Decode finds these out by itself, with the same words and the same status.
CASES = {**{name: fields for name, (fields, _) in GENERATE.items()}, **ADMISSION}


@pytest.fixture(scope="module")
def patched(servers: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a mini router with the patches for it."""
    environment = patched_router(tmp_path_factory.mktemp("router"))
    with router_before(
        servers, tmp_path_factory.mktemp("logs"), ("--mini-lb",), environment
    ) as url:
        yield url


@pytest.fixture(scope="module")
def rust(servers: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the Rust router, once it knows both servers."""
    flags = ("--dp-aware", "--disable-retries")
    with router_before(servers, tmp_path_factory.mktemp("logs"), flags) as url:
        deadline = time.monotonic() + WITHIN_S
        while len(workers(url)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield url


def workers(url: str) -> list[dict[str, Any]]:
    """The servers that the Rust router knows."""
    found: list[dict[str, Any]] = requests.get(f"{url}/workers", timeout=10).json()["workers"]
    return found


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


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_patched_router_passes_refusals_on(
    name: str, patched: str, client: Client, checkpoint: Path
) -> None:
    body = body_of(name, checkpoint)
    response = requests.post(f"{patched}/generate", json=body, timeout=60)
    assert response.status_code == 400, response.text
    streamed = requests.post(f"{patched}/generate", json={**body, "stream": True}, timeout=60)
    assert [status_of(event) for event in events(streamed)] == [400], streamed.text
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


def test_served_requests_pass_the_patched_router_as_before(
    patched: str, client: Client, checkpoint: Path
) -> None:
    body = body_of("several_samples", checkpoint)
    body["sampling_params"].pop("n")
    expected = generate(client, "single", body)
    streamed = requests.post(f"{patched}/generate", json={**body, "stream": True}, timeout=60)
    answer = requests.post(f"{patched}/generate", json=body, timeout=60).json()
    assert answer["text"] == events(streamed)[-1]["text"] == expected["text"]


# -- batches with log-probabilities -----------------------------------------------------------


@sgl.function
def choose(s: Any) -> None:
    """A document and a choice about it."""
    s += DOCUMENT
    s += "\n\nThis text is about"
    s += sgl.select("answer", choices=CHOICES)


def chosen(url: str) -> tuple[str, list[float]]:
    """The choice and the normalised log-probability of each."""
    state = choose.run(backend=sgl.RuntimeEndpoint(url))
    scores = state.get_meta_info("answer")["normalized_prompt_logprobs"]
    return state["answer"], [float(score) for score in scores]


def test_select_chooses_as_on_a_single_server(patched: str, client: Client) -> None:
    choice, scores = chosen(patched)
    expected, expected_scores = chosen(client.servers.urls["single"])
    assert scores == pytest.approx(expected_scores, abs=1e-3)
    assert choice == expected


def test_the_mini_router_leaves_select_without_its_numbers(
    client: Client, checkpoint: Path
) -> None:
    """The patch is needed: of a batch's log-probabilities prefill's part is missing."""
    body = {
        "input_ids": [text_tokens(checkpoint, 50, seed) for seed in (1, 2)],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    lengths = {
        name: [len(item["meta_info"]["input_token_logprobs"]) for item in answers]
        for name in ("router", "single")
        for answers in [generate(client, name, body)]
    }
    assert lengths["single"] == [50, 50]
    assert max(lengths["router"]) < 50


# -- one replica ------------------------------------------------------------------------------


def test_the_rust_router_merges_the_metrics_of_both_servers(rust: str, client: Client) -> None:
    response = requests.get(f"{rust}/engine_metrics", timeout=30)
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    usage = [s for family in families for s in family.samples if s.name == "sglang_token_usage"]
    ranks = {
        name: sorted(s.labels["tp_rank"] for s in usage if url in s.labels["worker_addr"])
        for name, url in client.servers.urls.items()
        if name in ("prefill", "decode")
    }
    assert ranks == {"prefill": [str(rank) for rank in range(POOL_SIZE)], "decode": ["0"]}
    assert not any("dp_rank" in sample.labels for sample in usage)


def test_a_router_that_knows_data_parallelism_finds_one_replica(rust: str) -> None:
    kinds = [worker["worker_type"] for worker in workers(rust)]
    assert sorted(kinds) == ["decode", "prefill"]


@pytest.mark.parametrize("path", ["server_info", "get_server_info"])
def test_server_info_shows_one_replica(path: str, client: Client) -> None:
    info, decodes = (
        requests.get(f"{client.servers.urls[name]}/{path}", timeout=30).json()
        for name in ("prefill", "decode")
    )
    assert info["dp_size"] == decodes["dp_size"] == 1
    assert info["max_total_num_tokens"] == POOL_SIZE * INSTANCE_TOKENS
    assert len(info["internal_states"]) == POOL_SIZE


def test_decode_meets_one_replica(servers: RunningStack) -> None:
    everything = dict.fromkeys(
        ("prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"), "-1"
    )
    url = f"http://127.0.0.1:{bootstrap_port(servers)}/route"
    info = requests.get(url, params=everything, timeout=10).json()
    assert (info["dp_size"], info["attn_tp_size"]) == (1, 1)
