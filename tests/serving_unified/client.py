"""What the tests of one server ask of it."""

from __future__ import annotations

from typing import Any

import requests

from tests.serving.client import Client


class OneServerClient(Client):
    """Requests to one pool that prefills and decodes, and to a stock server."""

    one_server = True

    def free_tokens(self) -> list[int]:
        """KV slots of every instance that are free, or cached for whoever comes."""
        states = self.pool_states()
        return [int(state["free_tokens"]) + int(state["cached_tokens"]) for state in states]

    def post(self, path: str, body: Any = None) -> requests.Response:
        """POST to the pool."""
        return requests.post(f"{self.servers.urls['pool']}{path}", json=body, timeout=120)
