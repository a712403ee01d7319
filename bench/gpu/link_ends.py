"""What each of two linked processes does, by link."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing  # registers how tensors travel through a pipe: as shared memory

from bench.gpu.target import Target, target_for
from sglang_cdsp.parallel.links.choose import make_links
from sglang_cdsp.parallel.links.lanes import Lane, LinkHub
from sglang_cdsp.parallel.links.types import LinkShape, Message

POLL_LIMIT_S = 20.0
TIMES = 5
SHAPE = LinkShape(lanes=1, depth=2, slot_bytes=4 << 20)
BLOCKS = 8
"""More than a lane has slots."""
SLEEP_CYCLES = 20_000_000
End = Callable[[int, Connection, Target], dict[str, Any]]
"""What an end does, given its rank, a pipe to the other end and the device."""
READY = "ready"
"""What an end says when its turn may come."""


def run_end(name: str, rank: int, peer: Connection, report: Connection, dry_run: bool) -> None:
    """Get ready, wait for the word to begin, run one end and report: a process's entry point."""
    try:
        torch.set_num_threads(1)
        target = target_for(dry_run)
        torch.zeros(1, device=target.device)
        target.synchronize()
        report.send(READY)
        report.recv()
        figures = ENDS[name](rank, peer, target)
        report.send((True, figures))
    except BaseException:
        report.send((False, "\n".join(traceback.format_exc().splitlines()[-8:])))
    report.close()
    os._exit(0)  # what hangs when it is taken down must not hold the check up


def elements(target: Target) -> int:
    """Int32 elements of the message: 64 MiB, or 1 MiB in a dry run."""
    return (1 << 18) if target.small else (1 << 24)


def pattern(target: Target, seed: int) -> torch.Tensor:
    """Numbers of which no two neighbours are alike, int32."""
    ramp = torch.arange(elements(target), dtype=torch.int32, device=target.device)
    return ramp * 7 + seed


def require(right: bool, what: str) -> None:
    """Raise ``RuntimeError`` unless ``right``."""
    if not right:
        raise RuntimeError(what)


def nixl_write(rank: int, peer: Connection, target: Target) -> dict[str, Any]:
    """A write over UCX into the other's memory, and the notification that it is there."""
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent(f"end{rank}-{os.getpid()}", nixl_agent_config(backends=["UCX"]))
    tensor = pattern(target, 3) if rank == 0 else torch.zeros_like(pattern(target, 0))
    target.synchronize()
    registered = agent.register_memory(tensor)
    if rank == 1:
        described = agent.get_serialized_descs(agent.get_xfer_descs(tensor))
        peer.send((agent.get_agent_metadata(), described))
        for number in range(TIMES):
            _await(lambda: any(agent.get_new_notifs().values()), "no notification came")
            require(torch.equal(tensor, pattern(target, 3)), f"write {number} is not all there")
            tensor.zero_()
            target.synchronize()
            peer.send("next")
        return {}
    metadata, described = peer.recv()
    name = agent.add_remote_agent(metadata)
    remote = agent.deserialize_descs(described)
    source = agent.get_xfer_descs(tensor)
    times = []
    for number in range(TIMES):
        words = f"write {number}".encode()
        handle = agent.initialize_xfer("WRITE", source, remote, name, words)
        began = time.perf_counter()
        state = [agent.transfer(handle)]
        _await(lambda: _done(agent, handle, state), "the write did not end")  # noqa: B023
        times.append(time.perf_counter() - began)
        agent.release_xfer_handle(handle)
        require(_next(peer) == "next", "the other end found it wrong")
    agent.deregister_memory(registered)
    return {"first GB/s": tensor.nbytes / times[0] / 1e9, "GB/s": tensor.nbytes / min(times) / 1e9}


def _done(agent: Any, handle: Any, state: list[str]) -> bool:
    if state[0] == "PROC":
        state[0] = agent.check_xfer_state(handle)
    require(state[0] in ("PROC", "DONE"), f"the write ended as {state[0]}")
    return state[0] == "DONE"


