"""From which cached prefix a prompt starts, or from none (Tetris, section on prefix caching).

Tetris enumerates how much of a cached prefix a plan reuses and takes the plan with the least TTFT.
Here each holder's prefix is a start, and so is none. A plan that reuses a prefix starts at its
holder, with the cached tokens as history (Equation 1's C): it saves their computation, and it may
have to wait for that one instance. The starts are compared at the price that the policy asks for
an instance-second, as its plans are; a plan beside requests that decode pays what these lose, too.

A search costs far more than all else here, so starts are tried in the order of what they cost at
least (`bounds.py`), and those that cannot win are not searched for. What is cached in part of a
longer prefix is no start of its own: where one instance has all of it, reusing less computes more
and saves nothing. A prefix that would have to be copied first (`copies.py`) is one more start, from
its target on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sglang_cdsp.planner.borrowing import lost_s
from sglang_cdsp.planner.prefixes.copies import CopyCost, copy_to_start_from
from sglang_cdsp.planner.types import HeldPrefix, Plan, PoolView, PrefixCopy, PromptView

MOST_SEARCHES = 3
"""So many starts are planned at most, none among them."""

Least = Callable[[int, int, float], float]
"""`(tokens, history, free_s)`: what plans for so many tokens cost at least from when the holder of
their history is free, which is in `free_s` seconds; 0.0 where they have none."""


@dataclass(frozen=True, slots=True)
class Start:
    """One way to begin a prompt.

    prefix: what it reuses, None for nothing. whole: the prompt. least: what it costs at least.
    copy: how the prefix comes to its instance, None if it is there.
    """

    prefix: HeldPrefix | None
    whole: PromptView
    least: float
    copy: PrefixCopy | None = None

    def view(self, pool: PoolView) -> PoolView:
        """The pool as this start finds it: its home takes no chunk before the copy has come."""
        if self.copy is None or self.prefix is None:
            return pool
        queue = list(pool.queue_s)
        at = self.prefix.instance
        queue[at] = max(queue[at], self.copy.seconds)
        return replace(pool, queue_s=tuple(queue))

    @property
    def prompt(self) -> PromptView:
        """What is left to plan; made when it is asked for, as most starts are never searched."""
        if self.prefix is None:
            return self.whole
        return replace(
            self.whole,
            tokens=self.whole.tokens - self.prefix.tokens,
            history_tokens=self.prefix.tokens,
            history_instances=(self.prefix.instance,),
        )


def usable(held: Iterable[HeldPrefix], prompt: PromptView, pool: PoolView) -> list[HeldPrefix]:
    """The prefixes that a plan can start from now.

    Their holder is up and has the slots to be home. Of what is held equally long, that on the
    instance that is free first, and among these on the one where least decodes.
    """

    def busy(i: int) -> tuple[float, int, int]:
        running = pool.running[i].requests if pool.running else 0
        return pool.queue_s[i], running, -(pool.free_tokens[i] if pool.free_tokens else 0)

    best: dict[int, HeldPrefix] = {}
    for prefix in held:
        i = prefix.instance
        room = pool.free_tokens is None or pool.free_tokens[i] >= prefix.home_tokens
        up = pool.up is None or pool.up[i]
        if not (room and up and 0 < prefix.tokens < prompt.tokens):
            continue
        other = best.get(prefix.tokens)
        if other is None or busy(i) < busy(other.instance):
            best[prefix.tokens] = prefix
    return list(best.values())


def starts(
    held: Iterable[HeldPrefix],
    prompt: PromptView,
    pool: PoolView,
    least: Least,
    asked: float,
    copies: CopyCost | None = None,
) -> list[Start]:
    """All starts, first the one that can cost least.

    Args:
        asked: seconds of TTFT for an instance-second.
        copies: what it takes to copy a prefix; None where none is.
    """
    held = tuple(held)
    found = [Start(None, prompt, min(pool.queue_s) + least(prompt.tokens, 0, 0.0))]
    ways: list[tuple[HeldPrefix, PrefixCopy | None]] = [
        (prefix, None) for prefix in usable(held, prompt, pool)
    ]
    if copies is not None and (copied := copy_to_start_from(held, prompt, pool, copies)):
        ways.append(copied)
    for prefix, copy in ways:
        free_s = pool.queue_s[prefix.instance]
        at_s = free_s if copy is None else max(free_s, copy.seconds)
        # An instance that waits for a copy stands still for it.
        waits = at_s + asked * (at_s - free_s)
        rest = least(prompt.tokens - prefix.tokens, prefix.tokens, free_s)
        found.append(Start(prefix, prompt, waits + rest, copy))
    return sorted(found, key=lambda start: start.least)


def cost(plan: Plan, pool: PoolView, asked: float) -> float:
    """What a plan costs: TTFT, its instance-seconds at a price, and what those that decode lose."""
    taken = sum([plan.ttft_s - min(plan.ttft_s, pool.queue_s[i]) for i in plan.instances])
    beside = lost_s(plan, pool) if pool.running else 0.0
    return plan.ttft_s + asked * taken + beside


def best_start(
    ways: Sequence[Start],
    pool: PoolView,
    plan: Callable[[Start], Plan | None],
    asked: float,
) -> Plan | None:
    """The plan of the start that costs least; None if no start has one.

    Args:
        ways: from `starts`.
        plan: the policy's own search, for what a start leaves of the prompt.
    """
    best: Plan | None = None
    chosen, lowest, searches = ways[0], math.inf, 0
    others: list[tuple[float, Start]] = []
    for start in ways:
        given_up = start.least >= lowest or (best is not None and searches == MOST_SEARCHES)
        found = None if given_up else plan(start)
        searches += not given_up
        price = start.least if given_up else math.inf
        if found is not None:
            price = cost(found, pool, asked)
            if price < lowest:
                if best is not None:
                    others.append((lowest, chosen))
                best, chosen, lowest = found, start, price
                continue
        others.append((price, start))
    if best is None:
        return None
    cached = max((s.prefix.tokens for s in ways if s.prefix is not None), default=0)
    reused = chosen.prefix.tokens if chosen.prefix is not None else 0
    choice = _choice(chosen, others, lowest)
    return replace(best, reused=reused, cached=cached, choice=choice, copy=chosen.copy)


def _choice(chosen: Start, others: Sequence[tuple[float, Start]], lowest: float) -> str:
    """Why a start was chosen, with what the next best would have cost more."""
    text = _named(chosen)
    price, other = min(others, key=lambda entry: entry[0], default=(math.inf, None))
    if other is None:
        return text
    if price == math.inf:
        return f"{text}; {_named(other)} cannot run now"
    return f"{text}; {_named(other)} would cost {max(0.0, price - lowest):.3f} s more"


def _named(start: Start) -> str:
    if start.prefix is None:
        return "computed whole"
    told = f"{start.prefix.tokens} cached tokens on instance {start.prefix.instance}"
    if start.copy is None:
        return told
    return f"{told}, {start.copy.tokens} of them copied from instance {start.copy.source}"
