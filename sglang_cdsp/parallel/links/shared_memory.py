"""Links in shared memory, for tensors in host memory on one machine.

An area is an anonymous file (memfd) that its receiver makes and its sender maps through
``/proc/PID/fd/N``: it needs no room in /dev/shm, has no name that could be left behind, and its
memory goes when the last of both has ended, however it ended. Nobody is told of a partner's end
here: who supervises the processes drops it.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.area import Area, AreaName, area_bytes
from sglang_cdsp.parallel.links.partners import Parties, Partners
from sglang_cdsp.parallel.links.types import Arrived, Credited, Event, Header, LinkShape, Sent


@dataclass
class _Inbound:
    """An area that this process made, and its file until the partner has mapped it."""

    area: Area
    fd: int | None

    def close_file(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


@dataclass(frozen=True)
class _Partner:
    inbound: _Inbound
    outbound: Area
    sent: list[Event] = field(default_factory=list)


class SharedMemoryLinks(Partners[_Inbound, _Partner]):
    """``Links`` over shared memory, see ``types.Links``."""

    def __init__(self, seat: int, incarnation: int, shape: LinkShape) -> None:
        super().__init__(seat, incarnation)
        self._shape = shape

    def invite(self, seat: int) -> bytes:
        name = AreaName(secrets.token_bytes(16), self.seat, self.incarnation, seat, self._shape)
        fd = os.memfd_create(f"cdsp-{self.seat}.{self.incarnation}-from-{seat}")
        try:
            os.ftruncate(fd, area_bytes(self._shape))
            area = Area(fd, self._shape)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise LinkError(
                f"instance {self.seat} cannot map {area_bytes(self._shape)} bytes for a link: "
                f"lower the links' lanes, depth or slot_bytes, or the limit of address space "
                f"({error})"
            ) from error
        area.set_name(name)
        self._withdraw(seat)
        self._invited[seat] = _Inbound(area, fd)
        return f"{os.getpid()}/{fd}/".encode() + name.packed()

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        self._require_invited(seat)
        outbound = self._opened(seat, incarnation, invitation)
        self._forget(seat)
        self._partners[seat] = _Partner(self._invited.pop(seat), outbound)

    def _opened(self, seat: int, incarnation: int, invitation: bytes) -> Area:
        """Map the partner's area for this process."""
        try:
            pid, number, packed = invitation.split(b"/", 2)
            path = f"/proc/{int(pid)}/fd/{int(number)}"
        except ValueError:
            path, packed = "", b""
        name = AreaName.unpacked(packed)
        if name is None:
            raise LinkError(f"what instance {seat} sent is no invitation to shared memory")
        parties = Parties(name.receiver, name.incarnation, name.sender)
        self._require_parties(parties, seat, incarnation)
        if name.shape != self._shape:
            raise LinkError(f"instance {seat} has links of {name.shape}, this one {self._shape}")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _unreachable(seat, path, str(error)) from error
        try:
            if os.fstat(fd).st_size != area_bytes(self._shape):
                raise _unreachable(seat, path, "another file is there")
            area = Area(fd, self._shape)
        finally:
            os.close(fd)
        if area.name != name:
            raise _unreachable(seat, path, "another file is there")
        area.set_mapped()
        return area

    def drop(self, seat: int) -> None:
        self._withdraw(seat)
        self._forget(seat)

    def _withdraw(self, seat: int) -> None:
        invited = self._invited.pop(seat, None)
        if invited is not None:
            invited.close_file()

    def _forget(self, seat: int) -> None:
        partner = self._partners.pop(seat, None)
        if partner is not None:
            partner.inbound.close_file()

    def write(self, seat: int, slot: int, header: Header, block: torch.Tensor) -> None:
        partner = self._partner(seat)
        partner.outbound.write(slot, header, block)
        partner.sent.append(Sent(seat, slot, header.number))

    def credit(self, seat: int, slot: int, number: int) -> None:
        self._partner(seat).inbound.area.give_back(slot, number)

    def poll(self) -> list[Event]:
        events: list[Event] = []
        for seat, partner in self._partners.items():
            inbound = partner.inbound
            events += partner.sent
            partner.sent.clear()
            if inbound.fd is not None and inbound.area.mapped:
                inbound.close_file()
            events += [Arrived(seat, slot, header) for slot, header in inbound.area.arrivals()]
            events += [Credited(seat, slot, n) for slot, n in partner.outbound.credits()]
        return events

    def inbound(self, seat: int, slot: int) -> torch.Tensor:
        return self._partner(seat).inbound.area.slot(slot)


def _unreachable(seat: int, path: str, why: str) -> LinkError:
    return LinkError(
        f"cannot open {path} of instance {seat} ({why}): run all instances of a pool as one user "
        "in one PID namespace, or set SGLANG_CDSP_LINKS=nixl"
    )
