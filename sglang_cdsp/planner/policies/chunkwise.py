"""The chunk planner and what it is measured against: `cdsp`, `cdsp-paper`, `single-chunk`.

Plans come from the compiled search; explanations from the plain one, which finds the same plan.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from sglang_cdsp.planner.borrowing import borrowed
from sglang_cdsp.planner.compiled import CDSP, PAPER, SINGLE
from sglang_cdsp.planner.explanation import ranges
from sglang_cdsp.planner.fast import FastPlanner, Settings
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.paper import Report, ignore, plan_paper, plan_single_chunk
from sglang_cdsp.planner.policies.first_come import FirstComePolicy, Search
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.prefixes.bounds import least_cost
from sglang_cdsp.planner.prefixes.starts import Least, Start, best_start, starts
from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.search import plan_cdsp
from sglang_cdsp.planner.search import price as search_price
from sglang_cdsp.planner.types import Considered, HeldPrefix, Plan, PoolView, PromptView

Rows = tuple[tuple[int, Coefficients], ...]
"""Coefficients of Equation 1 by SP size."""

REPLAN_S = 0.02
"""What another plan for the rest of a prompt must save: the way of its orders to the instances."""


class Chunkwise(FirstComePolicy):
    """A first-come policy whose plans the compiled search finds; `mode` is one of its own."""

    mode: int
    replans = True
    reuses = True
    """Whether its plans start from cached prefixes, where `PolicyOptions.prefixes` knows any."""

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._fast = FastPlanner(self.mode, options.current_model(), self.name)
        # Beside decode, by how much slower chunks are there.
        self._slow: dict[float, FastPlanner] = {}
        # Those of the latest model and sizes.
        self._rows: tuple[LatencyModel | None, tuple[int, ...], Rows] = (None, (), ())

    @abstractmethod
    def best(self, problem: Problem, report: Report) -> Candidate | None:
        """The same search in plain Python."""

    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        single = plan_single_chunk(problem)
        return self.best(problem, report or ignore), single.ttft_s if single else None

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        return self.plan_at(prompt, pool, None)

    def plan_at(self, prompt: PromptView, pool: PoolView, price: float | None) -> Plan | None:
        """The best plan from any cached prefix or from none; `price` as in Settings."""
        ways = self._starts(prompt, pool, price)
        if len(ways) == 1:
            return self._searched(prompt, pool, price)
        return best_start(
            ways, pool, lambda start: self._from_start(start, pool, price), self._asked(price)
        )

    def _from_start(self, start: Start, pool: PoolView, price: float | None) -> Plan | None:
        """The plan of one start."""
        return self._searched(start.prompt, start.view(pool), price)

    def _starts(self, prompt: PromptView, pool: PoolView, price: float | None) -> Sequence[Start]:
        """The ways to begin a prompt; one, which reuses nothing, where there is no other."""
        held = self.held(prompt)
        if not held:
            return (Start(None, prompt, 0.0),)
        copies, asked = self.options.current_copy_cost(), self._asked(price)
        return starts(held, prompt, pool, self._least_cost(asked), asked, copies)

    def held(self, prompt: PromptView) -> tuple[HeldPrefix, ...]:
        """Who has what of a prompt cached, as far as this policy's plans may use it."""
        source = self.options.prefixes
        if source is None or not self.reuses or prompt.history_tokens:
            return ()
        # A holder may go on alone, which must have been measured.
        return source(prompt.rid) if self.options.current_model().sp_sizes[0] == 1 else ()

    def _asked(self, price: float | None) -> float:
        """Seconds of TTFT for an instance-second."""
        return search_price(self.options.current_rate()) if price is None else price

    def _least(self, tokens: int, history: int, *, alone: bool = False) -> tuple[float, float]:
        """Seconds and instance-seconds that a prompt takes at least, in an idle pool.

        `alone`: one instance may compute it whatever the candidate sizes: it has the history.
        """
        rows = self._current_rows(alone=alone)
        times = [(row.predict(history, tokens), size) for size, row in rows]
        return min(times)[0], min([seconds * size for seconds, size in times])

    def _current_rows(self, *, alone: bool = False) -> Rows:
        """Equation 1 of the candidate sizes; ``alone``: of a single instance, too."""
        sizes = self.options.current_sizes()
        if alone and sizes[0] != 1:
            sizes = (1, *sizes)
        return self._rows_of(self.options.current_model(), sizes)

    def _rows_of(self, model: LatencyModel, sizes: tuple[int, ...]) -> Rows:
        """The coefficients by SP size, which prompt after prompt is priced with."""
        known, of_sizes, rows = self._rows
        if known is not model or of_sizes != sizes:
            rows = tuple((size, model.coefficients(size)) for size in sizes)
            self._rows = model, sizes, rows
        return rows

    def _least_cost(self, asked: float) -> Least:
        """What plans cost at least at a price for an instance-second."""
        bound = least_cost(self._current_rows(alone=True), asked)
        return lambda tokens, history, free_s: bound.of(tokens, history)

    def _searched(
        self,
        prompt: PromptView,
        pool: PoolView,
        price: float | None,
        sizes: tuple[int, ...] | None = None,
    ) -> Plan | None:
        """The compiled search's plan for a prompt with or without history.

        `sizes`: the candidates, those of now if not given.
        """
        options = self.options
        model = options.current_model()
        if model is not self._fast.model:
            self._fast = FastPlanner(self.mode, model, self.name)
            self._slow = {}
        settings = Settings(
            options.page_size,
            options.min_chunk,
            options.current_rate(),
            options.spread_cost,
            price,
        )
        candidates = sizes or options.current_sizes()
        if not pool.running:
            return self._fast.plan(prompt, pool, candidates, settings)

        def planned(seen: PoolView, factor: float) -> Plan | None:
            return self._slowed(factor).plan(prompt, seen, candidates, settings)

        return borrowed(planned, pool)

    def _slowed(self, factor: float) -> FastPlanner:
        """The search where chunks take ``factor`` times as long, to a hundredth."""
        rounded = round(factor, 2)
        if rounded == 1.0:
            return self._fast
        if rounded not in self._slow:
            model = self._fast.model
            slower = model.with_factors(dict.fromkeys(model.sp_sizes, rounded))
            self._slow[rounded] = FastPlanner(self.mode, slower, self.name)
        return self._slow[rounded]

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        if not self.replans:
            return None
        found = self.plan(rest, pool)
        return found and worth_it(found, current, pool, self._asked(None))

    def explain(
        self, prompt: PromptView, pool: PoolView
    ) -> tuple[Plan | None, tuple[Considered, ...]]:
        ways = self._starts(prompt, pool, None)
        if len(ways) == 1:
            return super().explain(prompt, pool)
        plan = self.plan(prompt, pool)
        considered: list[Considered] = []
        for start in ways:
            _, seen = self.explained(start.prompt, start.view(pool), self._search_for(prompt))
            holder = start.prefix and start.prefix.instance
            reused = start.prefix.tokens if start.prefix else 0
            chosen = plan is not None and plan.reused == reused
            chosen = chosen and (not reused or (plan is not None and plan.home == holder))
            considered += [_of_start(one, reused, chosen=chosen) for one in seen]
        considered.sort(key=lambda one: (not one.chosen, one.ttft_s))
        return (replace(plan, considered=tuple(considered)) if plan else None), tuple(considered)

    def _search_for(self, prompt: PromptView) -> Search:
        """The search for what is left of a prompt, at the price of the whole."""
        return self.search


