"""Control endpoints on a pool that works, beside the stock server's. The table: docs/control.md.

What changes weights or memory has servers of its own: `tests/serving_two`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sglang_cdsp.control.table import ENDPOINTS, READS, Effect, Endpoint
from sglang_cdsp.testing.answers import Answer
from tests.serving.asking import call, chunks_started, in_hand, pool, until, words
from tests.serving.client import Client, difference, text_tokens
from tests.serving.conftest import POOL_SIZE

TOLERANCE = 1e-3
ALL = list(range(POOL_SIZE))
PLAN = [(100, ALL)] * 5 + [(40, ALL)]
TOKENS = sum(tokens for tokens, _ in PLAN)
SLEEP_S = 0.3

# How each endpoint that is only read is asked; None where the installed release may lack it.
QUESTIONS: dict[str, tuple[str, str, Any] | None] = {
    "/ready": ("GET", "/ready", None),
    "/ping": ("GET", "/ping", None),
    "/model_info": ("GET", "/model_info", None),
    "/get_model_info": ("GET", "/get_model_info", None),
    "/v1/models": ("GET", "/v1/models", None),
    "/v1/models/{model:path}": ("GET", "/v1/models/nobody", None),
    "/server_info": ("GET", "/server_info", None),
    "/get_server_info": ("GET", "/get_server_info", None),
    "/is_scaling_elastic_ep": ("GET", "/is_scaling_elastic_ep", None),
    "/scale_elastic_ep": ("POST", "/scale_elastic_ep", {"new_ep_size": 8}),
    "/set_trace_level": ("POST", "/set_trace_level?level=0", None),
    "/freeze_gc": ("POST", "/freeze_gc", None),
    "/hicache/storage-backend": ("GET", "/hicache/storage-backend", None),
    "/get_hicache_l3_cache_layout": None,
    "/parse_function_call": (
        "POST",
        "/parse_function_call",
        {"text": "hello", "tools": [], "tool_call_parser": "llama3"},
    ),
    "/separate_reasoning": (
        "POST",
        "/separate_reasoning",
        {"text": "<think>a</think>b", "reasoning_parser": "deepseek-r1"},
    ),
    "/v1/tokenize": ("POST", "/v1/tokenize", {"model": "m", "prompt": "hello"}),
    "/tokenize": ("POST", "/tokenize", {"model": "m", "prompt": "hello"}),
    "/v1/detokenize": ("POST", "/v1/detokenize", {"model": "m", "tokens": [5, 6]}),
    "/detokenize": ("POST", "/detokenize", {"model": "m", "tokens": [5, 6]}),
    "/": ("GET", "/", None),
    "/v1/messages/count_tokens": (
        "POST",
        "/v1/messages/count_tokens",
        {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    ),
    "/api/tags": ("GET", "/api/tags", None),
    "/api/show": ("POST", "/api/show", {"model": "m"}),
}


@contextmanager
def slowed_down(client: Client) -> Iterator[None]:
    """Chunks that take long enough to be met in the middle of a prompt."""
    assert pool(client, "/slow_down", {"forward_sleep_time": SLEEP_S}).status_code == 200
    try:
        yield
    finally:
        assert pool(client, "/slow_down", {"forward_sleep_time": 0}).status_code == 200


@contextmanager
def long_request(client: Client, tokens: list[int]) -> Iterator[Future[Answer]]:
    """A request whose second chunk has started."""
    before = chunks_started(client, POOL_SIZE)
    with slowed_down(client), ThreadPoolExecutor(1) as threads:
        job = threads.submit(client.pool, tokens, PLAN)
        assert until(lambda: chunks_started(client, POOL_SIZE) >= before + 2)
        yield job
        job.result()


@pytest.mark.parametrize(
    "row", [row for row in ENDPOINTS if row.effect is Effect.REFUSED], ids=lambda row: row.path
)
def test_what_the_pool_cannot_do_is_refused_at_once(client: Client, row: Endpoint) -> None:
    tried = 0
    for method in row.methods or ("GET", "POST"):
        response = call(client, "prefill", method, row.path, {})
        if response.status_code in (404, 405):
            continue  # SGLang takes the path by another method only
        tried += 1
        assert response.status_code == 400, response.text
        assert row.pool in words(response)
    assert tried
    assert call(client, "prefill", "GET", "/cdsp/status").status_code == 200


def test_every_endpoint_that_is_read_is_asked() -> None:
    assert {row.path for row in ENDPOINTS if row.test == READS} == QUESTIONS.keys()


@pytest.mark.parametrize("path", [path for path, question in QUESTIONS.items() if question])
def test_what_is_read_is_as_in_stock(client: Client, path: str) -> None:
    question = QUESTIONS[path]
    assert question is not None
    stock, ours = (call(client, server, *question) for server in ("single", "prefill"))
    assert ours.status_code == stock.status_code, ours.text
    if not stock.text.startswith("{"):
        assert ours.text == stock.text
    else:
        assert stock.json().keys() <= ours.json().keys()


def test_a_pause_ends_chunks_and_holds_the_rest(client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 301)
    stock = client.stock(tokens)
    for mode in ("in_place", "retract"):
        free = client.free_tokens()
        before = chunks_started(client, POOL_SIZE)
        with long_request(client, tokens) as job:
            assert pool(client, "/pause_generation", {"mode": mode}).status_code == 200
            # A question to the instances goes behind the pause: they have taken it.
            client.pool_states()
            held = chunks_started(client, POOL_SIZE)
            assert held < before + len(PLAN), "the pause came too late to tell"
            for _ in range(10):
                client.pool_states()
                time.sleep(SLEEP_S / 5)
            assert chunks_started(client, POOL_SIZE) == held
            assert not job.done()
            assert pool(client, "/continue_generation", {}).status_code == 200
            difference(stock, job.result(), TOLERANCE)
        assert chunks_started(client, POOL_SIZE) == before + len(PLAN)
        assert client.wait_free(free) == free


def test_a_pause_that_aborts_ends_all_requests(client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 302)
    free = client.free_tokens()
    before = chunks_started(client, POOL_SIZE)
    with slowed_down(client), ThreadPoolExecutor(1) as threads:
        plan = {"custom_params": {"cdsp_plan": PLAN}}
        job = threads.submit(
            client.generate, client.servers.url, tokens, sampling_params=plan, rid="paused"
        )
        assert until(lambda: chunks_started(client, POOL_SIZE) >= before + 2)
        assert pool(client, "/pause_generation", {"mode": "abort"}).status_code == 200
        assert job.result().status_code >= 400
        assert pool(client, "/continue_generation", {}).status_code == 200
    assert chunks_started(client, POOL_SIZE) < before + len(PLAN)
    difference(client.stock(tokens), client.pool(tokens, PLAN), TOLERANCE)
    assert client.wait_free(free) == free


def test_a_flush_is_one_decision_for_the_pool(client: Client, checkpoint: Path) -> None:
    assert until(lambda: in_hand(client) == 0)
    for server in ("single", "prefill"):
        assert call(client, server, "POST", "/flush_cache").status_code == 200
    tokens = text_tokens(checkpoint, TOKENS, 303)
    before = chunks_started(client, POOL_SIZE)
    with long_request(client, tokens) as job:
        refused = pool(client, "/flush_cache")
        assert refused.status_code == 400
        assert "requests are in the pool" in refused.text
        assert pool(client, "/flush_cache?timeout=60").status_code == 200
        assert chunks_started(client, POOL_SIZE) == before + len(PLAN), "it waited for them"
    difference(client.stock(tokens), job.result(), TOLERANCE)


def test_slowed_down_chunks_take_longer(client: Client, checkpoint: Path, plan_log: Path) -> None:
    rid = "slowed-down"
    with slowed_down(client):
        client.pool(text_tokens(checkpoint, 200, 304), [(100, ALL), (100, ALL)], rid=rid)

    def lines() -> list[dict[str, Any]]:
        found = map(json.loads, plan_log.read_text(encoding="utf-8").splitlines())
        return [line for line in found if line["rid"] == rid]

    assert until(lambda: bool(lines()))
    for chunk in lines()[0]["chunks"]:
        assert chunk["end_s"] - chunk["start_s"] >= SLEEP_S


def test_a_profile_that_cannot_be_made_is_refused(
    client: Client, checkpoint: Path, tmp_path: Path
) -> None:
    assert call(client, "single", "POST", "/stop_profile").status_code == 500, "in bare words"
    refused = pool(client, "/stop_profile")
    assert refused.status_code == 400
    assert "not in progress" in words(refused)
    file = tmp_path / "a file"
    file.touch()
    body: dict[str, Any] = {"output_dir": str(file / "profile"), "activities": ["CPU"]}
    assert pool(client, "/start_profile", body).status_code == 200
    again = pool(client, "/start_profile", body)
    assert again.status_code == 400
    assert "/stop_profile" in words(again)
    lost = pool(client, "/stop_profile")
    assert lost.status_code == 400
    assert "output_dir must be writable" in words(lost)
    body["num_steps"] = 1
    assert pool(client, "/start_profile", body).status_code == 200
    tokens = text_tokens(checkpoint, 300, 305)
    for _ in range(3):
        client.pool(tokens, [(100, ALL), (200, ALL)])
    body["output_dir"] = str(tmp_path / "good")
    assert pool(client, "/start_profile", body).status_code == 200, "the one that failed is over"
    for _ in range(2):
        client.pool(tokens, [(100, ALL), (200, ALL)])
    assert until(lambda: len(list(tmp_path.rglob("*.json.gz"))) == POOL_SIZE)


def test_logging_is_configured(client: Client, checkpoint: Path) -> None:
    body = {"log_level": "loud"}
    assert call(client, "single", "POST", "/configure_logging", body).status_code == 500
    refused = pool(client, "/configure_logging", body)
    assert refused.status_code == 400
    assert "LOUD" in words(refused)
    for server in ("single", "prefill"):
        on = {"log_requests": True, "log_requests_level": 0, "log_level": "info"}
        assert call(client, server, "POST", "/configure_logging", on).status_code == 200
    rid = "logged-request"
    tokens = text_tokens(checkpoint, 100, 306)
    client.pool(tokens, rid=rid)
    client.stock(tokens, rid=rid)
    for server in ("single", "prefill"):
        off = {"log_requests": False}
        assert call(client, server, "POST", "/configure_logging", off).status_code == 200
        assert rid in client.servers.servers[server].log.read_text(errors="replace")


def test_a_few_options_are_set(client: Client) -> None:
    path = "/set_internal_state"
    for body, done in (
        ({"server_args": {"nonsense": 1}}, False),
        ({"server_args": {"speculative_accept_threshold_acc": 1.0}}, True),
    ):
        assert call(client, "single", "POST", path, body).json() == [done]
        assert pool(client, path, body).json() == [done] * POOL_SIZE
    wrong = {"server_args": {"pp_max_micro_batch_size": "many"}}
    for server in ("single", "prefill"):
        assert call(client, server, "POST", path, wrong).status_code == 400
