"""A subscriber of a server's KV events: what they say is cached, and whether they make sense."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

END = (-1).to_bytes(8, "big", signed=True)
PATIENCE_MS = 30_000


class SenselessEventError(AssertionError):
    """An event contradicts those before it."""


class Subscriber:
    """Follows the events of one cache, as they are on the wire.

    Attributes:
        pages: by medium, the pages that are there.
        counts: events heard, by type.
    """

    def __init__(self, *, strict: bool = True) -> None:
        """Nothing is cached.

        Args:
            strict: take no event that contradicts those before it. Stock SGLang stores a page of
                two extra keys twice.
        """
        self._strict = strict
        self.pages: dict[str, set[int]] = {}
        self.counts: dict[str, int] = {}

    def hear(self, events: Iterable[dict[str, Any]]) -> None:
        """Take events in, decoded.

        Raises:
            SenselessEventError: a page is stored that is there or whose parent is not, or one is
                removed that is not there.
        """
        for event in events:
            kind = event["type"]
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if kind == "AllBlocksCleared":
                self.pages = {}
                continue
            there = self.pages.setdefault(event["medium"], set())
            names = event["block_hashes"]
            if self._strict:
                _check(event, there)
            if kind == "BlockRemoved":
                there.difference_update(names)
            else:
                there.update(names)

    def held(self, medium: str = "GPU") -> set[int]:
        """The pages that lie in one place."""
        return self.pages.get(medium, set())


def _check(event: dict[str, Any], there: set[int]) -> None:
    """Whether an event makes sense where these pages are."""
    names = event["block_hashes"]
    _require(bool(names) and len(set(names)) == len(names), "no pages, or one twice", event)
    if event["type"] == "BlockRemoved":
        _require(there.issuperset(names), "removed, and was not there", event)
        return
    _require(there.isdisjoint(names), "stored, and was there", event)
    tokens = event["block_size"] * len(names)
    _require(len(event["token_ids"]) == tokens, "tokens are missing", event)
    parent = event["parent_block_hash"]
    _require(parent is None or parent in there, "the page before is not there", event)


def _require(holds: bool, what: str, event: dict[str, Any]) -> None:
    if not holds:
        raise SenselessEventError(f"{what}: {str(event)[:500]}")


@dataclass(frozen=True)
class EventPorts:
    """Where a server publishes its KV events, and replays them."""

    live: int
    replay: int

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the server; it keeps all batches of a test."""
        config = {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.live}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.replay}",
            "buffer_steps": 1_000_000,
        }
        return ("--kv-events-config", json.dumps(config))


class Replay:
    """Hears everything that a server has published, by asking it to replay."""

    def __init__(self, ports: EventPorts, *, strict: bool = True) -> None:
        """Connect to the server; nothing is asked yet. ``strict``: as for a `Subscriber`."""
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{ports.replay}")
        self._next = 0
        self.subscriber = Subscriber(strict=strict)

    def close(self) -> None:
        """Hear no more."""
        self._context.destroy(linger=0)

    def catch_up(self) -> Subscriber:
        """Hear what was published since the last call; numbers come without a gap.

        Raises:
            SenselessEventError: the events make no sense, or some are missing.
            TimeoutError: the server replays nothing.
        """
        self._socket.send_multipart((b"", self._next.to_bytes(8, "big")))
        while True:
            if not self._socket.poll(PATIENCE_MS):
                raise TimeoutError(f"nothing is replayed within {PATIENCE_MS / 1000:.0f} s")
            number, payload = self._socket.recv_multipart()[-2:]
            if number == END:
                return self.subscriber
            if int.from_bytes(number, "big") != self._next:
                raise SenselessEventError(f"batch {self._next} is missing")
            self._next += 1
            _, events, rank = msgspec.msgpack.decode(payload)
            _require(rank == 0, "of another rank", {"rank": rank})
            self.subscriber.hear(events)
