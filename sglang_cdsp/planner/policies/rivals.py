"""The rivals behind the same seam: each changes one thing about how a prompt gets instances."""

from __future__ import annotations

import math
from dataclasses import replace

from sglang_cdsp.planner.memory import shard_share
from sglang_cdsp.planner.paper import ACCEPTED, Report
from sglang_cdsp.planner.policies.first_come import FirstComePolicy
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.prefixes.starts import usable
from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.types import Plan, PoolView, PromptView

IDLE_S = 1e-9
"""An instance with less remaining work than this counts as idle."""

Searched = tuple[Candidate | None, float | None]


class FixedSP(FirstComePolicy):
    """The policy `fixed-sp:K`: the pool is cut into groups of K once; least queue.

    Group g is instances [gK, (g+1)K); what is left over is not used, as in a static deployment.
    """

    def __init__(self, options: PolicyOptions, size: int) -> None:
        super().__init__(options)
        options.model.coefficients(size)
        self.size, self.name = size, f"fixed-sp:{size}"

    def sizes(self, pool: PoolView) -> tuple[int, ...]:
        return (self.size,)

    def search(self, problem: Problem, report: Report | None) -> Searched:
        groups = [
            tuple(range(start, start + self.size))
            for start in range(0, len(problem.queue_s) - self.size + 1, self.size)
        ]
        usable = [g for g in groups if set(problem.history_group) <= set(g)]
        ordered = [_history_first(g, problem.history_group) for g in usable]
        return _fastest(problem, ordered, report), None


class DataParallel(FixedSP):
    """The policy `data-parallel`: one instance a prompt, the one with the least queue."""

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options, 1)
        self.name = "data-parallel"


class CacheAware(DataParallel):
    """The policy `cache-aware`: one instance a prompt, where its first token comes soonest.

    What an instance has cached of the prompt it does not compute: cache-aware routing to replicas,
    with Mooncake's estimate of TTFT as queue time and prefill time in place of thresholds.
    """

    reuses = True

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self.name = "cache-aware"

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        source = self.options.prefixes
        held = source(prompt.rid) if source is not None and not prompt.history_tokens else ()
        best = super().plan(prompt, pool)
        for prefix in usable(held, prompt, pool):
            rest = replace(
                prompt,
                tokens=prompt.tokens - prefix.tokens,
                history_tokens=prefix.tokens,
                history_instances=(prefix.instance,),
            )
            found = super().plan(rest, pool)
            if found is not None and (best is None or found.ttft_s < best.ttft_s):
                best = replace(found, reused=prefix.tokens)
        return best


class Threshold(FirstComePolicy):
    """The policy `threshold:N`: one instance (least queue) below N uncached tokens, else the pool.

    The whole pool is every instance that is up. A prompt below N that no single instance could
    ever hold goes to the whole pool too.
    """

    def __init__(self, options: PolicyOptions, tokens: int) -> None:
        super().__init__(options)
        self.tokens, self.name = tokens, f"threshold:{tokens}"

    def sizes(self, pool: PoolView) -> tuple[int, ...]:
        return (1, max(1, sum(pool.up))) if pool.up else (1, pool.size)

    def search(self, problem: Problem, report: Report | None) -> Searched:
        up = tuple(i for i, q in enumerate(problem.queue_s) if q < math.inf)
        single: list[tuple[int, ...]] = [(i,) for i in up if set(problem.history_group) <= {i}]
        whole = [_history_first(up, problem.history_group)]
        ever = shard_share(problem.tokens, 1, problem.page_size) <= max(problem.capacity_tokens)
        alone = problem.tokens < self.tokens and single and ever
        return _fastest(problem, single if alone else whole, report), None


class LoongServe(FirstComePolicy):
    """The policy `loongserve`: the largest useful group of idle instances, one request at a time.

    As the Tetris paper runs LoongServe: no batching over requests, greedy, blind to load. Among
    the SP sizes that fit into the idle instances it takes the one with the least prefill time;
    with no instance idle the prompt waits unbound, in arrival order.
    """

    name = "loongserve"

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        # Under load most calls are for nothing; they need not put the problem together.
        return super().plan(prompt, pool) if min(pool.queue_s) <= IDLE_S else None

    def search(self, problem: Problem, report: Report | None) -> Searched:
        idle = tuple(q <= IDLE_S for q in problem.queue_s)
        if not all(idle[i] for i in problem.history_group):
            return None, None
        most = sum(idle)
        times = [
            (row.predict(problem.history_tokens, problem.tokens), size)
            for size, row in zip(problem.sizes, problem.rows, strict=True)
            if size <= most
        ]
        if not report:
            times.sort()  # no group ends sooner than its size takes, so the rest may be skipped
        found: list[Candidate] = []
        for least_s, size in times:
            if found and not report and least_s > found[0].ttft_s:
                break
            group = problem.extend((), size, problem.tokens, inside=idle)
            candidate = _fastest(problem, [group], report) if group else None
            if candidate:
                found.append(candidate)
        return min(found, key=lambda c: (c.ttft_s, len(c.group)), default=None), None


def _fastest(
    problem: Problem, groups: list[tuple[int, ...]], report: Report | None
) -> Candidate | None:
    """The group on which the whole prompt, as one chunk, ends first; ties to the first given."""
    best: Candidate | None = None
    for group in groups:
        down = any(problem.queue_s[i] == math.inf for i in group)
        found = Candidate(((problem.tokens, group),), math.inf)
        runs = bool(group) and not down and problem.fits(found.chunks)
        if runs:
            found = problem.finish((), 0.0, group)
        if report:
            report(found, ACCEPTED if runs else _why_not(group, down))
        if found.ttft_s < (best.ttft_s if best else math.inf):
            best = found
    return best


def _why_not(group: tuple[int, ...], down: bool) -> str:
    return f"group {list(group)}: " + ("an instance is down" if down else "cannot hold the KV")


def _history_first(group: tuple[int, ...], history: tuple[int, ...]) -> tuple[int, ...]:
    return history + tuple(i for i in group if i not in history)
