"""The ways a prompt takes through the pool, for tests that compare each with stock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import requests

from tests.serving.client import Client, Plan

WAYS = ("forced", "planned", "turn")
"""Chunks on several instances; whatever the policy says; SGLang's own path on one instance."""


def plan_of(way: str, tokens: int) -> Plan | None:
    """The plan to demand for a prompt, None to leave it to the policy."""
    if way == "planned":
        return None
    if way == "turn":
        return [(tokens, [2])]
    third = tokens // 3
    return [(third, [1]), (third, [1, 2]), (tokens - 2 * third, [1, 2, 0, 3])]


def sampling(way: str, tokens: int, **options: Any) -> dict[str, Any]:
    """Sampling parameters of a request that goes that way; greedy unless ``options`` say other."""
    plan = plan_of(way, tokens)
    custom = {} if plan is None else {"cdsp_plan": plan}
    custom |= options.pop("custom_params", {})
    return {
        "temperature": 0,
        "max_new_tokens": 8,
        "ignore_eos": True,
        **options,
        **({"custom_params": custom} if custom else {}),
    }


def post(url: str, path: str, body: Mapping[str, Any]) -> Any:
    """POST and read the answer; the last event of a stream, with ``events`` of them.

    Raises:
        AssertionError: with the server's words if it refuses.
    """
    response = requests.post(f"{url}/{path}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def generate(client: Client, server: str, body: Mapping[str, Any]) -> Any:
    """``/generate`` of a server by name: "router" is the pool, "single" is stock."""
    return post(client.servers.urls[server], "generate", body)


def same(stock: Any, ours: Any, where: str = "answer") -> None:
    """Equal but for ids, times and cache counts; numbers within a thousandth."""
    if isinstance(stock, dict):
        for name in (stock.keys() | ours.keys()) - VARYING:
            assert name in stock, f"{where} has {name}, stock has not"
            assert name in ours, f"{where} lacks {name}"
            same(stock[name], ours[name], f"{where}.{name}")
    elif isinstance(stock, list):
        assert len(stock) == len(ours), f"{where}: {ours} for {stock}"
        for index, (left, right) in enumerate(zip(stock, ours, strict=True)):
            same(left, right, f"{where}[{index}]")
    elif isinstance(stock, float):
        assert ours == pytest.approx(stock, abs=1e-3), where
    else:
        assert ours == stock, f"{where}: {ours!r} for {stock!r}"


VARYING = {
    *("id", "created", "e2e_latency", "cached_tokens", "cached_tokens_details", "dp_rank"),
    *("prompt_tokens_details", "decode_throughput", "response_sent_to_client_ts"),
    # Times that servers with --enable-metrics add.
    *("request_received_ts", "first_token_latency", "api_server_dispatch_finish_ts"),
    *("request_finished_ts", "forward_entry_time", "prefill_finished_time", "queue_time"),
}
