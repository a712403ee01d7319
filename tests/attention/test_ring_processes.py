"""Ring attention between processes, as instances run it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator

import pytest

from tests.parallel.ring_cases import RingCase
from tests.parallel.ring_worker import WAYS, Members, members

RANKS = 4


KINDS = ["shared-memory", "nixl"]


@pytest.fixture(scope="module", params=KINDS)
def pool(request: pytest.FixtureRequest) -> Iterator[Members]:
    with members(RANKS, request.param) as pool:
        yield pool


def cases() -> list[RingCase]:
    """Groups of every size, short and long chunks, with and without history."""
    groups = [(2,), (3, 1), (1, 0, 2), (0, 1, 2, 3), (3, 0, 2, 1)]
    shapes = [(0, 1), (0, 127), (0, 509), (64, 2), (64, 3), (640, 1), (640, 129), (128, 700)]
    pages = itertools.cycle([1, 16, 64])
    heads = itertools.cycle([(4, 4), (8, 2), (6, 1)])
    return [
        RingCase(
            group, history, tokens, next(pages), *next(heads), seed=seed, lopsided=seed % 5 == 0
        )
        for seed, (group, (history, tokens)) in enumerate(itertools.product(groups, shapes))
    ]


@pytest.mark.parametrize("way", list(WAYS))
def test_equals_attention_over_the_full_sequence(pool: Members, way: str) -> None:
    for case in cases():
        out = pool.run(way, case)
        worst = float((out.double() - case.expected()).abs().max())
        assert worst < 1e-5, case


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_member_is_an_error_at_its_partner_once_it_is_dropped(kind: str) -> None:
    case = RingCase((0, 1), history=30, tokens=40)
    with members(2, kind) as pool:
        pool.run("kv", case)
        victim = pool.processes[1]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        pool.start("kv", case)
        pool.pipes[0].send(("drop", 1))
        assert pool.pipes[0].poll(30), "no hang"
        assert "instance 1 broke" in pool.pipes[0].recv()
