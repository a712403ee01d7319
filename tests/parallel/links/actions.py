"""What the processes of tests of links do; each is called with the process's own ``End``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.types import Arrived, Header, Message, Sent
from tests.parallel.links.remote import End

POLL_S = 200e-6


def open_lane(end: End, serial: int, members: Sequence[int]) -> None:
    end.lane = end.hub.open(0, serial, members)


def close_lane(end: End) -> None:
    end.lane.close()


def filled(size: int, value: int) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.uint8)


def start_send(end: End, peer: int, size: int, value: int) -> None:
    end.works.append(end.lane.exchange([Message(filled(size, value), peer)], []))


def start_recv(end: End, peer: int, size: int) -> None:
    end.tensors.append(filled(size, 0))
    end.works.append(end.lane.exchange([], [Message(end.tensors[-1], peer)]))


def poll_for(end: End, seconds: float) -> bool:
    """Poll for a while; whether all works are done then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not end.hub.poll():
            time.sleep(POLL_S)
    return all(work.done() for work in end.works)


def finish(end: End) -> str:
    """Wait for all works; the first error, or "" ."""
    works, end.works = end.works, []
    error = ""
    for work in works:
        try:
            work.wait()
        except LinkError as failure:
            error = error or str(failure)
    return error


def contents(end: End) -> list[list[int]]:
    """The different bytes of each tensor that was received."""
    return [sorted(set(tensor.tolist())) for tensor in end.tensors]


def waiting(end: End) -> list[int]:
    """Whom this process waits for."""
    return [entry["instance"] for entry in end.hub.snapshot()["waiting"]]


def sleep_without_polling(end: End, seconds: float) -> None:
    end.pipe.send((True, "asleep"))
    time.sleep(seconds)


def look_at_slot(end: End, seat: int, slot: int) -> list[int]:
    """The different bytes of an inbound slot, unpolled."""
    return sorted(set(end.links.inbound(seat, slot).tolist()))


def stream(end: End, peer: int, size: int) -> str:
    """Send messages for ever; the error that ended it."""
    end.pipe.send((True, "streaming"))
    try:
        while True:
            end.lane.exchange([Message(filled(size, 7), peer)], []).wait()
    except LinkError as error:
        return str(error)


def swallow(end: End, peer: int, size: int) -> str:
    """Receive messages for ever; the error that ended it."""
    end.pipe.send((True, "receiving"))
    try:
        while True:
            into = filled(size, 0)
            end.lane.exchange([], [Message(into, peer)]).wait()
            if set(into.tolist()) != {7}:
                return "wrong bytes"
    except LinkError as error:
        return str(error)


def write_rounds(end: End, peer: int, slot: int, rounds: int) -> int:
    """Write blocks of one value each into the partner's slot, below the lanes; the last value."""
    size = end.links.inbound(peer, 0).numel()
    for number in range(1, rounds + 1):
        block = filled(size, number % 251)
        end.links.write(peer, slot, Header(number, 0, number, 0, size, size), block)
        left, given_back = False, False
        while not (left and given_back):
            for event in end.links.poll():
                left = left or isinstance(event, Sent)
                given_back = given_back or not isinstance(event, Sent)
    return rounds % 251


def read_rounds(end: End, peer: int, rounds: int) -> list[int]:
    """Rounds in which a block was not all there when its arrival was told."""
    torn = []
    for _ in range(rounds):
        arrived = None
        while arrived is None:
            arrived = next((e for e in end.links.poll() if isinstance(e, Arrived)), None)
        number = arrived.header.number
        if not bool((end.links.inbound(peer, arrived.slot) == number % 251).all()):
            torn.append(number)
        end.links.credit(peer, arrived.slot, number)
    end.links.poll()
    return torn


def open_files(end: End) -> int:
    return len(os.listdir("/proc/self/fd"))


def memory_kb(end: End) -> int:
    """Resident memory."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def inheritable(end: End) -> list[str]:
    """Files of links that a program started from here would have open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
            if "cdsp" in name and os.get_inheritable(int(fd)):
                found.append(name)
        except OSError:  # the listing's own
            continue
    return found
