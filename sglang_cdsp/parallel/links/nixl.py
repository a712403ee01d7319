"""Links over NIXL, for CUDA tensors and for pools across machines.

A piece is a NIXL WRITE, its header the notification of that write: NIXL delivers it after the
write's data, whatever the transport. Credits are notifications alone. Blocks pass through memory
that was registered once: the sender's staging slots, of the same shape as the area they go to.

NIXL's progress thread is off: it would spin beside the computation. So a notification leaves at
its sender's next ``poll``.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.nixl_process import (
    keep_from_forked_children,
    prepare_environment,
    writes_need_polls,
)
from sglang_cdsp.parallel.links.types import (
    PACKED_BYTES,
    Arrived,
    Credited,
    Event,
    Header,
    LinkShape,
    Lost,
    Sent,
)

logger = logging.getLogger(__name__)

_PIECE = struct.Struct(f"<cI{PACKED_BYTES}s")
_CREDIT = struct.Struct("<cIQ")


@dataclass
class _Memory:
    """Registered slots: an inbound area, or the staging slots towards one partner."""

    slots: torch.Tensor
    registered: Any

    @property
    def device_id(self) -> int:
        return max(0, self.slots.get_device())


@dataclass
class _Post:
    """A block in its staging slot, and on CUDA the event after which it is all there."""

    slot: int
    header: Header
    ready: Any


@dataclass
class _Partner:
    name: str
    inbound: _Memory
    staging: _Memory
    remote: int
    """Address of the partner's area."""
    remote_device: int
    posts: deque[_Post] = field(default_factory=deque)
    credits: deque[tuple[Any, bytes]] = field(default_factory=deque)
    handles: dict[int, tuple[int, Any]] = field(default_factory=dict)
    """By slot: the size that its last transfer had, and the transfer."""
    flying: dict[int, int] = field(default_factory=dict)
    """By slot: the number of the piece that is being written."""
    broken: bool = False


