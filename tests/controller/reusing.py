"""A pool of fake instances with prefixes cached: drawn for each prompt, and sometimes gone."""

from __future__ import annotations

import random

from sglang_cdsp.controller.homes import tokens_to_reuse, with_home
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.types import HeldPrefix
from tests.controller.fake_pool import FakePool
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
        need = tokens_to_reuse(request, self._page)
        return tuple(HeldPrefix(seat, tokens, need) for seat, tokens in drawn)

    def cached_of(self, request: PoolRequest) -> dict[int, int]:
        """Drawn, too."""
        seats = self._random.sample(range(self._size), self._random.randint(0, 2))
        return {seat: self._random.randint(1, request.tokens) for seat in seats}

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


class ReusingPrefillPool(FakePool):
    """The same before decode servers: homes with the room for a prompt end with all of it.

    Attributes:
        kept: requests whose homes were to do so, each time.
    """

    prefixes: DrawnPrefixes

    def __init__(self, **options: object) -> None:
        self.kept: list[PoolRequest] = []
        super().__init__(**options)  # type: ignore[arg-type]

    def make_prefixes(self, size: int, page_size: int) -> DrawnPrefixes:
        """Drawn ones."""
        self.prefixes = DrawnPrefixes(size, page_size)
        return self.prefixes

    def _demand(self, request: PoolRequest, slots: dict[int, int], home: int) -> dict[int, int]:
        assert request.plan is not None
        if request.keeps:
            self.kept.append(request)
        return with_home(slots, home, request, self.page_size, request.plan.reused)
