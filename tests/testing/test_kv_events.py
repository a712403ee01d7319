"""What a subscriber makes of KV events, and which it takes for nonsense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cdsp.testing.kv_events import EventPorts, SenselessEventError, Subscriber


def stored(*pages: int, parent: int | None = None, tokens: int | None = None) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": list(pages),
        "parent_block_hash": parent,
        "token_ids": [0] * (2 * len(pages) if tokens is None else tokens),
        "block_size": 2,
        "medium": "GPU",
    }


def removed(*pages: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(pages), "medium": "GPU"}


def test_it_knows_what_is_there() -> None:
    heard = Subscriber()
    heard.hear([stored(1, 2), stored(3, parent=2), removed(3, 2), stored(4, parent=1)])
    assert heard.held() == {1, 4}
    assert heard.held("CPU_PINNED") == set()
    heard.hear([{"type": "AllBlocksCleared"}, stored(1)])
    assert heard.held() == {1}
    assert heard.counts == {"BlockStored": 4, "BlockRemoved": 1, "AllBlocksCleared": 1}


@pytest.mark.parametrize(
    "event",
    [stored(1), removed(2), stored(3, parent=2), stored(3, 3), stored(), stored(3, tokens=1)],
)
def test_nonsense_is_told(event: dict[str, Any]) -> None:
    heard = Subscriber()
    heard.hear([stored(1)])
    with pytest.raises(SenselessEventError):
        heard.hear([event])
    lenient = Subscriber(strict=False)
    lenient.hear([stored(1), event])


def test_ports_are_flags_of_a_server() -> None:
    flag, config = EventPorts(5, 6).flags
    assert flag == "--kv-events-config"
    assert json.loads(config)["endpoint"] == "tcp://*:5"
