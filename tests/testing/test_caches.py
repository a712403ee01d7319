"""The check of what one server has cached knows whose answer is whose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import requests

from sglang_cdsp.protocol.cache_digest import digest
from sglang_cdsp.testing import caches

PAGES = ((11, 12, 13), (), (7,))
"""What each instance has cached, by names of pages."""


def state(instance: int, pages: tuple[int, ...]) -> dict[str, Any]:
    """What an instance says of itself."""
    cache = {"slots": len(pages), "twice": 0, "free": 0, "pages": digest(pages)}
    return {
        "cdsp": {
            "links": {"instance": instance},
            "cached_tokens": len(pages),
            "cache": cache,
        }
    }


def told(monkeypatch: pytest.MonkeyPatch, states: list[dict[str, Any]]) -> list[str]:
    """What does not agree where a server answers with ``states``."""
    answers = {
        "server_info": {"internal_states": states, "page_size": 1},
        "status": {"prefixes": {"digests": [digest(pages) for pages in PAGES], "lost_events": 0}},
    }

    def get(url: str, timeout: float) -> Any:
        return SimpleNamespace(json=lambda: answers[url.rsplit("/", 1)[1]])

    monkeypatch.setattr(requests, "get", get)
    return caches.disagreements("http://server")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_answers_come_in_any_order(monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]) -> None:
    """SGLang lists them as they came: this was taken for an index that is wrong."""
    assert told(monkeypatch, [state(i, PAGES[i]) for i in order]) == []


def test_what_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = told(monkeypatch, [state(i, PAGES[(i + 1) % 3]) for i in range(3)])
    assert {line.partition(":")[0] for line in wrong} == {f"instance {i}" for i in range(3)}
