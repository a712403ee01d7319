"""Weights and memory change while chunks run; each answer is of one set of weights, as in stock."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cdsp.testing.checkpoint import write_checkpoint
from tests.serving.asking import call, chunks_started, pool, until, words
from tests.serving.client import Client, difference, read, text_tokens
from tests.serving_two.conftest import POOL_SIZE

TOLERANCE = 1e-3
BOTH = [0, 1]
PLAN = [(100, [0]), *[(100, BOTH)] * 5, (40, BOTH)]
TOKENS = sum(tokens for tokens, _ in PLAN)
SLEEP_S = 0.3
WEIGHT = "model.norm.weight"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape with other weights."""
    return write_checkpoint(tmp_path_factory.mktemp("other"), seed=1)


@contextmanager
def in_the_middle(client: Client, tokens: list[int], **fields: Any) -> Iterator[Future[Any]]:
    """A request some of whose chunks have run; to its response."""
    before = chunks_started(client, POOL_SIZE)
    sampling = {"custom_params": {"cdsp_plan": PLAN}}
    assert pool(client, "/slow_down", {"forward_sleep_time": SLEEP_S}).status_code == 200
    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(
            client.generate, client.servers.url, tokens, sampling_params=sampling, **fields
        )
        try:
            assert until(lambda: chunks_started(client, POOL_SIZE) > before)
            assert not job.done()
            yield job
        finally:
            job.result()
            assert pool(client, "/slow_down", {"forward_sleep_time": 0}).status_code == 200


def load(client: Client, server: str, weights: Path, **fields: Any) -> requests.Response:
    """Load weights from a folder."""
    body = {"model_path": str(weights), **fields}
    response = call(client, server, "POST", "/update_weights_from_disk", body)
    assert isinstance(response, requests.Response)
    return response


def load_everywhere(client: Client, weights: Path) -> None:
    for server in ("prefill", "decode", "single"):
        response = load(client, server, weights)
        assert response.status_code == 200, response.text


def test_new_weights_come_while_chunks_run(client: Client, checkpoint: Path, other: Path) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 401)
    old = client.stock(tokens)
    with in_the_middle(client, tokens) as job:
        load_everywhere(client, other)
    difference(old, read(job.result()), TOLERANCE)
    new = client.stock(tokens)
    assert new.tokens != old.tokens, "the weights make no difference"
    difference(new, client.pool(tokens, PLAN), TOLERANCE)
    difference(new, client.pool(tokens, [(TOKENS, [1])]), TOLERANCE)
    body = {"name": WEIGHT, "truncate_size": 8}
    stock = call(client, "single", "POST", "/get_weights_by_name", body).json()
    assert pool(client, "/get_weights_by_name", body).json() == [stock] * POOL_SIZE
    load_everywhere(client, checkpoint)
    difference(old, client.pool(tokens, PLAN), TOLERANCE)


def test_weights_are_checked_as_in_stock(client: Client) -> None:
    """SGLang's checker asks CUDA; without it every server says so."""
    stock, ours = (
        call(client, s, "POST", "/weights_checker").json() for s in ("single", "prefill")
    )
    assert ours["success"] is stock["success"]
    assert ours.keys() == stock.keys()
    if stock["success"]:
        assert len(ours["ranks"]) == POOL_SIZE
        assert {rank["per_gpu_checksum"] for rank in ours["ranks"]} == {
            stock["ranks"][0]["per_gpu_checksum"]
        }


def test_aborted_chunks_end_before_new_weights(
    client: Client, checkpoint: Path, other: Path
) -> None:
    """SGLang takes the pool for idle once clients are answered, and its chunks still run."""
    tokens = text_tokens(checkpoint, TOKENS, 402)
    old = client.stock(tokens)
    for pause in (False, True):
        with in_the_middle(client, tokens, rid=f"aborted-{pause}") as job:
            if pause:
                assert pool(client, "/pause_generation", {"mode": "abort"}).status_code == 200
            response = load(client, "prefill", other, abort_all_requests=True)
            assert response.status_code == 200, response.text
            assert pool(client, "/continue_generation", {}).status_code == 200
            assert job.result().status_code >= 400
        assert load(client, "prefill", checkpoint).status_code == 200
        difference(old, client.pool(tokens, PLAN), TOLERANCE)


def test_paused_chunks_keep_their_kv(client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 403)
    with in_the_middle(client, tokens) as job:
        assert pool(client, "/pause_generation", {"mode": "in_place"}).status_code == 200
        refused = load(client, "prefill", checkpoint)
        assert refused.status_code == 400
        assert "/continue_generation" in refused.text
        assert load(client, "prefill", checkpoint, flush_cache=False).status_code == 200
        assert pool(client, "/continue_generation", {}).status_code == 200
        assert job.result().status_code == 200


def test_weights_that_are_not_there_change_nothing(client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 404)
    stock = client.stock(tokens)
    for server in ("single", "prefill"):
        response = load(client, server, checkpoint / "nothing")
        assert response.status_code == 400
        assert not response.json()["success"]
    difference(stock, client.pool(tokens, PLAN), TOLERANCE)


def test_a_weight_version_is_told(client: Client) -> None:
    body = {"new_version": "second", "abort_all_requests": False}
    for server in ("single", "prefill"):
        assert call(client, server, "POST", "/update_weight_version", body).status_code == 200
        info = call(client, server, "GET", "/model_info").json()
        assert info["weight_version"] == "second"


def test_memory_is_released_and_comes_back(client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 405)
    stock = client.stock(tokens)
    release, resume = "/release_memory_occupation", "/resume_memory_occupation"
    # Each of these ends a stock server.
    assert "not released" in words(pool(client, resume, {}))
    with in_the_middle(client, tokens) as job:
        refused = pool(client, release, {})
        assert refused.status_code == 400
        assert "requests are in the pool" in words(refused)
        assert job.result().status_code == 200
    for tags in ([], ["kv_cache"], ["weights"]):
        body = {"tags": tags} if tags else {}
        assert pool(client, release, body).status_code == 200
        assert pool(client, release, body).status_code == 400, "released already"
        with ThreadPoolExecutor(1) as threads:
            job = threads.submit(client.generate, client.servers.url, tokens)
            assert until(lambda: len(call(client, "prefill", "GET", "/v1/loads").json()) > 0)
            assert call(client, "prefill", "GET", "/cdsp/status").status_code == 200
            assert not job.done()
            assert pool(client, resume, body).status_code == 200
            assert job.result().status_code == 200
        difference(stock, client.pool(tokens, PLAN), TOLERANCE)


def test_the_dumper_is_reached(client: Client) -> None:
    for server, count in (("single", 1), ("prefill", POOL_SIZE)):
        states = call(client, server, "POST", "/dumper/get_state", {})
        assert states.status_code == 200, states.text
        assert len(states.json()) == count
