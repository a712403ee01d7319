"""Random messages in random orders arrive as they were sent, over every implementation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.links.lanes import Lane, LinkHub
from sglang_cdsp.parallel.links.types import LinkShape, Message
from sglang_cdsp.parallel.links.work import Work
from tests.parallel.links.kinds import (
    NIXL,
    NIXL_TCP,
    NIXL_WITHOUT_CMA,
    SHARED,
    Kind,
    drive,
    hubs_of,
    shuffled,
)

SEATS, LANES, SLOT = 3, 3, 64
KINDS = [None, "reordered", SHARED, NIXL, NIXL_TCP, NIXL_WITHOUT_CMA]


@dataclass
class Pool:
    """Hubs by depth, made when they are first needed; and serials, none of them used twice."""

    make: Callable[[LinkShape], list[LinkHub]]
    made: dict[int, list[LinkHub]]
    serials: Iterator[int]

    def hubs(self, depth: int) -> list[LinkHub]:
        if depth not in self.made:
            self.made[depth] = self.make(LinkShape(LANES, depth, SLOT))
        return self.made[depth]


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: getattr(k, "name", k or "threads"))
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    kind: Kind | str | None = request.param

    def make(shape: LinkShape) -> list[LinkHub]:
        if isinstance(kind, str):
            return hubs_of(None, SEATS, shape, shuffled)
        return hubs_of(kind, SEATS, shape)

    pool = Pool(make, {}, itertools.count())
    yield pool
    for hub in itertools.chain(*pool.made.values()):
        hub.close()


@dataclass(frozen=True)
class Sent:
    """One message of an example."""

    lane: int
    src: int
    dst: int
    size: int
    tag: int


@st.composite
def messages(draw: st.DrawFn) -> Sent:
    src, dst = draw(st.permutations(range(SEATS)))[:2]
    size = draw(st.one_of(st.integers(0, 5 * SLOT), st.sampled_from([0, SLOT, 2 * SLOT])))
    return Sent(draw(st.integers(0, LANES - 1)), src, dst, size, draw(st.integers(-2, 2)))


def content(number: int, size: int) -> torch.Tensor:
    return (torch.arange(size) * 7 + number * 31).to(torch.uint8)


@settings(print_blob=True, deadline=None, max_examples=60)
@given(
    talk=st.lists(messages(), max_size=25), depth=st.sampled_from([1, 2, 3]), seed=st.integers(0)
)
def test_what_comes_is_what_was_sent(pool: Pool, talk: list[Sent], depth: int, seed: int) -> None:
    """Lanes post independently of each other, so blocks come before and after their receives."""
    draw = random.Random(seed)
    hubs, serial = pool.hubs(depth), next(pool.serials)
    lanes = {
        (seat, lane): hubs[seat].open(lane, serial, range(SEATS))
        for seat in range(SEATS)
        for lane in range(LANES)
    }
    into = [torch.zeros(message.size, dtype=torch.uint8) for message in talk]
    to_post = {
        place: [
            (number, message)
            for number, message in enumerate(talk)
            if message.lane == place[1] and place[0] in (message.src, message.dst)
        ]
        for place in lanes
    }
    works: list[Work] = []
    while any(to_post.values()):
        place = draw.choice([place for place, left in to_post.items() if left])
        if draw.random() < 0.3:
            hubs[draw.randrange(SEATS)].poll()
        count = draw.randint(1, 3)
        now, to_post[place] = to_post[place][:count], to_post[place][count:]
        works.append(post(lanes[place], place[0], now, into))
    drive(hubs, lambda: all(work.done() for work in works))
    for work in works:
        work.wait()
    for number, (message, tensor) in enumerate(zip(talk, into, strict=True)):
        assert torch.equal(tensor, content(number, message.size)), message
    assert all(lane.settled() for lane in lanes.values())
    for lane in lanes.values():
        lane.close()


def post(lane: Lane, seat: int, part: list[tuple[int, Sent]], into: list[torch.Tensor]) -> Work:
    """One exchange of ``part`` as ``seat`` sees it."""
    return lane.exchange(
        [Message(content(n, m.size), m.dst, m.tag) for n, m in part if m.src == seat],
        [Message(into[n], m.src, m.tag) for n, m in part if m.dst == seat],
    )
