"""One chunk's KV of this instance on its way to decode, layer by layer.

A layer's pages are written as soon as the layer is in the pool, while later layers compute. The
engine's loop says which layers are there and asks how the writes are going; a thread of its own
posts them. Writes of layers carry no word for decode: that goes once all of them have ended well,
so it never overtakes the data.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from sglang_cdsp.transfer.failures import TransferFailed
from sglang_cdsp.transfer.pages import Pages
from sglang_cdsp.transfer.poster import Poster

AT_ONCE_VAR = "SGLANG_CDSP_KV_AFTER_CHUNK"
"""Environment variable: if set, a chunk's KV leaves whole after the chunk, to compare with."""


class DeviceEvent(Protocol):
    """A point in a device's stream, as torch's events are."""

    def query(self) -> bool:
        """Whether the device has come past it; never blocks."""


class Wire(Protocol):
    """What a transfer engine does for a write. Posting runs in another thread than the rest."""

    def mark(self) -> DeviceEvent | None:
        """An event behind all that the current stream has to do; None where nothing is ahead."""

    def post_layer(self, info: Any, pages: Pages, layer_id: int) -> Any:
        """Start writing a layer's pages to a decode agent; returns a handle.

        Raises:
            TransferFailed: says whether some of it may be under way all the same.
        """

    def post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> Any:
        """Start writing the metadata buffer; ``bare``: without pages. As ``post_layer``."""

    def say_written(self, info: Any, send_id: int, *, last: bool) -> None:
        """Tell a decode agent that the pages of a transfer are there, where it waits for that."""

    def outcome(self, handle: Any) -> str | None:
        """None while a transfer is in flight, then "" or what went wrong."""

    def forget_posted(self, handle: Any) -> None:
        """Give back what the engine keeps for a transfer that has ended."""

    def log_failure(self, room: int, error: str) -> None:
        """Say what went wrong."""


@dataclass(frozen=True)
class Destination:
    """A decode agent and what it gets of each layer.

    Attributes:
        info: the engine's own description of the agent and its pages.
        posts: the pages, in posts of bounded size; none if decode lacks nothing of the shard.
    """

    info: Any
    posts: tuple[Pages, ...]


