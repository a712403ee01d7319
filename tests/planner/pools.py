"""Random pools and prompts for the planner's property tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st

from sglang_cdsp.planner import LatencyModel, PolicyOptions, PoolView, PromptView, builtin_model
from sglang_cdsp.planner.problem import Problem, make_problem

MODEL = builtin_model()
EXPANDING = LatencyModel(tuple((size, replace(row, e=2e-6)) for size, row in MODEL.rows))
"""The same for a model whose history costs something of its own."""

quick = settings(max_examples=60, deadline=None, print_blob=True)


@dataclass(frozen=True)
class Case:
    """A prompt, a pool and the options to plan with."""

    prompt: PromptView
    pool: PoolView
    options: PolicyOptions

    @property
    def problem(self) -> Problem:
        o = self.options
        return make_problem(
            self.prompt,
            self.pool,
            o.model,
            o.sp_sizes,
            page_size=o.page_size,
            min_chunk=o.min_chunk,
            improvement_rate=o.improvement_rate,
            spread_cost=o.spread_cost,
        )


@st.composite
def cases(draw: st.DrawFn, *, limited: bool | None = None, history: bool | None = None) -> Case:
    """Pools of 1 to 20 instances, some down, some busy; odd SP sizes, pages, histories, memory.

    `limited` and `history` force or forbid a memory limit and a cached history.
    """
    n = draw(st.integers(1, 20))
    rough = draw(st.booleans())  # rough queue times make ties
    seconds = st.integers(0, 3).map(float) if rough else st.floats(0, 3)
    queue = tuple(draw(st.lists(st.one_of(st.just(0.0), seconds), min_size=n, max_size=n)))
    up = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=n, max_size=n).map(tuple)))
    if up is not None and not any(up):
        up = None
    page = draw(st.sampled_from((1, 16, 64)))
    held: tuple[int, ...] = ()
    if history or (history is None and draw(st.booleans())):
        alive = [i for i in range(n) if up is None or up[i]]
        held = tuple(draw(st.permutations(alive))[: draw(st.integers(1, min(3, len(alive))))])
    cached = draw(st.integers(1, 2000)) * page if held else 0
    limit = draw(st.booleans()) if limited is None else limited
    free = tuple(draw(st.lists(st.integers(0, 90_000), min_size=n, max_size=n))) if limit else None
    sizes = draw(st.sets(st.sampled_from((1, 2, 3, 4, 6, 8, 12, 16)), min_size=1, max_size=5))
    return Case(
        PromptView("r", draw(st.integers(1, 200_000)), cached, held),
        PoolView(queue, free, draw(st.sampled_from((2, 4, 8, 32))), up),
        PolicyOptions(
            draw(st.sampled_from((MODEL, EXPANDING))),
            tuple(sorted(sizes)),
            page_size=page,
            min_chunk=draw(st.sampled_from((1, 256, 4096))),
            improvement_rate=draw(st.sampled_from((0.0, 0.05, 0.3, 0.5, 0.7))),
            spread_cost=draw(st.sampled_from((0.0, 0.05))),
        ),
    )
