"""`cdsp-late`: prompts wait unbound and are planned when they can start, short ones first.

The paper binds every prompt when it arrives, so that under load short ones stand behind long ones,
and each plan is made for the pool of that moment. Here a prompt stays unbound until its first
chunk can start, and two things are decided then:

- Who is next. A prompt that needs s seconds on the best group of an idle pool, and arrives when W
  instance-seconds of prompts wait for n instances, is due after

      PATIENCE * s + GIVE_WAY * W/n * min(1, s / mean s of past arrivals)^4   seconds;

  the least due is next, and nobody overtakes it. So short prompts pass long ones, and the more wait
  the longer those above the mean let those below it pass. Yet nobody is ever passed by a prompt
  that arrives after its own is due: it is served as first come first served, which would make it
  wait for W/n, would serve one that arrived that much later.
- How many instances it gets. A plan costs its TTFT plus a price for every instance-second that it
  takes from the pool: each delays all who wait by 1/n seconds, and those to come. A second
  counts relative to what a prompt needs, so the price for one that needs s is

      IDLE_PRICE * improvement rate * s / mean s of past arrivals
      + QUEUE_PRICE / n * sum of s / s' over the prompts behind it,

  at most TOP_PRICE. Groups are wide when nobody waits and narrow, which wastes less, when many do.
  The first term stands for prompts that have not arrived yet.

With a budget (`preempt_budget`) a prompt that cannot start yet may pass chunks that run
(passing.py), if waiting gives its first token later than SOON * s after its arrival. Waiting and
every way to pass are priced alike: TTFT plus the price above for every instance-second, those by
which rings stand still longer included, and for passing also

      PASS_PRICE * s * sum over the prompts passed of (delay / own time) * L^TAIL
      L = max(1, min(MOST, T / (LATE * mean s of past arrivals))),

T being what the passed prompt is expected to take from its arrival on. Those who are late already
are the tail of the distribution: they are spared, unless the delay is tiny.

Plans may still use busy instances for later chunks. If the best plan of the next prompt starts
later, say because four instances in 0.1 s beat one now, it waits for them and all wait with it. A
plan that starts from a cached prefix whose holder is busy runs on that holder alone, which is kept
for it; it waits unbound, and others do not wait with it. One that starts from a copy is bound when
its instance is free by the time at which the copy has come.
What a prompt needs is what it needs with the longest prefix that was cached when it arrived.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_cdsp.planner.compiled import CDSP
from sglang_cdsp.planner.paper import Report, ignore
from sglang_cdsp.planner.passing import Passing, ways_to_pass
from sglang_cdsp.planner.policies.chunkwise import Chunkwise, worth_it
from sglang_cdsp.planner.policies.first_come import Search
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.prefixes.starts import Least, Start
from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.search import plan_priced
from sglang_cdsp.planner.types import Passable, Plan, PlannedChunk, PoolView, PromptView
from sglang_cdsp.planner.views import after_plan

PATIENCE = 3.0
"""How many times its own seconds a prompt lets later ones pass."""

GIVE_WAY = 1.5
"""How many times the backlog that it finds a long prompt lets later ones pass."""

IDLE_PRICE = 2.5
"""Seconds of TTFT that an instance-second must save if nobody waits, at improvement rate 1."""

QUEUE_PRICE = 8.0
"""The same if as many equal prompts wait as there are instances. Delaying just these would ask 1;
it is more because those who arrive before the queue is gone wait longer too."""

TOP_PRICE = 10.0
"""From here on prompts of any length get little narrower and longer ones much slower."""

PASS_PRICE = 1.0
"""What a passed prompt's delay weighs against an equal delay, each relative to own time."""

SOON = 3.0
"""Up to this multiple of what it needs, waiting included, a prompt does not pass: delay is
scarce. Less costs the tail, more the median (docs/planner.md)."""

LATE, TAIL, MOST = 4.0, 3, 4.0
"""From LATE times what arrivals need on average a running prompt counts as late, and its delay gets
dearer with the power TAIL of how late it is, up to MOST times: where nearly all prompts are short,
every long one is late, and a very short one passes it all the same."""

MEMORY = 1 / 64
"""Weight of the latest arrival in the mean over past ones."""

LEAD_S = 0.02
"""A plan that starts within this time is bound, so that its orders arrive before its instances are
free."""

MOST_KEPT = 16
"""So many prompts at most wait for their holders while others go on."""

LEAST_S = 1e-9
"""What a prompt needs at least, should the latency model promise nothing."""

Key = tuple[int, float, int, str]
"""Place in the order: urgency (least first), due time, number of arrival, request id."""


