"""Members of SP groups as processes of their own, linked through a TCPStore."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from torch._C._distributed_c10d import TCPStore

from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.mesh import Mesh
from tests.parallel.ring_cases import RingCase, run_member

WAYS = {"kv": ring_attention, "q": q_ring_attention}


@dataclass(frozen=True)
class Members:
    """Worker processes by rank, and the pipe to each."""

    processes: tuple[BaseProcess, ...]
    pipes: tuple[Connection, ...]

    def run(self, way: str, case: RingCase) -> torch.Tensor:
        """Run ``case`` on the processes of its group; return the chunk's attention."""
        for rank in case.group:
            self.pipes[rank].send((way, case))
        outs = [self.pipes[rank].recv() for rank in case.group]
        failed = [out for out in outs if isinstance(out, str)]
        assert not failed, failed
        return case.assemble([torch.from_numpy(out) for out in outs])


@contextmanager
def members(size: int) -> Iterator[Members]:
    """Start ``size`` processes whose ranks are linked, and end them afterwards."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(size)]
    processes = [
        spawn.Process(target=serve, args=(rank, size, store.port, pipes[rank][1]), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        yield Members(tuple(processes), tuple(mine for mine, _ in pipes))
    finally:
        for process in processes:
            process.kill()
            process.join()


def serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    """Run this rank's part of every case that comes; answer with the result or the error."""
    torch.set_num_threads(1)
    mesh = Mesh.connect(
        rank, size, "127.0.0.1", port, "gloo", hosts_store=False, bind_host="127.0.0.1"
    )
    while True:
        way, case = pipe.recv()
        try:
            pipe.send(run_member(case, mesh, case.group.index(rank), WAYS[way]).numpy())
        except LinkError as error:
            mesh.close()  # so that members behind this one do not wait for it
            pipe.send(str(error))
