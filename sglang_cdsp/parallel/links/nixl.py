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
from typing import Any

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.nixl_notes import agent_name, event_of, process_of
from sglang_cdsp.parallel.links.nixl_partner import Memory, NixlPartner, Remote
from sglang_cdsp.parallel.links.nixl_process import (
    keep_from_forked_children,
    prepare_environment,
    writes_need_polls,
)
from sglang_cdsp.parallel.links.partners import Parties, Partners
from sglang_cdsp.parallel.links.types import Event, Header, LinkShape

logger = logging.getLogger(__name__)


class NixlLinks(Partners[Memory, NixlPartner]):
    """``Links`` over NIXL, see ``types.Links``."""

    def __init__(self, seat: int, incarnation: int, shape: LinkShape, device: torch.device) -> None:
        """Start an agent of its own.

        Raises:
            LinkError: NIXL or its UCX backend cannot start here.
        """
        super().__init__(seat, incarnation)
        self._shape, self._device = shape, device
        self._name = agent_name(seat, incarnation)
        self._agent = _agent(self._name)
        self._aside: dict[int, list[NixlPartner]] = {}
        self._early: dict[str, list[bytes]] = {}
        self._foreign = False
        keep_from_forked_children(self)
        why = writes_need_polls() if device.type == "cpu" else ""
        if why:
            logger.warning("blocks between instances land only while their receiver polls: %s", why)

    def leave_to_parent(self) -> list[Any]:
        """In a forked child: stop using the agent; return what must never be destroyed here."""
        self._foreign = True
        partners = [*self._partners.values(), *(p for ps in self._aside.values() for p in ps)]
        handles = [handle for partner in partners for handle in partner.handles]
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
                f"instance {self.seat} cannot register memory for links over NIXL ({error}): "
                "lower the links' lanes, depth or slot_bytes"
            ) from error
        self._invited[seat] = memory
        words = {
            "name": self._name,
            "to": seat,
            "metadata": base64.b64encode(metadata).decode(),
            "address": memory.address,
            "device": memory.device_id,
            "kind": memory.kind,
            "shape": [self._shape.lanes, self._shape.depth, self._shape.slot_bytes],
        }
        return json.dumps(words).encode()

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        self._check_process()
        self._require_invited(seat)
        words = self._checked(seat, incarnation, invitation)
        try:
            name = self._agent.add_remote_agent(base64.b64decode(words["metadata"]))
            staging = self._registered()
        except Exception as error:
            raise LinkError(
                f"instance {self.seat} cannot reach instance {seat} over NIXL ({error}): check "
                "UCX_TLS and UCX_NET_DEVICES, and that its process lives"
            ) from error
        self._set_aside(seat)
        remote = Remote(_text(name), words["address"], words["device"])
        inbound = self._invited.pop(seat)
        self._partners[seat] = NixlPartner(self._agent, seat, remote, inbound, staging)
        self._early = {
            early: notes for early, notes in self._early.items()
            if early == remote.name or _seat_of(early) != seat
        }  # fmt: skip

    def _checked(self, seat: int, incarnation: int, invitation: bytes) -> dict[str, Any]:
        try:
            words: dict[str, Any] = json.loads(invitation)
            process = process_of(words["name"])
            if process is None:
                raise ValueError(f"{words['name']} is no link's agent")
            parties = Parties(*process, words["to"])
            shape, kind = LinkShape(*words["shape"]), words["kind"]
        except (ValueError, KeyError, TypeError) as error:
            raise LinkError(f"what instance {seat} sent is no invitation to NIXL") from error
        self._require_parties(parties, seat, incarnation)
        mine = self._invited[seat].kind
        if shape != self._shape or kind != mine:
            raise LinkError(
                f"instance {seat} has links of {shape} in {kind}, this one of "
                f"{self._shape} in {mine}: start all with the same options"
            )
        return words

    def _registered(self) -> Memory:
        slots = torch.empty(
            (self._shape.slots, self._shape.slot_bytes), dtype=torch.uint8, device=self._device
        )
        return Memory(slots, self._agent.register_memory(slots))

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
        partner = self._partners.pop(seat, None)
        if partner is not None:
            partner.set_aside()
            self._aside.setdefault(seat, []).append(partner)

    def _release(self, partner: NixlPartner) -> None:
        """Give the memory of a partner back whose process has ended."""
        partner.release_transfers()
        for memory in partner.memories:
            self._deregister(memory)

    def _deregister(self, memory: Memory) -> None:
        try:
            self._agent.deregister_memory(memory.registered)
        except Exception as error:
            logger.debug("NIXL keeps memory registered: %s", error)

    def write(self, seat: int, slot: int, header: Header, block: torch.Tensor) -> None:
        self._partner(seat).write(slot, header, block, self._event)

    def credit(self, seat: int, slot: int, number: int) -> None:
        self._partner(seat).credit(slot, number, self._event())

    def _event(self) -> Any:
        """What the current stream does so far, as something to ask; None where nothing waits."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def poll(self) -> list[Event]:
        if self._foreign:
            return []
        events = [event for partner in self._partners.values() for event in partner.poll()]
        return events + self._notes()

    def _notes(self) -> list[Event]:
        """What the partners have notified since; notes of a process that joins are kept for it."""
        try:
            notes: dict[Any, list[bytes]] = self._agent.get_new_notifs()
        except Exception as error:
            logger.warning("NIXL could not look for notifications: %s", error)
            return []
        events: list[Event] = []
        seats = {partner.remote.name: seat for seat, partner in self._partners.items()}
        for name in {*notes, *(self._early.keys() & seats.keys())}:
            words = _text(name)
            new = [*self._early.pop(words, []), *notes.get(name, [])]
            if words in seats:
                events += [event_of(seats[words], note) for note in new]
            elif _seat_of(words) in self._invited:
                # From a process that has joined this one and that this one has not joined yet.
                self._early[words] = new[: self._shape.slots]
        return events

    def inbound(self, seat: int, slot: int) -> torch.Tensor:
        return self._partner(seat).inbound.slots[slot]

    def close(self) -> None:
        if self._foreign:
            return
        super().close()
        for partners in self._aside.values():
            for partner in partners:
                self._release(partner)
        self._aside.clear()

    def _partner(self, seat: int) -> NixlPartner:
        self._check_process()
        return super()._partner(seat)

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


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode()


def _seat_of(name: str) -> int | None:
    process = process_of(name)
    return process[0] if process else None
