"""A pool of fake instances with prefixes cached: drawn for each prompt, and sometimes gone."""

from __future__ import annotations

import random

from sglang_cdsp.controller.homes import home_tokens
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.types import HeldPrefix
from tests.controller.one_server import OneServerPool


class DrawnPrefixes(PoolPrefixes):
    """Says that some instances have some pages of every prompt, and keeps who missed them.

    Attributes:
        reused: requests that were bound to a plan that reuses a prefix, each time.
        misses: requests whose home did not find it.
    """

    def __init__(self, size: int, page_size: int) -> None:
        super().__init__([1 << 20] * size, page_size)
        self._size = size
        self._random = random.Random(size)
        self._drawn: dict[str, tuple[PoolRequest, tuple[tuple[int, int], ...]]] = {}
        self.reused: list[PoolRequest] = []
        self.misses: list[PoolRequest] = []

    def waits(self, request: PoolRequest) -> None:
        """Draw who has what of it: nobody, or up to two instances."""
        most = (request.tokens - 1) // self._page
        if request.missed or not most:
            return
        seats = self._random.sample(range(self._size), self._random.randint(0, 2))
        lengths = [self._random.randint(1, most) * self._page for _ in seats]
        self._drawn[request.rid] = request, tuple(zip(seats, lengths, strict=True))

    def held(self, rid: str) -> tuple[HeldPrefix, ...]:
        """As drawn."""
        if rid not in self._drawn:
            return ()
        request, drawn = self._drawn[rid]
        need = home_tokens(request, self._page)
        return tuple(HeldPrefix(seat, tokens, need) for seat, tokens in drawn)

    def leaves(self, request: PoolRequest) -> None:
        """A request waits no longer."""
        known = self._drawn.get(request.rid)
        if known is None or known[0] is not request:
            return
        del self._drawn[request.rid]
        if request.plan is not None and request.plan.reused:
            self.reused.append(request)

    def missed(self, request: PoolRequest, found: int) -> None:
        """A home did not find it."""
        assert request.plan is not None
        assert found < request.plan.reused
        assert request not in self.misses, "a request misses once"
        self.misses.append(request)


class ReusingPool(OneServerPool):
    """A pool whose plans start from cached prefixes."""

    prefixes: DrawnPrefixes

    def make_prefixes(self, size: int, page_size: int) -> DrawnPrefixes:
        """Drawn ones."""
        self.prefixes = DrawnPrefixes(size, page_size)
        return self.prefixes
