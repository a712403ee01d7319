"""The implementations of links that one set of tests is for."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from sglang_cdsp.parallel.links.choose import make_links
from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.threads import Hook, at_once
from sglang_cdsp.parallel.links.types import Event, Links, LinkShape
from sglang_cdsp.testing.links import link_up, thread_hubs

CPU = torch.device("cpu")
POLLS = 20_000
"""Rounds of polls after which something will never come."""


@dataclass(frozen=True)
class Kind:
    """One implementation as it is set up for tests.

    Attributes:
        name: for test ids.
        links: what ``make_links`` calls it.
        environment: variables that are set when it is made.
        one_sided: whether a block lands while its receiver does nothing.
    """

    name: str
    links: str
    environment: Mapping[str, str] = field(default_factory=dict)
    one_sided: bool = True

    def make(self, seat: int, incarnation: int, shape: LinkShape) -> Links:
        """Links of one process."""
        with environment(self.environment):
            return make_links(self.links, seat, incarnation, shape, CPU)


SHARED = Kind("shared-memory", "shared-memory")
NIXL = Kind("nixl", "nixl")
NIXL_TCP = Kind("nixl-tcp", "nixl", {"UCX_TLS": "tcp"}, one_sided=False)
NIXL_WITHOUT_CMA = Kind("nixl-without-cma", "nixl", {"UCX_TLS": "^cma"}, one_sided=False)
BETWEEN_PROCESSES = (SHARED, NIXL, NIXL_TCP)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the time of the block; UCX reads them whenever an agent starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def hubs_of(kind: Kind | None, size: int, shape: LinkShape, hook: Hook = at_once) -> list[LinkHub]:
    """Linked hubs in this process; without a kind those for threads."""
    if kind is None:
        return thread_hubs(size, shape, hook)
    hubs = [LinkHub(kind.make(seat, 0, shape), shape) for seat in range(size)]
    link_up(hubs)
    return hubs


def drive(hubs: Sequence[LinkHub], ready: Callable[[], bool]) -> None:
    """Poll all hubs until it is so; fail if that never comes."""
    for number in range(POLLS):
        if ready():
            return
        if not sum(hub.poll() for hub in hubs) and number > 100:
            time.sleep(1e-4)
    raise AssertionError(f"nothing comes: {[hub.snapshot()['waiting'] for hub in hubs]}")


def shuffled(seat: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """A hook of links among threads: events in another order, some of them later."""
    draw = random.Random(len(events) + seat)
    order = draw.sample(list(events), len(events))
    return order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
