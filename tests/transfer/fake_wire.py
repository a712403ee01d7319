"""A transfer engine that does what a test says, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sglang_cdsp.transfer.chunk_write import ChunkWrite, Destination
from sglang_cdsp.transfer.failures import TransferFailed
from sglang_cdsp.transfer.pages import Pages

ROOM = 7


class FakeEvent:
    """A device's event; ``done`` is None where the device is broken."""

    def __init__(self) -> None:
        self.done: bool | None = False

    def query(self) -> bool:
        if self.done is None:
            raise RuntimeError("an illegal memory access")
        return self.done


class Handle:
    """One post: of a layer, or of the metadata (None)."""

    def __init__(self, to: str, layer: int | None, pages: Pages | None) -> None:
        self.to, self.layer, self.pages = to, layer, pages
        self.state: str | None = None
        self.forgotten = False


class FakeWire:
    """Posts are ``Handle``s that end when a test says so.

    Attributes:
        on_device: layers are there when their event is done, else at once.
        refuse: what a post raises, None for nothing; asked before each.
        log: posts, words and errors in order.
    """

    def __init__(self, *, on_device: bool = False) -> None:
        self.on_device = on_device
        self.events: list[FakeEvent] = []
        self.posted: list[Handle] = []
        self.log: list[tuple[str, Any]] = []
        self.refuse: Callable[[], Exception | None] = lambda: None

    def mark(self) -> FakeEvent | None:
        if not self.on_device:
            return None
        self.events.append(FakeEvent())
        return self.events[-1]

    def _post(self, handle: Handle) -> Handle:
        failure = self.refuse()
        if failure is not None:
            self.log.append(("refused", handle.layer))
            raise failure
        self.log.append(("post", handle.layer))
        self.posted.append(handle)
        return handle

    def post_layer(self, info: Any, pages: Pages, layer_id: int) -> Handle:
        return self._post(Handle(info, layer_id, pages))

    def post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> Handle:
        return self._post(Handle(info, None, None))

    def say_written(self, info: Any, send_id: int, *, last: bool) -> None:
        self.log.append(("word", info))

    def outcome(self, handle: Handle) -> str | None:
        assert not handle.forgotten, "asked after its end"
        return handle.state

    def forget_posted(self, handle: Handle) -> None:
        assert not handle.forgotten
        assert handle.state is not None
        handle.forgotten = True

    def log_failure(self, room: int, error: str) -> None:
        assert room == ROOM
        self.log.append(("error", error))

    def end_all(self, state: str = "") -> None:
        for handle in self.posted:
            if handle.state is None:
                handle.state = state

    @property
    def layers(self) -> list[int | None]:
        """What was posted, in order; None for the metadata."""
        return [handle.layer for handle in self.posted]

    @property
    def words(self) -> list[str]:
        return [what for kind, what in self.log if kind == "word"]


def part(*numbers: int) -> Pages:
    return Pages(np.array(numbers, np.int32), np.array(numbers, np.int32))


def opened(
    wire: FakeWire,
    poster: Any,
    *,
    layers: int = 3,
    parts: int = 1,
    agents: int = 1,
    last: bool = False,
    at_once: bool = False,
) -> ChunkWrite:
    """A write of ``parts`` posts a layer to each of ``agents``."""
    posts = tuple(part(number) for number in range(parts))
    return ChunkWrite(
        wire,
        poster,
        room=ROOM,
        layers=range(layers),
        destinations=[Destination(f"agent{number}", posts) for number in range(agents)],
        send_id=0,
        last=last,
        at_once=at_once,
    )


def half_way() -> TransferFailed:
    return TransferFailed("rejected", uncertain=True)
