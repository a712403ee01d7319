"""What the serving tests ask of the servers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from sglang_cdsp.testing.answers import TOP, Answer, compare
from sglang_cdsp.testing.prompts import cut_ids
from sglang_cdsp.testing.stack import RunningStack

__all__ = ["FAKE_HOST", "TOP", "Answer", "Client", "Plan", "difference", "read", "text_tokens"]

FAKE_HOST = "2.2.2.2"
Plan = list[tuple[int, list[int]]]
Demanded = Plan | dict[str, Any]
"""A plan, or one with plans for its rest."""


class Client:
    """Requests to the servers of one test session.

    Attributes:
        one_server: the pool decodes itself.
    """

    one_server = False

    def __init__(self, servers: RunningStack) -> None:
        """``servers`` as the fixture starts them."""
        self.servers = servers

    def generate(self, url: str, tokens: Sequence[int], **fields: Any) -> requests.Response:
        """POST ``/generate``, greedy, with log-probabilities."""
        sampling = {"temperature": 0, "ignore_eos": True, **fields.pop("sampling_params", {})}
        body: dict[str, Any] = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 6, **sampling},
            "return_logprob": True,
            "top_logprobs_num": TOP,
            **fields,
        }
        return requests.post(f"{url}/generate", json=body, timeout=120)

    def pool(self, tokens: Sequence[int], plan: Demanded | None = None, **fields: Any) -> Answer:
        """Ask the pool through the router, with a forced plan if one is given."""
        if plan is not None:
            fields["sampling_params"] = {
                **fields.get("sampling_params", {}),
                "custom_params": {"cdsp_plan": plan},
            }
        return read(self.generate(self.servers.url, tokens, **fields))

    def stream_and_leave(self, tokens: Sequence[int], after_s: float, **fields: Any) -> None:
        """Start a streaming request through the router and disconnect after ``after_s``.

        Where tokens come at that time, with the next of them.
        """
        leaves_s = time.monotonic() + after_s
        body: dict[str, Any] = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 64, "ignore_eos": True, **fields},
            "stream": True,
        }
        try:
            url = f"{self.servers.url}/generate"
            with requests.post(url, json=body, stream=True, timeout=(5, after_s)) as response:
                for _ in response.iter_lines(chunk_size=1):
                    if time.monotonic() > leaves_s:
                        return
        except requests.RequestException:
            pass

    def abort(self, rid: str = "", *, everything: bool = False) -> None:
        """``/abort_request`` on the prefill server."""
        body: dict[str, Any] = {"rid": rid, "abort_all": everything}
        requests.post(
            f"{self.servers.urls['prefill']}/abort_request", json=body, timeout=10
        ).raise_for_status()

    def stock(self, tokens: Sequence[int], **fields: Any) -> Answer:
        """Ask the stock server."""
        return read(self.generate(self.servers.urls["single"], tokens, **fields))

    def prefill(self, tokens: Sequence[int], **fields: Any) -> requests.Response:
        """Ask the prefill server alone, with SGLang's own stand-in for decode."""
        fields = {"bootstrap_host": FAKE_HOST, "bootstrap_room": 0, **fields}
        return self.generate(self.servers.urls["prefill"], tokens, **fields)

    def pool_states(self) -> list[dict[str, Any]]:
        """CDSP's part of ``/server_info``, per instance."""
        info = requests.get(f"{self.servers.urls['prefill']}/server_info", timeout=30).json()
        return [state["cdsp"] for state in info["internal_states"]]

    def free_tokens(self) -> list[int]:
        """Free KV slots of every instance."""
        return [int(state["free_tokens"]) for state in self.pool_states()]

    def wait_free(self, expected: list[int], timeout_s: float = 10.0) -> list[int]:
        """Poll until the free slots are as expected; returns the last reading."""
        deadline = time.monotonic() + timeout_s
        while (free := self.free_tokens()) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        return free


def read(response: requests.Response) -> Answer:
    """Read an answer; fails with the server's words if it is none."""
    assert response.status_code == 200, response.text
    return Answer.of(response.json())


def text_tokens(checkpoint: Path, length: int, seed: int) -> list[int]:
    """A prompt of ``length`` tokens of real text, from a place that the seed chooses."""
    return cut_ids(checkpoint, length, seed)


def difference(stock: Answer, ours: Answer, tolerance: float) -> tuple[int, bool]:
    """Compare two answers token by token.

    Returns:
        How many tokens were compared, and whether the comparison had to stop early because
        stock's own two best tokens lay closer than ``tolerance``.

    Raises:
        AssertionError: on a difference.
    """
    found = compare(stock, ours, tolerance)
    return found.compared, found.early