class ChunkWrite:
    """The writes of one transfer of a request, see ``parallel.chunk_layout.number_sends``.

    Attributes:
        room: bootstrap room.
        last: whether it is home's final transfer, which carries the metadata buffer.
        acknowledged: all has arrived, and decode was told so if it waits for that.
        uncertain: it failed, and some of it may still arrive at decode.
    """

    def __init__(
        self,
        wire: Wire,
        poster: Poster,
        *,
        room: int,
        layers: Collection[int],
        destinations: Sequence[Destination],
        send_id: int,
        last: bool,
        at_once: bool = False,
    ) -> None:
        """Nothing is posted yet.

        Args:
            wire, poster: start the writes; the poster does so in another thread.
            room: bootstrap room.
            layers: the model's layers.
            destinations: the decode agents of the room.
            send_id: number of this transfer.
            last: home's final transfer of the request.
            at_once: post all layers together when all are computed.
        """
        self.room, self.last = room, last
        self.acknowledged = self.uncertain = False
        self._wire, self._poster = wire, poster
        self._layers = frozenset(layers)
        self._destinations = tuple(destinations)
        self._send_id = send_id
        self._at_once = at_once
        self._stored: set[int] = set()
        self._waiting: deque[tuple[DeviceEvent | None, Callable[[], None]]] = deque()
        self._computed = self._cancelled = self._reported = False
        # Shared with the posting thread.
        self._lock = threading.Lock()
        self._jobs = 0
        self._flying: list[Any] = []
        self._error = ""

    # -- from the forward -----------------------------------------------------------------

    def layer_stored(self, layer_id: int) -> None:
        """The layer's KV of the shard is in the pool, or will be when the current stream has run.

        Raises:
            ValueError: there is no such layer, or it was there already.
        """
        if layer_id not in self._layers or layer_id in self._stored:
            raise ValueError(f"KV of layer {layer_id} is unknown, or was sent before")
        if self._at_once:
            return
        self._stored.add(layer_id)
        if self._stopped or not any(to.posts for to in self._destinations):
            return
        self._waiting.append((self._wire.mark(), partial(self._post_layer, layer_id)))
        self._hand_on()

    def computed(self, *, aux_index: int | None) -> None:
        """All layers are in the pool, also those that were not named.

        Args:
            aux_index: the metadata buffer that follows, with home's final transfer; else None.

        Raises:
            ValueError: a final transfer without a metadata buffer, or another with one.
        """
        if self.last != (aux_index is not None):
            raise ValueError(f"room {self.room}: the metadata goes with the last transfer alone")
        self._at_once = False
        for layer_id in sorted(self._layers - self._stored):
            self.layer_stored(layer_id)
        self._computed = True
        if aux_index is not None and not self._stopped:
            self._waiting.append((None, partial(self._post_metadata, aux_index)))
        self._hand_on()

    def cancel(self) -> None:
        """The chunk was dropped: nothing more is posted; what was posted has yet to end."""
        self._cancelled = True
        self._waiting.clear()

    # -- from the loop --------------------------------------------------------------------

    def poll(self) -> bool:
        """Whether everything has ended and nothing more will be written; never blocks.

        Raises:
            TransferFailed: once all that was posted has ended, if something went wrong.
        """
        self._hand_on()
        if self._in_flight():
            return False
        if not self._error and self._computed and not self._cancelled:
            if self._waiting:
                return False
            self._acknowledge()
        if self._error and not self._reported:
            self._reported = True
            message = f"KV write for room {self.room} {self._error}"
            raise TransferFailed(message, uncertain=self.uncertain)
        return bool(self._error) or self._computed or self._cancelled

    def _in_flight(self) -> bool:
        """Whether anything that was posted, or is about to be, has not ended."""
        with self._lock:
            jobs, flying = self._jobs, list(self._flying)
        ended = []
        for handle in flying:
            outcome = self._wire.outcome(handle)
            if outcome is None:
                continue
            ended.append(handle)
            if outcome:
                # Whatever does not end well may have parts that are still under way.
                self._fail(f"failed: {outcome}", uncertain=True)
            self._wire.forget_posted(handle)
        over = {id(handle) for handle in ended}
        with self._lock:
            self._flying = [handle for handle in self._flying if id(handle) not in over]
        return bool(jobs) or len(ended) < len(flying)

    def _acknowledge(self) -> None:
        if self.acknowledged:
            return
        try:
            for to in self._destinations:
                if to.posts:
                    self._wire.say_written(to.info, self._send_id, last=self.last)
        except Exception as error:
            self._fail(f"could not be announced: {error}", uncertain=False)
        else:
            self.acknowledged = True

    def _hand_on(self) -> None:
        """Give the posting thread the layers that the device has stored, in order."""
        while self._waiting and not self._stopped:
            event, job = self._waiting[0]
            try:
                if event is not None and not event.query():
                    return
            except Exception as error:
                self._fail(f"could not start: {error}", uncertain=False)
                return
            self._waiting.popleft()
            with self._lock:
                self._jobs += 1
            self._poster.put(partial(self._run, job))

    # -- in the posting thread ------------------------------------------------------------

    @property
    def _stopped(self) -> bool:
        return self._cancelled or bool(self._error)

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._fail(f"could not start: {error}", uncertain=getattr(error, "uncertain", False))
        finally:
            with self._lock:
                self._jobs -= 1

    def _post_layer(self, layer_id: int) -> None:
        for to in self._destinations:
            for pages in to.posts:
                if self._stopped:
                    return
                self._flies(self._wire.post_layer(to.info, pages, layer_id))

    def _post_metadata(self, aux_index: int) -> None:
        for to in self._destinations:
            if self._stopped:
                return
            bare = not to.posts
            self._flies(self._wire.post_metadata(to.info, aux_index, self._send_id, bare=bare))

    def _flies(self, handle: Any) -> None:
        with self._lock:
            self._flying.append(handle)

    def _fail(self, error: str, *, uncertain: bool) -> None:
        with self._lock:
            self.uncertain = self.uncertain or uncertain
            first, self._error = not self._error, self._error or error
        if first:
            self._wire.log_failure(self.room, error)
