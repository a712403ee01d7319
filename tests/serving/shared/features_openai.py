"""OpenAI's completions and chat through the router, each on every way through the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import Client, text_tokens
from tests.serving.ways import WAYS, plan_of, post, same

TEXT = "The import system looks up modules by name. " * 12
BASE = {"model": "any", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"enum": ["alpha", "beta"]}},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True, "stream_options": {"include_usage": True}},
    "logprobs": {"logprobs": 3},
    "echo": {"echo": True},
    "stop": {"stop": ["e", "o"], "max_tokens": 40},
    "logit_bias": {"logit_bias": {"77": 100}},
    "response_format": {"response_format": SCHEMA, "ignore_eos": False},
    "seed": {"seed": 3},
}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True, "stream_options": {"include_usage": True}},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "stop": {"stop": "e", "max_tokens": 40},
    "response_format": {"response_format": SCHEMA, "ignore_eos": False},
    "tools": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    },
    "seed": {"seed": 3},
}
MESSAGES = [
    {"role": "system", "content": "You know Python's manual."},
    {"role": "user", "content": TEXT},
    {"role": "assistant", "content": "It does."},
    {"role": "user", "content": "What about packages?"},
]


def ask(client: Client, server: str, path: str, body: dict[str, Any], way: str, length: int) -> Any:
    """Send a body to a server; to the pool with the plan of ``way``."""
    plan = plan_of(way, length) if server == "router" else None
    custom = {"custom_params": {"cdsp_plan": plan}} if plan is not None else {}
    return post(client.servers.urls[server], path, {**BASE, **body, **custom})


@pytest.fixture(scope="module")
def lengths(client: Client) -> dict[str, int]:
    """Tokens of the two prompts, as the server's tokenizer and chat template make them."""
    text = ask(client, "single", "v1/completions", {"prompt": TEXT}, "planned", 0)
    chat = ask(client, "single", "v1/chat/completions", {"messages": MESSAGES}, "planned", 0)
    return {
        "v1/completions": text["usage"]["prompt_tokens"],
        "v1/chat/completions": chat["usage"]["prompt_tokens"],
    }


def compare(client: Client, path: str, body: dict[str, Any], length: int) -> None:
    expected = ask(client, "single", path, body, "planned", 0)
    for way in WAYS:
        answer = ask(client, "router", path, body, way, length)
        if body.get("stream"):
            # How tokens fall into events depends on when they come; joined they are the same.
            assert len(answer) > 3
            same(joined(expected), joined(answer), way)
            same(expected[-1]["usage"], answer[-1]["usage"], way)
        else:
            same(expected, answer, way)


def joined(events: list[Any]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(name: str, client: Client, lengths: dict[str, int]) -> None:
    path = "v1/completions"
    compare(client, path, {"prompt": TEXT, **COMPLETIONS[name]}, lengths[path])


def test_completions_of_token_ids(client: Client, checkpoint: Path) -> None:
    compare(client, "v1/completions", {"prompt": text_tokens(checkpoint, 300, 4)}, 300)


def test_completions_of_several_prompts(client: Client, checkpoint: Path) -> None:
    prompts = [text_tokens(checkpoint, 300, seed) for seed in (5, 6, 7)]
    compare(client, "v1/completions", {"prompt": prompts}, 300)


@pytest.mark.parametrize("name", CHATS)
def test_chat(name: str, client: Client, lengths: dict[str, int]) -> None:
    path = "v1/chat/completions"
    compare(client, path, {"messages": MESSAGES, **CHATS[name]}, lengths[path])