class NixlLinks:
    """``Links`` over NIXL, see ``types.Links``."""

    def __init__(self, seat: int, incarnation: int, shape: LinkShape, device: torch.device) -> None:
        """Start an agent of its own.

        Raises:
            LinkError: NIXL or its UCX backend cannot start here.
        """
        self._seat, self._incarnation = seat, incarnation
        self._shape, self._device = shape, device
        self._memory_kind = "VRAM" if device.type == "cuda" else "DRAM"
        self._name = f"cdsp-{seat}.{incarnation}-{secrets.token_hex(4)}"
        self._agent = _agent(self._name)
        self._invited: dict[int, _Memory] = {}
        self._partners: dict[int, _Partner] = {}
        self._aside: dict[int, list[_Partner]] = {}
        self._early: dict[str, list[bytes]] = {}
        self._events: list[Event] = []
        self._foreign = False
        keep_from_forked_children(self)
        why = writes_need_polls() if device.type == "cpu" else ""
        if why:
            logger.warning("blocks between instances land only while their receiver polls: %s", why)

    @property
    def seat(self) -> int:
        return self._seat

    @property
    def incarnation(self) -> int:
        return self._incarnation

    def leave_to_parent(self) -> list[Any]:
        """In a forked child: stop using the agent; return what must never be destroyed here."""
        self._foreign = True
        partners = [*self._partners.values(), *(p for ps in self._aside.values() for p in ps)]
        handles = [handle for partner in partners for _, handle in partner.handles.values()]
        return [self._agent, self._agent.agent, *handles]

    def invite(self, seat: int) -> bytes:
        self._check_process()
        for former in self._aside.pop(seat, []):
            self._release(former)
        self._withdraw(seat)
        try:
            memory = self._registered()
            metadata = self._agent.get_agent_metadata()
        except Exception as error:
            raise LinkError(
                f"instance {self._seat} cannot register memory for links over NIXL ({error}): "
                "lower the links' lanes, depth or slot_bytes"
            ) from error
        self._invited[seat] = memory
        words = {
            "name": self._name,
            "to": seat,
            "metadata": base64.b64encode(metadata).decode(),
            "address": memory.slots.data_ptr(),
            "device": memory.device_id,
            "kind": self._memory_kind,
            "shape": [self._shape.lanes, self._shape.depth, self._shape.slot_bytes],
        }
        return json.dumps(words).encode()

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        self._check_process()
        if seat not in self._invited:
            raise LinkError(f"instance {self._seat} has no area for instance {seat}: invite first")
        words = self._checked(seat, incarnation, invitation)
        try:
            name = self._agent.add_remote_agent(base64.b64decode(words["metadata"]))
            staging = self._registered()
        except Exception as error:
            raise LinkError(
                f"instance {self._seat} cannot reach instance {seat} over NIXL ({error}): check "
                "UCX_TLS and UCX_NET_DEVICES, and that its process lives"
            ) from error
        self._set_aside(seat)
        name = name if isinstance(name, str) else name.decode()
        self._partners[seat] = _Partner(
            name, self._invited.pop(seat), staging, words["address"], words["device"]
        )
        self._early = {
            early: notes for early, notes in self._early.items()
            if early == name or _seat_of(early) != seat
        }  # fmt: skip

    def _checked(self, seat: int, incarnation: int, invitation: bytes) -> dict[str, Any]:
        try:
            words: dict[str, Any] = json.loads(invitation)
            wanted = (f"cdsp-{seat}.{incarnation}", self._seat)
            found = (str(words["name"]).rpartition("-")[0], words["to"])
            shape = LinkShape(*words["shape"])
        except (ValueError, KeyError, TypeError) as error:
            raise LinkError(f"what instance {seat} sent is no invitation to NIXL") from error
        if found != wanted:
            raise LinkError(
                f"instance {self._seat} cannot use an invitation of {found[0]} to {found[1]} as "
                f"one of {seat}.{incarnation}"
            )
        if shape != self._shape or words["kind"] != self._memory_kind:
            raise LinkError(
                f"instance {seat} has links of {shape} in {words['kind']}, this one of "
                f"{self._shape} in {self._memory_kind}: start all with the same options"
            )
        return words

    def _registered(self) -> _Memory:
        slots = torch.empty(
            (self._shape.slots, self._shape.slot_bytes), dtype=torch.uint8, device=self._device
        )
        return _Memory(slots, self._agent.register_memory(slots))

    def drop(self, seat: int) -> None:
        if not self._foreign:
            self._withdraw(seat)
            self._set_aside(seat)

    def _withdraw(self, seat: int) -> None:
        memory = self._invited.pop(seat, None)
        if memory is not None:
            self._deregister(memory)

    def _set_aside(self, seat: int) -> None:
        """End a partnership. Its process may live and still write: the memory stays as it is."""
        self._events = [event for event in self._events if event.seat != seat]
        partner = self._partners.pop(seat, None)
        if partner is None:
            return
        partner.posts.clear()
        partner.credits.clear()
        self._aside.setdefault(seat, []).append(partner)
        try:
            self._agent.remove_remote_agent(partner.name)
        except Exception as error:
            logger.debug("NIXL could not forget %s: %s", partner.name, error)

    def _release(self, partner: _Partner) -> None:
        """Give the memory of a partner back whose process has ended."""
        for _, handle in partner.handles.values():
            try:
                self._agent.release_xfer_handle(handle)
            except Exception as error:
                logger.debug("NIXL keeps a transfer to %s: %s", partner.name, error)
        for memory in (partner.inbound, partner.staging):
            self._deregister(memory)

    def _deregister(self, memory: _Memory) -> None:
        try:
            self._agent.deregister_memory(memory.registered)
        except Exception as error:
            logger.debug("NIXL keeps memory registered: %s", error)

    def write(self, seat: int, slot: int, header: Header, block: torch.Tensor) -> None:
        partner = self._partner(seat)
        partner.staging.slots[slot, : header.size].copy_(block)
        partner.posts.append(_Post(slot, header, self._event()))
        self._post_ready(seat, partner)

    def credit(self, seat: int, slot: int, number: int) -> None:
        partner = self._partner(seat)
        partner.credits.append((self._event(), _CREDIT.pack(b"C", slot, number)))
        self._send_credits(seat, partner)

    def _event(self) -> Any:
        """What the current stream does so far, as something to ask; None where nothing waits."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _post_ready(self, seat: int, partner: _Partner) -> None:
        """Post the blocks that have been computed, in order."""
        while partner.posts and not partner.broken and _over(partner.posts[0].ready):
            post = partner.posts.popleft()
            size = post.header.size
            try:
                handle = self._transfer(partner, post.slot, size)
                note = _PIECE.pack(b"P", post.slot, post.header.packed())
                state = self._agent.transfer(handle, note)
            except Exception as error:
                self._lose(seat, partner, error)
                return
            partner.flying[post.slot] = post.header.number
            self._note_state(seat, partner, post.slot, state)

    def _transfer(self, partner: _Partner, slot: int, size: int) -> Any:
        """A transfer of ``size`` bytes from the staging slot; the slot's last one if it fits."""
        last = partner.handles.get(slot)
        if last is not None and last[0] == size:
            return last[1]
        if last is not None:
            self._agent.release_xfer_handle(partner.handles.pop(slot)[1])
        kind, start = self._memory_kind, slot * self._shape.slot_bytes
        mine = partner.staging.slots.data_ptr() + start
        handle = self._agent.initialize_xfer(
            "WRITE",
            self._agent.get_xfer_descs([(mine, size, partner.staging.device_id)], kind),
            self._agent.get_xfer_descs(
                [(partner.remote + start, size, partner.remote_device)], kind
            ),
            partner.name,
        )
        partner.handles[slot] = (size, handle)
        return handle

    def _note_state(self, seat: int, partner: _Partner, slot: int, state: str) -> None:
        if state == "DONE":
            self._events.append(Sent(seat, slot, partner.flying.pop(slot)))
        elif state != "PROC":
            self._lose(seat, partner, LinkError(f"NIXL reports {state}"))

    def _send_credits(self, seat: int, partner: _Partner) -> None:
        while partner.credits and not partner.broken and _over(partner.credits[0][0]):
            _, note = partner.credits.popleft()
            try:
                self._agent.send_notif(partner.name, note)
            except Exception as error:
                self._lose(seat, partner, error)

    def _lose(self, seat: int, partner: _Partner, error: Exception) -> None:
        if not partner.broken:
            partner.broken = True
            self._events.append(Lost(seat, f"NIXL: {error or type(error).__name__}"))

    def poll(self) -> list[Event]:
        if self._foreign:
            return []
        for seat, partner in self._partners.items():
            self._post_ready(seat, partner)
            self._send_credits(seat, partner)
            for slot in list(partner.flying):
                if partner.broken:
                    break
                try:
                    state = self._agent.check_xfer_state(partner.handles[slot][1])
                except Exception as error:
                    self._lose(seat, partner, error)
                    break
                self._note_state(seat, partner, slot, state)
        self._take_notes()
        events, self._events = self._events, []
        return events

    def _take_notes(self) -> None:
        try:
            notes: dict[Any, list[bytes]] = self._agent.get_new_notifs()
        except Exception as error:
            logger.warning("NIXL could not look for notifications: %s", error)
            return
        seats = {partner.name: seat for seat, partner in self._partners.items()}
        for name in {*notes, *(self._early.keys() & seats.keys())}:
            words = name if isinstance(name, str) else name.decode()
            new = [*self._early.pop(words, []), *notes.get(name, [])]
            if words in seats:
                self._events += [_event_of(seats[words], note) for note in new]
            elif _seat_of(words) in self._invited:
                # From a process that has joined this one and that this one has not joined yet.
                self._early[words] = new[: self._shape.slots]

    def inbound(self, seat: int, slot: int) -> torch.Tensor:
        return self._partner(seat).inbound.slots[slot]

    def close(self) -> None:
        if self._foreign:
            return
        for seat in {*self._partners, *self._invited}:
            self.drop(seat)
        for partners in self._aside.values():
            for partner in partners:
                self._release(partner)
        self._aside.clear()

    def _partner(self, seat: int) -> _Partner:
        self._check_process()
        partner = self._partners.get(seat)
        if partner is None:
            raise LinkError(f"instance {self._seat} has no link to instance {seat}: join it first")
        return partner

    def _check_process(self) -> None:
        if self._foreign:
            raise LinkError("these links belong to the process that forked: make new ones here")


def _agent(name: str) -> Any:
    prepare_environment()
    try:
        from nixl._api import nixl_agent, nixl_agent_config

        agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
    except Exception as error:
        raise LinkError(
            f"NIXL cannot start ({error}): check that the package nixl fits this machine and that "
            "UCX_TLS, if it is set, leaves a transport between processes (UCX_TLS=tcp does)"
        ) from error
    return agent


def _over(event: Any) -> bool:
    return event is None or bool(event.query())


def _seat_of(name: str) -> int | None:
    """The seat in the name of a link's agent; None for another agent's."""
    words = name.removeprefix("cdsp-").partition(".")[0]
    return int(words) if words.isdigit() else None


def _event_of(seat: int, note: bytes) -> Event:
    if note[:1] == b"C":
        _, slot, number = _CREDIT.unpack(note)
        return Credited(seat, slot, number)
    _, slot, packed = _PIECE.unpack(note)
    return Arrived(seat, slot, Header.unpacked(packed))
