"""NIXL on a device: what is posted waits for its own event, a credit for the read before it.

The events of a GPU are stood in for by ones that end when the test says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.nixl import NixlLinks
from sglang_cdsp.parallel.links.types import LinkShape, Message
from tests.parallel.links.kinds import NIXL, drive, hubs_of

SHAPE = LinkShape(lanes=1, depth=1, slot_bytes=64)


class Event:
    """An event of a device that has ended or not."""

    def __init__(self) -> None:
        self.over = False

    def query(self) -> bool:
        return self.over


class Device:
    """The events that one instance's links have recorded."""

    def __init__(self, links: Any, patch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        patch.setattr(links, "_event", self.record)

    def record(self) -> Event:
        self.events.append(Event())
        return self.events[-1]


@pytest.fixture
def hubs() -> Iterator[list[LinkHub]]:
    hubs = hubs_of(NIXL, 2, SHAPE)
    yield hubs
    for hub in hubs:
        hub.close()


def polled(hubs: list[LinkHub], times: int = 300) -> None:
    for _ in range(times):
        for hub in hubs:
            hub.poll()


def links_of(hub: LinkHub) -> NixlLinks:
    links = hub._links
    assert isinstance(links, NixlLinks)
    return links


def test_a_block_is_posted_after_its_event_and_credited_after_the_read(
    hubs: list[LinkHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 12: red where the host posts what the device has yet to compute, or gives a slot back
    that the device has yet to read."""
    sender, receiver = (Device(links_of(hub), monkeypatch) for hub in hubs)
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs]
    into = [torch.zeros(64, dtype=torch.uint8) for _ in range(2)]
    out = [torch.full((64,), value, dtype=torch.uint8) for value in (3, 4)]
    sent = lanes[0].exchange([Message(tensor, 1) for tensor in out], [])
    came = [lanes[1].exchange([], [Message(tensor, 0)]) for tensor in into]
    polled(hubs)
    assert len(sender.events) == 1
    assert not came[0].done()
    sender.events[0].over = True
    drive(hubs, came[0].done)
    assert torch.equal(into[0], out[0])

    polled(hubs)
    assert len(receiver.events) == 1
    assert len(sender.events) == 1, "the slot has not been given back"
    receiver.events[0].over = True
    drive(hubs, lambda: len(sender.events) == 2)
    polled(hubs)
    assert not came[1].done()
    sender.events[1].over = True
    drive(hubs, lambda: came[1].done() and sent.done())
    assert torch.equal(into[1], out[1])
