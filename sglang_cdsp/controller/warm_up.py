"""Before anybody is served, every instance runs a chunk and every link carries one.

The first use of a kernel compiles or loads it and the first message of a link connects it, which
takes seconds, and what cannot run at all is found out before a request depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Plan, PlannedChunk

logger = logging.getLogger(__name__)

LEAST_TOKENS = 16
"""A member's tokens in a chunk, rounded up to whole pages: enough for any kernel to start."""


def warm_up_plans(
    instances: int, sizes: Sequence[int], page_size: int, room_tokens: int
) -> Iterator[Plan]:
    """Short plans that use every pair of instances and every SP size.

    A pair's second chunk circulates KV both ways, and before it history moves to the joining one.

    Args:
        instances: of the pool.
        sizes: SP sizes.
        page_size: tokens of a KV page.
        room_tokens: KV slots of every instance; plans that need more are left out.
    """
    pairs = [((a,), (a, b)) for a, b in combinations(range(instances), 2)]
    larger = [(tuple(range(size)),) for size in sizes if size > 2]
    for groups in (*pairs, *larger):
        chunks = [PlannedChunk(_tokens(len(g), page_size), g, 0.0, 0.0) for g in groups]
        demand = kv_demand([(c.tokens, c.instances) for c in chunks], page_size)
        if max(demand.values()) <= room_tokens:
            yield Plan(chunks=tuple(chunks), ttft_s=0.0, policy="warm-up")


def joining_plan(seat: int, partner: int | None, page_size: int) -> Plan:
    """A short plan for an instance that joins: alone, or with one partner over their link."""
    groups = [(seat,)] if partner is None else [(seat,), (seat, partner)]
    chunks = [PlannedChunk(_tokens(len(g), page_size), g, 0.0, 0.0) for g in groups]
    return Plan(chunks=tuple(chunks), ttft_s=0.0, policy="warm-up")


def _tokens(size: int, page_size: int) -> int:
    """Tokens of a chunk in which each of ``size`` members has two pieces of whole pages."""
    pages = -(-LEAST_TOKENS // (2 * page_size))
    return 2 * size * pages * page_size


def warm_up(plans: Iterator[Plan], run: Callable[[Plan], PoolRequest]) -> None:
    """Run all plans to their ends, one after the other.

    Args:
        run: runs a probe to its end.

    Raises:
        RuntimeError: one failed; names its instances.
    """
    count = 0
    for plan in plans:
        request = run(plan)
        if request.error:
            raise RuntimeError(
                f"the pool does not work on instances {list(plan.instances)}: {request.error}"
            )
        count += 1
    logger.info("every instance and link has run: %d short probes passed", count)
