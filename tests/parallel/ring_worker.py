"""Members of SP groups as processes of their own, linked as instances are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.choose import make_links
from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.types import LinkShape
from tests.parallel import processes
from tests.parallel.ring_cases import Attention, RingCase, run_member

WAYS: dict[str, Attention] = {"kv": ring_attention, "q": q_ring_attention}
SHAPE = LinkShape(lanes=1, depth=2, slot_bytes=32 << 10)


@dataclass
class Members:
    """Worker processes by seat, and the pipe to each."""

    processes: tuple[BaseProcess, ...]
    pipes: tuple[Connection, ...]
    serial: int = field(default=0)

    def start(self, way: str, case: RingCase) -> None:
        """Have the members of the case's group begin."""
        self.serial += 1
        for seat in case.group:
            self.pipes[seat].send((way, case, self.serial))

    def run(self, way: str, case: RingCase) -> torch.Tensor:
        """Run ``case`` on the processes of its group; return the chunk's attention."""
        self.start(way, case)
        outs = [self.pipes[seat].recv() for seat in case.group]
        failed = [out for out in outs if isinstance(out, str)]
        assert not failed, failed
        return case.assemble([torch.from_numpy(out) for out in outs])


@contextmanager
def members(size: int, kind: str) -> Iterator[Members]:
    """Start ``size`` processes that are linked, and end them afterwards."""
    start = processes.context()
    pipes = [start.Pipe() for _ in range(size)]
    workers = [
        start.Process(target=serve, args=(seat, size, kind, pipes[seat][1]), daemon=True)
        for seat in range(size)
    ]
    for worker in workers:
        worker.start()
    try:
        invitations = [mine.recv() for mine, _ in pipes]
        for seat, (mine, _) in enumerate(pipes):
            mine.send({other: invitations[other][seat] for other in range(size) if other != seat})
        yield Members(tuple(workers), tuple(mine for mine, _ in pipes))
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def serve(seat: int, size: int, kind: str, pipe: Connection) -> None:
    """Run this seat's part of every case that comes; answer with the result or the error.

    Meanwhile the word ``("drop", seat)`` may come, as from whoever supervises the processes.
    """
    torch.set_num_threads(1)
    others = [other for other in range(size) if other != seat]

    def give_way(ready: Callable[[], bool] | None) -> None:
        if not hub.poll() and ready is not None:
            time.sleep(100e-6)
            if pipe.poll():
                hub.drop(pipe.recv()[1])

    hub = LinkHub(make_links(kind, seat, 0, SHAPE, torch.device("cpu")), SHAPE, give_way)
    pipe.send({other: hub.invite(other) for other in others})
    for other, invitation in pipe.recv().items():
        hub.join(other, 0, invitation)
    while True:
        # A block's last piece may still be on its way to a partner that has none to give back.
        while not pipe.poll(0.001):
            hub.poll()
        way, case, serial = pipe.recv()
        answer: Any
        lane = hub.open(0, serial, case.group)
        try:
            answer = run_member(case, lane, case.group.index(seat), WAYS[way]).numpy()
        except LinkError as error:
            answer = str(error)
        lane.close()
        pipe.send(answer)
