"""Pools whose seats have roles, for tests."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.roles import parse_roles
from tests.controller.cases import TWO_CHUNKS, phase_is
from tests.controller.one_server import OneServerPool


def pool_of(roles: str, **options: Any) -> OneServerPool:
    """A pool of so many seats with these roles."""
    found = parse_roles(roles)
    pool = OneServerPool(size=len(found.seats), **{"policy": "threshold:1000", **options})
    pool.lifecycle.on_roles(found, "a test")
    return pool


def decoding(pool: OneServerPool, tokens: int = 100, plan: Any = TWO_CHUNKS) -> PoolRequest:
    """A request whose home decodes it."""
    request = pool.submit(tokens, plan=plan)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    return request


def turn(pool: OneServerPool, roles: str) -> None:
    pool.lifecycle.on_roles(parse_roles(roles), "a test")


def names(pool: OneServerPool) -> list[str]:
    """What could happen now."""
    return [move.name for move in pool.moves()]
