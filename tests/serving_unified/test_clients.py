"""What else clients of a single server ask: frontend programs, scores, health and lists."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.shared.frontend import branched, chosen
from tests.serving.ways import post, same
from tests.serving_unified.client import OneServerClient

CURL = Path(__file__).parents[2] / "examples" / "curl.sh"
TEXT = "The import system looks up modules by name. " * 12
SCORE = {
    "model": "any",
    "query": TEXT,
    "items": ["Names", "Numbers and loops"],
    "label_token_ids": [77, 901],
    "apply_softmax": True,
}


def urls(client: OneServerClient) -> tuple[str, str]:
    """The pool and the stock server."""
    return client.servers.urls["pool"], client.servers.urls["single"]


def test_select_chooses_as_stock_does(client: OneServerClient) -> None:
    pool, stock = urls(client)
    (choice, scores), (expected, expected_scores) = chosen(pool), chosen(stock)
    assert scores == pytest.approx(expected_scores, abs=1e-3)
    assert choice == expected


def test_a_program_that_forks_comes_to_the_same_text(client: OneServerClient) -> None:
    pool, stock = urls(client)
    assert branched(pool) == branched(stock)


def test_scores_are_stocks(client: OneServerClient) -> None:
    ours, expected = (post(url, "v1/score", SCORE) for url in urls(client))
    assert len(expected["scores"]) == 2
    same(expected["scores"], ours["scores"], "scores")


@pytest.mark.parametrize("path", ["health", "health_generate", "v1/models", "model_info"])
def test_lists_and_health(path: str, client: OneServerClient) -> None:
    answers = [requests.get(f"{url}/{path}", timeout=60) for url in urls(client)]
    assert [answer.status_code for answer in answers] == [200, 200]
    if path.startswith("health"):
        return
    ours, expected = (answer.json() for answer in answers)
    same(expected, ours, path)


@pytest.mark.parametrize("path", ["encode", "classify", "v1/embeddings", "v1/rerank"])
def test_entries_of_other_models_answer_as_stocks(path: str, client: OneServerClient) -> None:
    body: dict[str, Any] = {"model": "any", "input": "a", "text": "a", "query": "a"}
    body |= {"documents": ["b", "c"]}
    ours, expected = (
        requests.post(f"{url}/{path}", json=body, timeout=60).status_code for url in urls(client)
    )
    assert ours == expected >= 400


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_example_shows_the_pools_status(client: OneServerClient) -> None:
    done = subprocess.run(
        [str(CURL), urls(client)[0]], capture_output=True, text=True, timeout=120, check=True
    )
    status = json.loads(done.stdout.splitlines()[-1])
    assert len(status["pool"]["queue_s"]) == len(client.pool_states())
