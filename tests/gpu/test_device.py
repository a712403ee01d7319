"""On a GPU: ``pytest -m gpu``. The checks are those of ``python -m bench.gpu``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from bench.gpu import attention, environment, links, rings, speed
from bench.gpu.link_ends import ENDS
from bench.gpu.target import Target, target_for
from sglang_cdsp.parallel.mesh import Mesh
from sglang_cdsp.testing.rings import in_threads, own_stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
HERE = target_for(dry_run=not torch.cuda.is_available())
"""The GPU; where there is none these tests are collected for the CPU and skipped."""


@pytest.fixture(scope="module")
def meshes() -> Iterator[list[Mesh]]:
    with rings.meshes(HERE, max(rings.SIZES)) as found:
        yield found


@pytest.mark.parametrize(
    "work", [pytest.param(work, id=name) for name, work in attention.checks(HERE)]
)
def test_attention_and_merges(work: Callable[[], object]) -> None:
    work()


def test_every_implementation_is_there() -> None:
    attention.found_implementations(HERE)


@pytest.mark.parametrize("size", rings.SIZES)
@pytest.mark.parametrize("way", list(rings.WAYS))
def test_rings(meshes: list[Mesh], way: str, size: int) -> None:
    for case in rings.ring_cases(size, small=False):
        rings.check_ring(HERE, meshes, rings.WAYS[way], case)


@pytest.mark.parametrize("size", rings.SIZES)
def test_moves(meshes: list[Mesh], size: int) -> None:
    rings.check_moves(HERE, meshes, size)


def test_a_mesh_through_host_memory_waits_for_what_is_still_being_computed(
    meshes: list[Mesh],
) -> None:
    """What is sent is written by a kernel that has not begun; what came is read by the next one."""
    shape, rounds = (1 << 22,), 5

    def member(rank: int) -> list[float]:
        sums = []
        with own_stream(HERE.device):
            out, into = (torch.zeros(shape, device=HERE.device) for _ in range(2))
            for number in range(rounds):
                torch.cuda._sleep(20_000_000)
                out.fill_(10 * rank + number)
                work = [
                    meshes[rank].send(out, 1 - rank, 20),
                    meshes[rank].recv(into, 1 - rank, 20),
                ]
                out.fill_(-1.0)
                for one in work:
                    one.wait()
                sums.append(float(into.double().mean()))
        return sums

    found = in_threads(member, range(2))
    assert found == [[10.0 * (1 - rank) + n for n in range(rounds)] for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in ENDS if name != "NCCL"])
def test_links_between_two_processes(name: str) -> None:
    links.both(links.Pair(name, HERE).run())


def test_nccl_gives_a_clear_answer() -> None:
    links.refused_or_not(links.Pair("NCCL", HERE).run())


def test_speed_and_ceilings_are_measured() -> None:
    environment.product_ceiling(HERE)
    speed.parts_against_whole(HERE, 512, 8192)
    speed.gather_and_pack(HERE)


def test_the_target_is_the_gpu() -> None:
    assert Target(torch.device("cuda", 0), torch.bfloat16, small=False) == HERE
