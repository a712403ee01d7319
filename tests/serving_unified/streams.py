"""Streams of one server, as their clients read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import requests


class Stream:
    """A client that reads a stream to its end.

    Attributes:
        events: what has come, each with all of the output so far.
    """

    def __init__(self, url: str, request: dict[str, Any]) -> None:
        """``request`` is the body for ``/generate`` at ``url``."""
        self.events: list[dict[str, Any]] = []
        self._url, self._request = url, {**request, "stream": True}

    def read(self) -> dict[str, Any]:
        """The last event, which has everything."""
        with requests.post(
            f"{self._url}/generate", json=self._request, stream=True, timeout=300
        ) as response:
            for line in response.iter_lines(chunk_size=1):
                if line.startswith(b"data: {"):
                    self.events.append(json.loads(line.removeprefix(b"data: ")))
        assert "error" not in self.events[-1], self.events[-1]
        return self.events[-1]


def no_repetition(events: Sequence[dict[str, Any]]) -> None:
    """Each event has all of the one before it, and no fewer tokens."""
    for earlier, later in pairwise(events):
        assert later["output_ids"][: len(earlier["output_ids"])] == earlier["output_ids"]
        assert later["text"].startswith(earlier["text"].rstrip("\ufffd"))