def _of_start(one: Considered, reused: int, *, chosen: bool) -> Considered:
    """A candidate of one start among those of all."""
    if one.chosen and not chosen:
        return replace(one, reused=reused, chosen=False, reason="its start is not the cheapest")
    return replace(one, reused=reused)


def worth_it(found: Plan, current: Plan, pool: PoolView, asked: float) -> Plan | None:
    """The plan for a rest if it ends no later than the current one and costs less, else None.

    Both are priced at `asked` seconds of TTFT for an instance-second; a change costs REPLAN_S.
    """

    def taken(plan: Plan) -> float:
        return sum(plan.ttft_s - min(plan.ttft_s, pool.queue_s[i]) for i in plan.instances)

    sooner, saved = current.ttft_s - found.ttft_s, taken(current) - taken(found)
    if sooner < 0 or sooner + asked * saved <= REPLAN_S:
        return None
    new = sorted(set(found.instances) - set(current.instances))
    gone = sorted(set(current.instances) - set(found.instances))
    moves = [f"joins {ranges(new)}"] * bool(new) + [f"leaves {ranges(gone)}"] * bool(gone)
    why = f"{sooner:.3f} s sooner, {-saved:+.3f} instance-seconds; {', '.join(moves) or 'recut'}"
    return replace(found, replanned=why)


class Cdsp(Chunkwise):
    """The policy `cdsp`: chunks over growing groups of the whole pool, each growth paid for."""

    name = "cdsp"
    mode = CDSP

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_cdsp(problem, report=report)


class CdspPaper(Chunkwise):
    """The policy `cdsp-paper`: Algorithm 1, chunks inside the group that Algorithm 2 chose."""

    name = "cdsp-paper"
    mode = PAPER
    replans = False  # the paper's plans are fixed at arrival
    reuses = False

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_paper(problem, report=report)


class SingleChunk(Chunkwise):
    """The policy `single-chunk`: Algorithm 2 alone, one chunk on the group the rate allows."""

    name = "single-chunk"
    mode = SINGLE
    replans = False
    reuses = False

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_single_chunk(problem, report=report)
