"""What clients of SGLang's routers see of a pool: batches, metrics, one replica."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from sglang_cdsp.testing.stack import RunningStack
from tests.serving.client import Client, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.routers import bootstrap_port, workers
from tests.serving.shared.frontend import chosen
from tests.serving.ways import generate, post


@pytest.mark.parametrize("stream", [False, True])
def test_served_requests_pass_the_patched_router_as_before(
    stream: bool, patched: str, client: Client, checkpoint: Path
) -> None:
    body = {
        "input_ids": text_tokens(checkpoint, 300, 4),
        "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
    }
    expected = generate(client, "single", body)
    answer = post(patched, "generate", {**body, "stream": stream})
    assert (answer[-1] if stream else answer)["text"] == expected["text"]


# -- batches with log-probabilities -----------------------------------------------------------


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


def test_the_rust_router_finds_one_replica(rust: str) -> None:
    found = {worker["worker_type"]: worker["metadata"]["dp_size"] for worker in workers(rust)}
    assert found == {"prefill": "1", "decode": "1"}


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
