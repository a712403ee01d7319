"""What goes from one process to one partner over NIXL: blocks, their transfers, and credits."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.nixl_notes import credit_note, piece_note
from sglang_cdsp.parallel.links.types import Event, Header, Lost, Sent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """Registered slots: an inbound area, or the staging slots towards one partner.

    Attributes:
        slots: uint8 ``[slots, slot_bytes]``.
        registered: what NIXL made of them.
    """

    slots: torch.Tensor
    registered: Any

    @property
    def kind(self) -> str:
        """What NIXL calls this memory."""
        return "VRAM" if self.slots.device.type == "cuda" else "DRAM"

    @property
    def device_id(self) -> int:
        """The number of its device, 0 for host memory."""
        return max(0, self.slots.get_device())

    @property
    def address(self) -> int:
        """Of its first slot."""
        return self.slots.data_ptr()


@dataclass(frozen=True)
class Remote:
    """The area of a partner: its agent's name, and where that has the area."""

    name: str
    address: int
    device_id: int


@dataclass(frozen=True)
class _Post:
    """A block in its staging slot, and on CUDA the event after which it is all there."""

    slot: int
    header: Header
    ready: Any


class NixlPartner:
    """One partner; it is used until its link breaks or it is set aside.

    Attributes:
        remote: the partner's area.
        inbound: where the partner writes.
    """

    def __init__(
        self, agent: Any, seat: int, remote: Remote, inbound: Memory, staging: Memory
    ) -> None:
        """``agent`` has registered both memories, which have the same shape as the area."""
        self.remote, self.inbound = remote, inbound
        self._agent, self._seat, self._staging = agent, seat, staging
        self._posts: deque[_Post] = deque()
        self._credits: deque[tuple[Any, bytes]] = deque()
        # By slot: the size that its last transfer had, and the transfer.
        self._transfers: dict[int, tuple[int, Any]] = {}
        # By slot: the number of the piece that is being written.
        self._flying: dict[int, int] = {}
        self._events: list[Event] = []
        self._broken = False

    @property
    def memories(self) -> tuple[Memory, ...]:
        """What is registered for this partner."""
        return (self.inbound, self._staging)

    @property
    def handles(self) -> list[Any]:
        """NIXL's transfers that have been made so far."""
        return [handle for _, handle in self._transfers.values()]

    def write(
        self, slot: int, header: Header, block: torch.Tensor, copied: Callable[[], Any]
    ) -> None:
        """Write ``block``, uint8 ``[header.size]``, into a slot of the partner.

        Args:
            slot, header, block: as in ``types.Links.write``.
            copied: makes an event of the device that ends after the copy to the staging slot; it
                returns None where nothing has to be waited for.
        """
        self._staging.slots[slot, : header.size].copy_(block)
        self._posts.append(_Post(slot, header, copied()))
        self._post_ready()

    def credit(self, slot: int, number: int, read: Any) -> None:
        """Give a slot back once ``read``, an event of the device or None, has ended."""
        self._credits.append((read, credit_note(slot, number)))
        self._send_credits()

    def poll(self) -> list[Event]:
        """Move everything on, and return what has happened since."""
        self._post_ready()
        self._send_credits()
        for slot in list(self._flying):
            if self._broken:
                break
            try:
                state = self._agent.check_xfer_state(self._transfers[slot][1])
            except Exception as error:
                self._lose(error)
                break
            self._note_state(slot, state)
        events, self._events = self._events, []
        return events

    def set_aside(self) -> None:
        """Send nothing more; what flies still reads the staging slots."""
        self._posts.clear()
        self._credits.clear()
        try:
            self._agent.remove_remote_agent(self.remote.name)
        except Exception as error:
            logger.debug("NIXL could not forget %s: %s", self.remote.name, error)

    def release_transfers(self) -> None:
        """Give NIXL's transfers back, once the partner's process has ended."""
        for handle in self.handles:
            try:
                self._agent.release_xfer_handle(handle)
            except Exception as error:
                logger.debug("NIXL keeps a transfer to %s: %s", self.remote.name, error)

    def _post_ready(self) -> None:
        """Post the blocks that have been computed, in order."""
        while self._posts and not self._broken and _over(self._posts[0].ready):
            post = self._posts.popleft()
            try:
                handle = self._transfer(post.slot, post.header.size)
                state = self._agent.transfer(handle, piece_note(post.slot, post.header))
            except Exception as error:
                self._lose(error)
                return
            self._flying[post.slot] = post.header.number
            self._note_state(post.slot, state)

    def _transfer(self, slot: int, size: int) -> Any:
        """A transfer of ``size`` bytes from the staging slot; the slot's last one if it fits."""
        last = self._transfers.get(slot)
        if last is not None and last[0] == size:
            return last[1]
        if last is not None:
            self._agent.release_xfer_handle(self._transfers.pop(slot)[1])
        mine, theirs = self._staging, self.remote
        start = slot * mine.slots.shape[1]
        source = [(mine.address + start, size, mine.device_id)]
        target = [(theirs.address + start, size, theirs.device_id)]
        handle = self._agent.initialize_xfer(
            "WRITE",
            self._agent.get_xfer_descs(source, mine.kind),
            self._agent.get_xfer_descs(target, mine.kind),
            theirs.name,
        )
        self._transfers[slot] = (size, handle)
        return handle

    def _note_state(self, slot: int, state: str) -> None:
        if state == "DONE":
            self._events.append(Sent(self._seat, slot, self._flying.pop(slot)))
        elif state != "PROC":
            self._lose(LinkError(f"NIXL reports {state}"))

    def _send_credits(self) -> None:
        while self._credits and not self._broken and _over(self._credits[0][0]):
            _, note = self._credits.popleft()
            try:
                self._agent.send_notif(self.remote.name, note)
            except Exception as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self._events.append(Lost(self._seat, f"NIXL: {error or type(error).__name__}"))


def _over(event: Any) -> bool:
    return event is None or bool(event.query())