@dataclass(frozen=True, slots=True)
class Need:
    """The need of a prompt in an idle pool: seconds on its fastest group, instance-seconds (`work`)
    on its cheapest."""

    seconds: float
    work: float


class CdspLate(Chunkwise):
    """The policy `cdsp-late`: chunk plans by price, made when they can start, by due time."""

    name = "cdsp-late"
    mode = CDSP

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._order: list[Key] = []
        self._keys: dict[str, Key] = {}
        self._needs: dict[str, Need] = {}
        self._mean_s: float | None = None
        self._arrived = 0
        self._instances = max(options.current_sizes())

    def arrive(self, prompt: PromptView, now_s: float) -> None:
        super().arrive(prompt, now_s)
        self._forget(prompt.rid)
        need = self._enter(prompt, now_s + self.patience_s(prompt))
        mean_s = self._mean_s or need.seconds
        self._mean_s = mean_s + MEMORY * (need.seconds - mean_s)

    def take_back(self, prompt: PromptView, now_s: float) -> None:
        super().take_back(prompt, now_s)
        self._forget(prompt.rid)
        self._enter(prompt, prompt.arrival_s)  # it has given way before: it is due

    def _enter(self, prompt: PromptView, due_s: float) -> Need:
        """A prompt takes its place in the order."""
        key = (-prompt.priority, due_s, self._arrived, prompt.rid)
        self._arrived += 1
        self._keys[prompt.rid] = key
        insort(self._order, key)
        need = self._needs[prompt.rid] = self._need_of(prompt)
        return need

    def patience_s(self, prompt: PromptView) -> float:
        """For how long prompts that arrive later may pass this one, if it arrives now."""
        need = self._need_of(prompt)
        backlog_s = sum([waiting.work for waiting in self._needs.values()]) / self._instances
        length = min(1.0, need.seconds / (self._mean_s or need.seconds))
        return PATIENCE * need.seconds + GIVE_WAY * backlog_s * length**4

    def finish(self, rid: str, now_s: float) -> None:
        super().finish(rid, now_s)
        self._forget(rid)

    def waiting(self) -> tuple[str, ...]:
        return tuple([key[3] for key in self._order])

    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        if self.options.regulator:
            self.options.regulator.refresh(now_s)
        self._instances = pool.size
        started: list[tuple[str, Plan]] = []
        if not self._any_room(pool):
            return started
        kept = 0
        behind = sum([1.0 / need.seconds for need in self._needs.values()])
        for *_, rid in self._order:
            seconds = self._needs[rid].seconds
            behind -= 1.0 / seconds
            prompt = self._waiting[rid]
            if self.waits_alone(prompt, pool):
                continue
            price = self._price(seconds, behind / pool.size)
            plan = self.plan_at(prompt, pool, price)
            if self._may_pass(pool) and (plan is None or not _starts_now(plan)):
                plan = self._pass(prompt, plan, pool, price, now_s) or plan
            if plan is None or not _starts_now(plan):
                if plan is None or not plan.reused or kept == MOST_KEPT:
                    break
                # Its holder is kept for it: it has the first choice when that is free.
                pool = after_plan(pool, plan, prompt, self.options.page_size)
                kept += 1
                continue
            pool = after_plan(pool, plan, prompt, self.options.page_size)
            started.append((rid, plan))
            if not self._any_room(pool):
                break
        for rid, _ in started:
            del self._waiting[rid]
            self._alone.pop(rid, None)
            self._forget(rid)
        return started

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        """As if nobody waited; it may start later, when `step` would let the prompt wait."""
        return self.plan_at(prompt, pool, self._idle_price(prompt))

    def _idle_price(self, prompt: PromptView) -> float:
        """For an instance-second, as if nobody waited."""
        return self._price(self._need_of(prompt).seconds, 0.0)

    def _starts(self, prompt: PromptView, pool: PoolView, price: float | None) -> Sequence[Start]:
        return super()._starts(prompt, pool, self._idle_price(prompt) if price is None else price)

    def _pass(
        self, prompt: PromptView, plan: Plan | None, pool: PoolView, price: float, now_s: float
    ) -> Plan | None:
        """A plan that passes, if that is better than to wait for `plan`."""
        need = self._need_of(prompt)
        waited_s = now_s - prompt.arrival_s
        if plan is not None and waited_s + plan.ttft_s <= SOON * need.seconds:
            return None
        late_s = LATE * (self._mean_s or need.seconds)
        harm = {
            ring.instances: PASS_PRICE
            * need.seconds
            / max(ring.own_s, LEAST_S)
            * min(MOST, max(1.0, self._until_s(ring, pool) / late_s)) ** TAIL
            for ring in pool.passable
        }
        least = math.inf if plan is None else _cost(plan, pool, price)
        best: Passing | None = None
        for way in ways_to_pass(self._problem(prompt, pool), pool.passable):
            delays = sum([harm[ring] * delay for ring, delay in way.delays])
            cost = way.end_s + price * way.work + delays
            if cost < least:
                best, least = way, cost
        if best is None:
            return None
        chunk = PlannedChunk(prompt.tokens, best.group, best.start_s, best.end_s)
        return Plan((chunk,), best.end_s, self.name, passes=True)

    @staticmethod
    def _until_s(ring: Passable, pool: PoolView) -> float:
        """What the ring's prompt is expected to take from its arrival on."""
        return ring.waited_s + max(pool.queue_s[i] for i in ring.instances)

    def _may_pass(self, pool: PoolView) -> bool:
        return bool(pool.passable) and self.options.preempt_budget > 0

    def _any_room(self, pool: PoolView) -> bool:
        """Whether anybody could start now."""
        return _any_free(pool) or self._may_pass(pool)

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        need = self._need(rest.tokens, rest.history_tokens)
        behind = sum([1.0 / waiting.seconds for waiting in self._needs.values()]) / pool.size
        price = self._price(need.seconds, behind)
        found = self.plan_at(rest, pool, price)
        return found and worth_it(found, current, pool, price)

    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        return self.best(problem, report or ignore), None

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        need = self._need(problem.tokens, problem.history_tokens)
        return plan_priced(problem, self._price(need.seconds, 0.0), report=report)

    def _least_cost(self, asked: float) -> Least:
        bound = super()._least_cost(asked)
        # The holder alone computes what waits for it.
        _, row = self._current_rows(alone=True)[0]

        def least(tokens: int, history: int, free_s: float) -> float:
            if history and free_s > LEAD_S:
                return (1.0 + asked) * row.predict(history, tokens)
            return bound(tokens, history, free_s)

        return least

    def _from_start(self, start: Start, pool: PoolView, price: float | None) -> Plan | None:
        # Its holder is kept for it, and others must not stand idle until that is free.
        waits = start.prefix is not None and pool.queue_s[start.prefix.instance] > LEAD_S
        return self._searched(start.prompt, start.view(pool), price, (1,) if waits else None)

    def _search_for(self, prompt: PromptView) -> Search:
        price = self._idle_price(prompt)
        return lambda problem, report: (
            plan_priced(problem, price, report=report or ignore),
            None,
        )

    def _need_of(self, prompt: PromptView) -> Need:
        """What a prompt needs beyond its history, or the longest prefix that is cached of it."""
        known = self._needs.get(prompt.rid)
        if known is not None:
            return known
        cached = max([prefix.tokens for prefix in self.held(prompt)], default=0)
        if cached:
            seconds, work = self._least(prompt.tokens - cached, cached, alone=True)
            return Need(max(seconds, LEAST_S), work)
        return self._need(prompt.tokens, prompt.history_tokens)

    def _need(self, tokens: int, history_tokens: int) -> Need:
        seconds, work = self._least(tokens, history_tokens)
        return Need(max(seconds, LEAST_S), work)

    def _price(self, seconds: float, behind: float) -> float:
        """For a prompt that needs `seconds`; `behind` it is the sum of 1/s per instance."""
        idle = IDLE_PRICE * self.options.current_rate() / (self._mean_s or seconds)
        return min(TOP_PRICE, seconds * (idle + QUEUE_PRICE * max(0.0, behind)))

    def _forget(self, rid: str) -> None:
        key = self._keys.pop(rid, None)
        if key is not None:
            del self._order[bisect_left(self._order, key)]
            del self._needs[rid]


def _starts_now(plan: Plan) -> bool:
    # A copy that it starts from begins when it is bound.
    copy_s = plan.copy.seconds if plan.copy is not None else 0.0
    return plan.passes or plan.chunks[0].start_s <= LEAD_S + copy_s


def _cost(plan: Plan, pool: PoolView, price: float) -> float:
    taken = sum([plan.ttft_s - pool.queue_s[i] for i in plan.instances])
    return plan.ttft_s + price * taken


def _any_free(pool: PoolView) -> bool:
    """Whether an instance can start something."""
    if pool.up is None:
        return min(pool.queue_s) <= LEAD_S
    return any(ok and q <= LEAD_S for q, ok in zip(pool.queue_s, pool.up, strict=True))
