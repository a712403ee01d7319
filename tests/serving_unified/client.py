"""What the tests of one server ask of it."""

from __future__ import annotations

import time
from typing import Any

import requests

from tests.serving.client import Client


class OneServerClient(Client):
    """Requests to one pool that prefills and decodes, and to a stock server."""

    def states(self) -> list[dict[str, Any]]:
        """CDSP's part of ``/server_info``, per instance."""
        info = requests.get(f"{self.servers.urls['pool']}/server_info", timeout=30).json()
        return [state["cdsp"] for state in info["internal_states"]]

    def unused(self) -> list[int]:
        """KV slots of every instance that are free, or cached for whoever comes."""
        return [int(s["free_tokens"]) + int(s["cached_tokens"]) for s in self.states()]

    def wait_unused(self, expected: list[int], timeout_s: float = 10.0) -> list[int]:
        """Poll until the unused slots are as expected; returns the last reading."""
        deadline = time.monotonic() + timeout_s
        while (found := self.unused()) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def post(self, path: str, body: Any = None) -> requests.Response:
        """POST to the pool."""
        return requests.post(f"{self.servers.urls['pool']}{path}", json=body, timeout=120)
