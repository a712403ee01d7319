"""What a copy of a cached prefix takes, and which copy a prompt might start from.

A prefix that lies where no chunk may run, on a seat that only decodes, or where its instance is
busy for long, is copied to an instance that can start sooner. That takes seconds by the number of
tokens that the target lacks, as copies before have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sglang_cdsp.planner.types import HeldPrefix, PoolView, PrefixCopy, PromptView

FIXED_S = 0.01
"""What a copy takes beside its tokens: three messages between controller and instances, each of
which waits for a turn of its receiver's loop."""

PRIOR_BYTES_PER_S = 2e9
"""How fast KV is taken to travel before any has. Slower than most links, so that nothing waits for
long that could have been computed meanwhile."""

WEIGHT = 0.3
"""Weight of the latest copy in what a token is reckoned to take."""

LEAST_TOKENS = 256
"""Copies of fewer tokens say nothing about what a token takes."""


@dataclass(frozen=True, slots=True)
class CopyCost:
    """Seconds of a copy: some in any case, and some for each token."""

    fixed_s: float
    token_s: float

    def seconds(self, tokens: int) -> float:
        """What the copy of so many tokens takes."""
        return self.fixed_s + self.token_s * tokens


CopyCosts = Callable[[], "CopyCost | None"]
"""What copies take now; None while nothing can be copied."""


class CopyTimes:
    """What copies take, from what they took."""

    def __init__(self, token_bytes: int) -> None:
        """``token_bytes``: KV of a token, all layers and ranks together."""
        self.token_bytes = token_bytes
        self._token_s = token_bytes / PRIOR_BYTES_PER_S

    def cost(self) -> CopyCost:
        """What copies take now."""
        return CopyCost(FIXED_S, self._token_s)

    def observe(self, tokens: int, seconds: float) -> None:
        """So many tokens took so long."""
        if tokens >= LEAST_TOKENS:
            measured = max(0.0, seconds - FIXED_S) / tokens
            self._token_s += WEIGHT * (measured - self._token_s)


def copy_to_start_from(
    held: Iterable[HeldPrefix], prompt: PromptView, pool: PoolView, cost: CopyCost
) -> tuple[HeldPrefix, PrefixCopy] | None:
    """The prefix that a prompt could soonest start from once it has been copied.

    Only the longest one that can be sent is looked at, and not if an instance that has it is free
    as soon as any. Its target is the instance that is free and has all of it first; it is up and
    has the slots to be home.

    Returns:
        The prefix as it will be at its target, and the copy; None if none would help.
    """
    prefixes = list(held)
    lying = [p for p in prefixes if 0 < p.sendable < prompt.tokens]
    if not lying:
        return None
    source = max(lying, key=lambda p: (p.sendable, -p.instance))
    tokens, room = source.sendable, source.home_tokens
    up, queue, free = pool.up, pool.queue_s, pool.free_tokens
    able = [
        i for i in range(pool.size) if (up is None or up[i]) and (free is None or free[i] >= room)
    ]
    there = {p.instance: p for p in prefixes}
    holders = [i for i in able if i in there and there[i].tokens >= tokens]
    soonest = min([queue[i] for i in able], default=0.0)
    if any(queue[i] <= soonest for i in holders):
        return None
    best: tuple[float, int, int] | None = None
    for i in able:
        if i == source.instance or i in holders:
            continue
        lacks = tokens - (min(tokens, there[i].sendable) if i in there else 0)
        at_s = max(queue[i], cost.seconds(lacks))
        if best is None or (at_s, lacks, i) < best:
            best = at_s, lacks, i
    if best is None:
        return None
    _, lacks, target = best
    copy = PrefixCopy(source.instance, lacks, cost.seconds(lacks))
    return replace(source, instance=target, tokens=tokens, ready=None), copy
