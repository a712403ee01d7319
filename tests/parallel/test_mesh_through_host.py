"""Links that copy through host memory, here with the CPU as the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.types import Message
from sglang_cdsp.parallel.mesh import BACKEND_VAR, Mesh, pool_backend
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Move, Span
from tests.parallel.ring_cases import RingCase, in_threads, run_threads, thread_meshes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def meshes() -> Iterator[list[Mesh]]:
    meshes = thread_meshes(3, "gloo-host", CPU)
    yield meshes
    for mesh in meshes:
        mesh.close()


def test_what_arrives_is_in_the_tensor_after_the_wait_and_not_before(meshes: list[Mesh]) -> None:
    into = torch.zeros(50_000)
    arrival = meshes[1].recv(into, 0, tag=5)
    meshes[0].send(torch.full((50_000,), 7.0), 1, tag=5).wait()
    assert not into.any()
    arrival.wait()
    assert bool((into == 7.0).all())


def test_what_is_sent_may_be_overwritten_at_once(meshes: list[Mesh]) -> None:
    """It was copied: gloo never reads the device's memory."""
    tensor, into = torch.full((200_000,), 3.0), torch.zeros(200_000)
    work = meshes[0].send(tensor, 2, tag=9)
    tensor.fill_(-1.0)
    meshes[2].recv(into, 0, tag=9).wait()
    work.wait()
    assert bool((into == 3.0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.float32])
def test_everyone_sends_to_everyone_at_once(meshes: list[Mesh], dtype: torch.dtype) -> None:
    def exchange(rank: int) -> list[float]:
        peers = [peer for peer in range(3) if peer != rank]
        into = [torch.empty(3, 1000, dtype=dtype) for _ in peers]
        sends = [Message(torch.full((3, 1000), 10 * rank + p, dtype=dtype), p) for p in peers]
        recvs = [Message(t, p) for t, p in zip(into, peers, strict=True)]
        meshes[rank].exchange(sends, recvs).wait()
        assert all(bool((t == t[0, 0]).all()) for t in into)
        return [float(t[0, 0]) for t in into]

    assert in_threads(exchange, range(3)) == [[10, 20], [1, 21], [2, 12]]


@pytest.mark.parametrize("way", [ring_attention, q_ring_attention])
def test_ring_attention_over_it(meshes: list[Mesh], way: object) -> None:
    case = RingCase(group=(1, 2, 0), history=96, tokens=101, page_size=16)
    out = run_threads(case, meshes, way)  # type: ignore[arg-type]
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


def test_moves_over_it(meshes: list[Mesh]) -> None:
    moves = [Move(0, 1, Span(2, 5))]
    pools = [torch.arange(24.0).view(8, 1, 3) * (rank + 1) for rank in range(2)]

    def move(rank: int) -> None:
        values = pools[rank] + 100
        handle = start_moves(
            pools[rank], values, moves, rank, lambda s: torch.arange(s.start, s.stop), meshes[rank]
        )
        handle.wait()

    in_threads(move, range(2))
    assert torch.equal(pools[1][2:5], torch.arange(24.0).view(8, 1, 3)[2:5])
    assert torch.equal(pools[1][5:], 2 * torch.arange(24.0).view(8, 1, 3)[5:])


def test_a_partner_that_leaves_is_an_error() -> None:
    left, right = thread_meshes(2, "gloo-host", CPU)
    into = torch.zeros(4)
    work = left.recv(into, 1)
    in_threads(lambda _: right.close(), range(1))
    with pytest.raises(LinkError, match=r"rank\(s\) \[1\]"):
        work.wait()
    assert not into.any()
    left.close()


def test_the_pools_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKEND_VAR, raising=False)
    assert (pool_backend("cuda"), pool_backend("cpu")) == ("nccl", "gloo")
    monkeypatch.setenv(BACKEND_VAR, "gloo-host")
    assert (pool_backend("cuda"), pool_backend("cpu")) == ("gloo-host", "gloo-host")
    monkeypatch.setenv(BACKEND_VAR, "mpi")
    with pytest.raises(LinkError, match="SGLANG_CDSP_MESH_BACKEND='mpi'"):
        pool_backend("cpu")


@pytest.mark.skipif(torch.distributed.is_nccl_available(), reason="this torch has NCCL")
def test_a_torch_without_nccl_says_so() -> None:
    with pytest.raises(LinkError, match="without NCCL"):
        Mesh.from_store(HashStore(), 0, 1, "nccl", device=torch.device("cuda", 0))
