"""What the tests of prefix reuse before a decode server ask."""

from __future__ import annotations

import time
from typing import Any

import requests

from sglang_cdsp.testing.stack import RunningStack
from tests.serving.client import Answer, Client, read

OUTPUT = 8
LIMIT: dict[str, Any] = {"sampling_params": {"max_new_tokens": OUTPUT}}


class ReusingClient(Client):
    """Requests to a pool that reuses prefixes.

    Attributes:
        decode_reuses: the decode server does, too.
    """

    def __init__(self, servers: RunningStack, *, decode_reuses: bool) -> None:
        super().__init__(servers)
        self.decode_reuses = decode_reuses

    def free_tokens(self) -> list[int]:
        """KV slots of every instance that are free, or cached for whoever comes."""
        states = self.pool_states()
        return [int(state["free_tokens"]) + int(state["cached_tokens"]) for state in states]

    def prefixes(self) -> dict[str, Any]:
        """What the controller knows of caches."""
        url = f"{self.servers.urls['prefill']}/cdsp/status"
        shown: dict[str, Any] = requests.get(url, timeout=30).json()["prefixes"]
        return shown

    def ask(self, prompt: list[int], **fields: Any) -> tuple[Answer, int]:
        """The pool's answer, by a plan of its own, and how many tokens were cached."""
        response = self.generate(self.servers.url, prompt, **{**LIMIT, **fields})
        return read(response), int(response.json()["meta_info"]["cached_tokens"])

    def settled(self, capacity: list[int]) -> list[int]:
        """Cached tokens by instance once nothing runs, and the index knows what the trees have."""
        assert self.wait_free(capacity) == capacity, "no slot and no lock is left over"
        trees: list[int] = []
        for _ in range(100):
            trees = [int(state["cached_tokens"]) for state in self.pool_states()]
            if self.prefixes()["pages_by_instance"] == trees:
                return trees
            time.sleep(0.1)
        raise AssertionError(f"{self.prefixes()} is not what the trees have: {trees}")

    def flush(self, capacity: list[int]) -> None:
        """Empty all caches, decode's too."""
        self.settled(capacity)
        for server in ("prefill", "decode"):
            url = f"{self.servers.urls[server]}/flush_cache?timeout=10"
            assert requests.post(url, timeout=30).status_code == 200
        for _ in range(50):
            if not sum(self.prefixes()["pages_by_instance"]):
                return
            time.sleep(0.1)
        raise AssertionError("the index has not forgotten what was flushed")
