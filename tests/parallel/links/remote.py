"""A process with links of its own that runs functions for a test."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from sglang_cdsp.parallel.links.lanes import Lane, LinkHub
from sglang_cdsp.parallel.links.types import Links, LinkShape
from sglang_cdsp.parallel.links.work import Work
from tests.parallel import processes
from tests.parallel.links.kinds import Kind

ANSWER_S = 60.0


class End:
    """What a process keeps between the functions that it runs."""

    def __init__(self, kind: Kind, seat: int, incarnation: int, shape: LinkShape) -> None:
        self.pipe: Connection
        self.links: Links = kind.make(seat, incarnation, shape)
        self.hub = LinkHub(self.links, shape)
        self.lane: Lane
        self.works: list[Work] = []
        self.tensors: list[torch.Tensor] = []


Function = Callable[..., Any]


class Remote:
    """The process, seen from the test."""

    def __init__(
        self,
        kind: Kind,
        seat: int,
        shape: LinkShape,
        incarnation: int = 0,
        condition: Callable[[], None] | None = None,
    ) -> None:
        """Start it; ``condition`` is what it does to itself first."""
        context = processes.context()
        self.seat, self.incarnation = seat, incarnation
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, kind, seat, incarnation, shape, condition), daemon=True
        )
        self.process.start()
        theirs.close()

    def made(self) -> str:
        """Wait until it is under its condition; why it is not, or "" ."""
        try:
            self.answer()
        except RuntimeError as error:
            return str(error)
        return ""

    def begin(self, function: Function, *arguments: Any) -> None:
        """Have it run ``function(end, *arguments)``, a function of some module."""
        self._pipe.send((function, arguments))

    def answer(self) -> Any:
        """What the function returned; raises what it raised, as text."""
        assert self._pipe.poll(ANSWER_S), f"process {self.seat} does not answer"
        fine, value = self._pipe.recv()
        if not fine:
            raise RuntimeError(value)
        return value

    def call(self, function: Function, *arguments: Any) -> Any:
        """Run it and wait for what it returns."""
        self.begin(function, *arguments)
        return self.answer()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def freeze(self) -> None:
        """Stop it, and see that it has stopped."""
        self.signal(signal.SIGSTOP)
        while state_of(self.process.pid) != "T":
            pass

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def state_of(pid: int | None) -> str:
    """The state of a process: R, S, D, T, Z."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def serve(
    pipe: Connection,
    kind: Kind,
    seat: int,
    incarnation: int,
    shape: LinkShape,
    condition: Callable[[], None] | None,
) -> None:
    """Run functions until the pipe ends: a process's entry point."""
    torch.set_num_threads(1)
    if condition is not None:
        try:
            condition()
        except OSError as error:
            pipe.send((False, str(error)))
            return
        pipe.send((True, ""))
    end = End(kind, seat, incarnation, shape)
    end.pipe = pipe
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(end, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def link(processes: Sequence[Remote]) -> None:
    """Link every pair."""
    for one in processes:
        for other in processes:
            if one.seat < other.seat:
                link_pair(one, other)


def link_pair(one: Remote, other: Remote) -> None:
    to_other, to_one = one.call(invite, other.seat), other.call(invite, one.seat)
    one.call(join, other.seat, other.incarnation, to_one)
    other.call(join, one.seat, one.incarnation, to_other)


# Functions that a process runs.


def invite(end: End, seat: int) -> bytes:
    return end.hub.invite(seat)


def join(end: End, seat: int, incarnation: int, invitation: bytes) -> None:
    end.hub.join(seat, incarnation, invitation)


def drop(end: End, seat: int) -> None:
    end.hub.drop(seat)
