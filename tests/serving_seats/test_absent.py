"""SGLang's control endpoints while an instance is absent, and while one is lost.

SGLang waits for an answer of every instance, without a time-out.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cdsp.control.table import ENDPOINTS, Effect, Endpoint
from sglang_cdsp.testing.checkpoint import write_checkpoint
from tests.serving.asking import call, pool, words
from tests.serving.client import Client, difference, text_tokens
from tests.serving_seats.seats import scheduler, states, until

TOLERANCE = 1e-3
PLAN = [(100, [0]), (140, [0, 1])]
TOKENS = 240
WEIGHT = {"name": "model.norm.weight", "truncate_size": 8}
WITHIN_S = 20.0
UP = ["up", "up"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape with other weights."""
    return write_checkpoint(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def one_absent(client: Client) -> Iterator[None]:
    """Instance 1 has been asked to leave; it comes back afterwards."""
    wish(client, "drain")
    until(lambda: states(client)[1] == "down")
    yield
    wish(client, "start")
    until(lambda: states(client) == UP)


def wish(client: Client, what: str) -> None:
    response = pool(client, "/cdsp/update", {"seats": {"1": what}})
    assert response.status_code == 200, response.text


def ask(client: Client, path: str, body: Any = None, method: str = "POST") -> requests.Response:
    """Ask the pool, which must answer in time."""
    url = f"{client.servers.urls['prefill']}{path}"
    return requests.request(method, url, json=body, timeout=WITHIN_S)


def instances(response: requests.Response) -> list[tuple[int | None, bool]]:
    """By entry of ``/server_info``: whose it is where that is said, and whether it is absent."""
    found = [state["cdsp"] for state in response.json()["internal_states"]]
    return [(cdsp.get("instance"), "absent" in cdsp) for cdsp in found]


ASKED: dict[str, Any] = {
    "/pause_generation": {"mode": "in_place"},
    "/continue_generation": {},
    "/slow_down": {"forward_sleep_time": 0},
    "/update_weight_version": {"new_version": "default", "abort_all_requests": False},
    "/get_weights_by_name": WEIGHT,
    "/weights_checker": {"action": "checksum"},
    "/start_profile": {"num_steps": 1, "activities": ["CPU"]},
    "/set_internal_state": {"server_args": {"pp_max_micro_batch_size": 8}},
    "/configure_logging": {"log_requests": False},
    "/abort_request": {"rid": "nobody"},
}
"""What endpoints are asked with; those about weights and memory have tests of their own."""

APART = {
    *("/update_weights_from_disk", "/release_memory_occupation", "/resume_memory_occupation"),
    *("/health", "/health_generate", "/stop_profile", "/dumper/{method}"),
}


def asked_alone(row: Endpoint) -> bool:
    """Whether an endpoint is asked here, one after the other."""
    reads = row.effect in (Effect.STOCK, Effect.QUIET) and "{" not in row.path
    return reads and row.path not in APART and "without the model" not in row.stock


def test_every_endpoint_answers_with_an_instance_absent(client: Client, one_absent: None) -> None:
    for row in filter(asked_alone, ENDPOINTS):
        body = ASKED.get(row.path)
        method = "POST" if body is not None else "GET"
        if row.path in ("/flush_cache", "/freeze_gc"):
            method = "POST"
        response = ask(client, row.path, body, method)
        fine = response.status_code < 500
        assert fine, f"{row.path}: {response.status_code} {response.text[:300]}"
    assert ask(client, "/continue_generation", {}).status_code == 200
    assert instances(ask(client, "/server_info", method="GET"))[-1] == (1, True)
    assert ask(client, "/flush_cache").status_code == 200
    first, second = ask(client, "/get_weights_by_name", WEIGHT).json()
    assert first
    assert second is None
    (load,) = ask(client, "/v1/loads", method="GET").json()["loads"]
    assert load["num_total_tokens"] == 0
    refused = ask(client, "/open_session", {"capacity_of_str_len": 1})
    assert refused.status_code == 400
    assert "is not served with --cdsp" in words(refused)


def test_new_weights_reach_an_instance_that_comes_back(
    client: Client, checkpoint: Path, other: Path
) -> None:
    tokens = text_tokens(checkpoint, TOKENS, 411)
    old = client.stock(tokens)
    wish(client, "drain")
    until(lambda: states(client)[1] == "down")
    for server in ("prefill", "decode", "single"):
        response = call(
            client, server, "POST", "/update_weights_from_disk", {"model_path": str(other)}
        )
        assert response.status_code == 200, response.text
    wish(client, "start")
    until(lambda: states(client) == UP)
    new = client.stock(tokens)
    assert new.tokens != old.tokens, "the weights make no difference"
    difference(new, client.pool(tokens, PLAN), TOLERANCE)
    difference(new, client.pool(tokens, [(TOKENS, [1])]), TOLERANCE)
    first, second = ask(client, "/get_weights_by_name", WEIGHT).json()
    assert first == second
    for server in ("prefill", "decode", "single"):
        body = {"model_path": str(checkpoint)}
        assert call(client, server, "POST", "/update_weights_from_disk", body).status_code == 200
    difference(old, client.pool(tokens, PLAN), TOLERANCE)


def test_weights_that_are_gone_keep_the_seat_down(
    client: Client, checkpoint: Path, tmp_path: Path
) -> None:
    """It would compute with others than the rest of its group."""
    folder = write_checkpoint(tmp_path / "weights", seed=1)
    assert ask(client, "/update_weights_from_disk", {"model_path": str(folder)}).status_code == 200
    for file in folder.glob("*.safetensors"):
        file.unlink()
    scheduler(client, 1).kill()
    until(lambda: states(client)[1] == "down" and "start" in reason(client))
    assert "instance 1" in reason(client)
    assert ask(client, "/health", method="GET").status_code == 200
    body = {"model_path": str(checkpoint)}
    assert ask(client, "/update_weights_from_disk", body).status_code == 200
    wish(client, "start")
    until(lambda: states(client) == UP)
    tokens = text_tokens(checkpoint, TOKENS, 412)
    difference(client.stock(tokens), client.pool(tokens, PLAN), TOLERANCE)


def reason(client: Client) -> str:
    found = call(client, "prefill", "GET", "/cdsp/status").json()["seats"][1]["reason"]
    return str(found or "")


@pytest.mark.parametrize(
    "question",
    [
        lambda client: ask(client, "/server_info", method="GET"),
        lambda client: ask(client, "/flush_cache"),
        lambda client: ask(client, "/get_weights_by_name", WEIGHT),
        lambda client: ask(client, "/slow_down", {"forward_sleep_time": 0}),
    ],
    ids=["server_info", "flush_cache", "get_weights_by_name", "slow_down"],
)
def test_a_question_that_is_under_way_when_an_instance_is_lost_is_answered(
    client: Client, question: Callable[[Client], requests.Response]
) -> None:
    wish(client, "start")  # earlier deaths do not count
    scheduler(client, 1).send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(question, client)
        response = job.result(timeout=WITHIN_S)
    assert response.status_code == 200, response.text
    until(lambda: states(client) == UP)
    assert instances(ask(client, "/server_info", method="GET")) == [(None, False)] * 2
    assert len(ask(client, "/get_weights_by_name", WEIGHT).json()) == 2
