"""Links between ranks: real gloo, all ranks as threads of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.types import Message
from sglang_cdsp.parallel.mesh import Mesh
from tests.parallel.ring_cases import in_threads, thread_meshes


@pytest.fixture(scope="module")
def meshes() -> Iterator[list[Mesh]]:
    meshes = thread_meshes(3)
    yield meshes
    for mesh in meshes:
        mesh.close()


def test_the_default_group_stays_untouched(meshes: list[Mesh]) -> None:
    assert [mesh.rank for mesh in meshes] == [0, 1, 2]
    assert {mesh.size for mesh in meshes} == {3}
    assert not dist.is_initialized()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_everyone_sends_to_everyone_at_once(meshes: list[Mesh], dtype: torch.dtype) -> None:
    def exchange(rank: int) -> list[float]:
        peers = [peer for peer in range(3) if peer != rank]
        into = [torch.empty(70_000, dtype=dtype) for _ in peers]
        sends = [Message(torch.full((70_000,), 10 * rank + p, dtype=dtype), p) for p in peers]
        meshes[rank].exchange(
            sends, [Message(t, p) for t, p in zip(into, peers, strict=True)]
        ).wait()
        assert all(bool((t == t[0]).all()) for t in into)
        return [float(t[0]) for t in into]

    assert in_threads(exchange, range(3)) == [[10, 20], [1, 21], [2, 12]]


def test_tags_separate_streams_and_keep_order_within_one(meshes: list[Mesh]) -> None:
    def talk(rank: int) -> list[float]:
        if rank == 0:
            works = [
                meshes[0].send(torch.tensor([float(value)]), 1, tag)
                for tag, value in ((7, 1), (8, 2), (7, 3))
            ]
            for work in works:
                work.wait()
            return []
        into = [torch.empty(1) for _ in range(3)]
        for tensor, tag in zip(into, (8, 7, 7), strict=True):
            meshes[1].recv(tensor, 0, tag).wait()
        return [float(tensor) for tensor in into]

    assert in_threads(talk, range(2))[1] == [2.0, 1.0, 3.0]


def test_empty_messages_need_no_partner(meshes: list[Mesh]) -> None:
    meshes[0].send(torch.empty(0), 2).wait()


def test_misuse_is_refused(meshes: list[Mesh]) -> None:
    with pytest.raises(LinkError, match="contiguous"):
        meshes[0].send(torch.zeros(8)[::2], 1)
    with pytest.raises(LinkError, match="no link to rank 0"):
        meshes[0].send(torch.zeros(1), 0)
    with pytest.raises(LinkError, match="ranks 0 to 2"):
        meshes[0].recv(torch.zeros(1), 3)
    with pytest.raises(LinkError, match="connect the mesh with the backend"):
        meshes[0].send(torch.zeros(1, device="meta"), 1)


def test_a_link_outlives_the_time_allowed_for_meeting() -> None:
    store = HashStore()
    limit = timedelta(seconds=1)

    def wait_long(rank: int) -> float:
        mesh = Mesh.from_store(store, rank, 2, bind_host="127.0.0.1", timeout=limit)
        tensor = torch.full((4,), 5.0)
        if rank == 0:
            time.sleep(2 * limit.total_seconds())
            mesh.send(tensor, 1).wait()
        else:
            tensor.zero_()
            mesh.recv(tensor, 0).wait()
        mesh.close()
        return float(tensor.sum())

    assert in_threads(wait_long, range(2)) == [20.0, 20.0]


def test_a_partner_that_leaves_is_an_error_not_a_hang() -> None:
    left, right = thread_meshes(2)
    waiting = threading.Event()

    def wait_for_right() -> str:
        work = left.recv(torch.empty(4), 1)
        waiting.set()
        try:
            work.wait()
        except LinkError as error:
            return str(error)
        return "no error"

    def leave() -> str:
        assert waiting.wait(10)
        right.close()
        return ""

    messages = in_threads(lambda rank: [wait_for_right, leave][rank](), range(2))
    assert "rank(s) [1]" in messages[0]
    left.close()
    with pytest.raises(LinkError, match="closed"):
        left.send(torch.zeros(1), 1)


def test_rank_0_opens_the_store() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def connect(rank: int) -> float:
        mesh = Mesh.connect(rank, 2, "127.0.0.1", port, bind_host="127.0.0.1")
        value = torch.tensor([7.0 * rank])
        (mesh.send if rank else mesh.recv)(value, 1 - rank).wait()
        return float(value)

    assert in_threads(connect, range(2)) == [7.0, 7.0]


def test_meeting_is_limited_in_time() -> None:
    with pytest.raises(LinkError, match="check that every instance is up"):
        Mesh.from_store(
            HashStore(), 0, 2, bind_host="127.0.0.1", timeout=timedelta(milliseconds=300)
        )
    with pytest.raises(LinkError, match="'gloo'"):
        Mesh.from_store(HashStore(), 0, 1, "mpi")
