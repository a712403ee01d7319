"""``/cdsp/status`` and ``/cdsp/update``."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.serving.client import Client
from tests.serving.conftest import POOL_SIZE


def status(client: Client) -> dict[str, Any]:
    response = requests.get(f"{client.servers.urls['prefill']}/cdsp/status", timeout=10)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def update(client: Client, body: Any) -> requests.Response:
    return requests.post(f"{client.servers.urls['prefill']}/cdsp/update", json=body, timeout=10)


def test_status_shows_pool_model_and_regulation(client: Client) -> None:
    found = status(client)
    assert found["policy"] == "cdsp-late"
    assert len(found["pool"]["queue_s"]) == POOL_SIZE
    assert set(found["latency_model"]["sp"]) == {"1", "2", "4"}
    assert found["regulation"]["sp_size_candidates"] == [1, 2, 4]
    assert "correction" in found


def test_update_changes_the_rate_without_restart(client: Client) -> None:
    before = status(client)["regulation"]
    body = {"improvement_rate_mapping": {"0": 0.3, "2.5": 0.6}, "improvement_rate_update_period": 5}
    try:
        response = update(client, body)
        assert response.status_code == 200, response.text
        now = status(client)["regulation"]
        assert now["improvement_rate_mapping"] == {"0.0": 0.3, "2.5": 0.6}
        assert now["improvement_rate_update_period"] == 5
        assert now["improvement_rate"] in (0.3, 0.6)
    finally:
        names = ("improvement_rate_mapping", "improvement_rate_update_period")
        assert update(client, {name: before[name] for name in names}).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"improvement_rate_mapping": {"1": 1.5}}, "[0, 1)"),
        ({"sp_size_candidates": [3]}, "not one of the SP sizes"),
        ({"speed": 11}, "unknown key"),
        ({}, "empty"),
        ([1, 2], "object"),
    ],
)
def test_a_bad_update_changes_nothing(body: Any, words: str, client: Client) -> None:
    before = status(client)["regulation"]
    response = update(client, body)
    assert response.status_code == 400
    assert words in response.text
    after = status(client)["regulation"]
    names = ("improvement_rate_mapping", "sp_size_candidates", "improvement_rate_update_period")
    assert {n: after[n] for n in names} == {n: before[n] for n in names}
