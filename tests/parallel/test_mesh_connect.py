"""Connecting a mesh, and connecting it again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from sglang_cdsp.parallel import process_groups
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.mesh import Mesh


def test_all_ranks_connect_again_when_one_could_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo's handshake fails now and then; the others must not be left with half a mesh."""
    connect, calls = process_groups.gloo_group, [0, 0]

    def flaky(store: Any, rank: int, *more: Any) -> Any:
        group = connect(store, rank, *more)
        calls[rank] += 1
        if rank == 1 and calls[1] == 1:
            raise RuntimeError("connection closed by peer")
        return group

    monkeypatch.setattr(process_groups, "gloo_group", flaky)
    store = HashStore()
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(Mesh.from_store, store, rank, 2) for rank in range(2)]
        meshes = [job.result(timeout=60) for job in jobs]
    assert calls == [2, 2]
    there = torch.zeros(3)
    arrival = meshes[1].recv(there, 0)
    meshes[0].send(torch.ones(3), 1).wait()
    arrival.wait()
    assert there.tolist() == [1.0, 1.0, 1.0]
    for mesh in meshes:
        mesh.close()


def test_a_mesh_that_cannot_be_connected_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no route")

    monkeypatch.setattr(process_groups, "gloo_group", broken)
    with pytest.raises(LinkError, match=r"3 tries failed.*no route"):
        Mesh.from_store(HashStore(), 0, 1)
