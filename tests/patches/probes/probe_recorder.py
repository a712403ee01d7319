"""What the endpoints of the expert recorder do on a server with and without a recorder."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sglang.srt.entrypoints import http_server

ENDPOINTS = ("start", "stop", "dump")


def run() -> dict[str, Any]:
    """By recorder mode and endpoint, the status and how often the schedulers were asked."""
    return {
        name: {endpoint: _ask(endpoint, mode) for endpoint in ENDPOINTS}
        for name, mode in (("without", None), ("with", "stat"))
    }


def _ask(endpoint: str, mode: str | None) -> list[int]:
    asked = 0

    async def schedulers() -> None:
        nonlocal asked
        asked += 1

    manager = SimpleNamespace(**{f"{endpoint}_expert_distribution_record": schedulers})
    moe = SimpleNamespace(expert_distribution_recorder_mode=mode)
    call = getattr(http_server, f"{endpoint}_expert_distribution_record_async")
    with (
        mock.patch.object(http_server, "_global_state", SimpleNamespace(tokenizer_manager=manager)),
        mock.patch.object(http_server, "get_exec", return_value=SimpleNamespace(moe=moe)),
    ):
        response = asyncio.run(call())
    return [int(response.status_code), asked]
