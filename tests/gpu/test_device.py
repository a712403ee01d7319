"""On a GPU: ``pytest -m gpu``. The checks are those of ``python -m bench.gpu``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from bench.gpu import attention, environment, links, pacing, paged, rings, speed
from bench.gpu.link_ends import ENDS
from bench.gpu.target import Target, target_for
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.links.types import Message
from sglang_cdsp.testing.rings import in_threads, own_stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
HERE = target_for(dry_run=not torch.cuda.is_available())
"""The GPU; where there is none these tests are collected for the CPU and skipped."""


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    with rings.lanes(HERE, max(rings.SIZES)) as found:
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
def test_rings(lanes: list[Lane], way: str, size: int) -> None:
    for case in rings.ring_cases(size, small=False):
        rings.check_ring(HERE, lanes, rings.WAYS[way], case)


@pytest.mark.parametrize("size", rings.SIZES)
def test_moves(lanes: list[Lane], size: int) -> None:
    rings.check_moves(HERE, lanes, size)


def test_links_through_host_memory_wait_for_what_is_still_being_computed(
    lanes: list[Lane],
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
                work = lanes[rank].exchange(
                    [Message(out, 1 - rank, 20)], [Message(into, 1 - rank, 20)]
                )
                work.wait()
                out.fill_(-1.0)
                sums.append(float(into.double().mean()))
        return sums

    found = in_threads(member, range(2))
    assert found == [[10.0 * (1 - rank) + n for n in range(rounds)] for rank in range(2)]


@pytest.mark.parametrize("name", list(ENDS))
def test_links_between_two_processes(name: str) -> None:
    links.both(links.Pair(name, HERE).run())


@pytest.mark.parametrize("work", [pytest.param(work, id=name) for name, work in paged.checks(HERE)])
def test_rows_read_in_the_pool(work: Callable[[], object]) -> None:
    work()


def test_speed_and_ceilings_are_measured() -> None:
    environment.product_ceiling(HERE)
    speed.parts_against_whole(HERE, 512, 8192)
    speed.gathered_message(HERE)
    pacing.pace_bound(HERE)
    pacing.stopwatch(HERE)


def test_the_target_is_the_gpu() -> None:
    assert Target(torch.device("cuda", 0), torch.bfloat16, small=False) == HERE
