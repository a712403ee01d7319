"""Whether a prompt may borrow instances on which requests decode.

Chunks run beside decode there, each slowed down by the other. LoongServe's scheduler (section 5 of
its paper) takes an instance away from decode where those that wait gain more than those that run
lose, both as time over length. Here decode goes on beside the chunk, so what the running lose is
little and known, and both are plain seconds: sums of end-to-end latency, in which a long prompt's
gain is not divided by its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from sglang_cdsp.planner.types import Plan, PoolView

Planned = Callable[[PoolView, float], Plan | None]
"""``(pool, factor)``: the best plan where chunks take ``factor`` times as long."""


def borrowed(plan: Planned, pool: PoolView) -> Plan | None:
    """The better of two plans: without the instances that decode, or with all of them.

    A group is as slow as its slowest member, so with them every group is reckoned as slow as the
    slowest of the pool; what needs none of them is the first plan.
    """
    running = pool.running
    busy = [bool(r.requests) for r in running]
    if not any(busy):
        return plan(pool, 1.0)
    factor = 1.0 / min(r.pace for r in running if r.requests)
    up = pool.up or (True,) * pool.size
    alone = tuple(ok and not b for ok, b in zip(up, busy, strict=True))
    without = plan(replace(pool, up=alone), 1.0) if any(alone) else None
    sharing = plan(pool, factor)
    if without is None or sharing is None:
        return without or sharing
    gain_s = without.ttft_s - sharing.ttft_s
    return sharing if gain_s >= lost_s(sharing, pool) else without


def lost_s(plan: Plan, pool: PoolView) -> float:
    """By how much a plan delays those that decode on its instances, in all, seconds.

    Each token waits for a stretch of the chunk, while the chunk runs and as long as there are
    tokens to come. Until it starts there they come at least as fast as beside another chunk.
    """
    lost = 0.0
    for instance in plan.instances:
        here = pool.running[instance]
        if here.requests:
            chunks = [chunk for chunk in plan.chunks if instance in chunk.instances]
            beside_s = math.fsum(chunk.end_s - chunk.start_s for chunk in chunks)
            to_come_s = max(0.0, here.tokens_left * here.stretch_s - chunks[0].start_s)
            lost += here.requests * min(beside_s * here.pace, to_come_s)
    return lost