def _await(ready: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + POLL_LIMIT_S
    while not ready():
        require(time.monotonic() < deadline, otherwise)


def _next(peer: Connection) -> Any:
    require(peer.poll(POLL_LIMIT_S), "the other end said nothing")
    return peer.recv()


def shared_memory(rank: int, peer: Connection, target: Target) -> dict[str, Any]:
    """One end opens the other's tensor (CUDA IPC on a GPU), reads it and writes into it."""
    if rank == 0:
        mine = pattern(target, 5)
        target.synchronize()
        peer.send(mine)
        require(_next(peer) == "written", "the other end failed")
        require(torch.equal(mine, pattern(target, 6)), "what the other end wrote is not all here")
        peer.send("seen")
        return {}
    theirs = _next(peer)
    copy = torch.empty_like(theirs)
    times = []
    for _ in range(TIMES):
        target.synchronize()
        began = time.perf_counter()
        copy.copy_(theirs)
        target.synchronize()
        times.append(time.perf_counter() - began)
    require(torch.equal(copy, pattern(target, 5)), "what was read is not what is there")
    theirs.copy_(pattern(target, 6))
    target.synchronize()
    peer.send("written")
    require(_next(peer) == "seen", "the other end did not see what was written")
    return {"GB/s": copy.nbytes / min(times) / 1e9}


def pool_links(kind: str) -> End:
    """The pool's own links of one kind, both ways at once."""

    def end(rank: int, peer: Connection, target: Target) -> dict[str, Any]:
        hub, lane = linked(kind, rank, peer, target)
        out, into = pattern(target, rank), torch.zeros_like(pattern(target, 0))
        times = []
        for _ in range(TIMES):
            into.zero_()
            target.synchronize()
            began = time.perf_counter()
            lane.exchange([Message(out, 1 - rank)], [Message(into, 1 - rank)]).wait()
            target.synchronize()
            times.append(time.perf_counter() - began)
            require(torch.equal(into, pattern(target, 1 - rank)), "what came is not what was sent")
        finish(hub, lane, peer)
        return {f"GB/s each way, end {rank}": out.nbytes / min(times) / 1e9}

    return end


def links_in_order(rank: int, peer: Connection, target: Target) -> dict[str, Any]:
    """Blocks that are still to be computed, and slots that are still to be read.

    What is sent is written by a kernel that has not begun when it is posted; what comes is read
    by copies that have not begun when the next block wants their slot. More blocks than slots.
    """
    hub, lane = linked("nixl", rank, peer, target)
    rows = 64 if target.small else SHAPE.slot_bytes // 4
    out = [torch.zeros(rows, dtype=torch.int32, device=target.device) for _ in range(BLOCKS)]
    into = [torch.zeros_like(tensor) for tensor in out]
    target.synchronize()
    works = []
    for number in range(BLOCKS):
        if target.cuda:
            torch.cuda._sleep(SLEEP_CYCLES)
        out[number].fill_(100 * rank + number + 1)
        works.append(
            lane.exchange([Message(out[number], 1 - rank)], [Message(into[number], 1 - rank)])
        )
    for work in works:
        work.wait()
    for number, tensor in enumerate(into):
        wanted = 100 * (1 - rank) + number + 1
        require(bool((tensor == wanted).all()), f"block {number} is not what was computed")
    finish(hub, lane, peer)
    return {f"blocks in order, end {rank}": len(into)}


def linked(kind: str, rank: int, peer: Connection, target: Target) -> tuple[LinkHub, Lane]:
    """This end's hub, and a lane to the other end."""
    hub = LinkHub(make_links(kind, rank, 0, SHAPE, target.device), SHAPE)
    peer.send(hub.invite(1 - rank))
    hub.join(1 - rank, 0, _next(peer))
    return hub, hub.open(0, 1, (0, 1))


def finish(hub: LinkHub, lane: Lane, peer: Connection) -> None:
    """Leave when the other end has all that it wants."""
    peer.send("done")

    def said() -> bool:
        hub.poll()
        return peer.poll()

    _await(said, "the other end said nothing")
    require(peer.recv() == "done", "the other end failed")
    lane.close()
    hub.close()


ENDS: dict[str, End] = {
    "NIXL over UCX, write and notification": nixl_write,
    "shared memory (CUDA IPC)": shared_memory,
    "links over NIXL": pool_links("nixl"),
    "links over NIXL, blocks and slots in the device's order": links_in_order,
    "links through the host": pool_links("shared-memory"),
}
