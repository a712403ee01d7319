"""The rest of a prompt gets another plan between two chunks."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_cdsp.planner import Plan, PlannedChunk, PoolView, PromptView, make_policy
from sglang_cdsp.planner.types import Placement
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.metrics import ttfts
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.workload import poisson
from tests.simulator.small_worlds import Scripted, requests, world

Asked = tuple[PromptView, Plan, PoolView]


class Changing(Scripted):
    """Gives the rest of r0 what it is told, and keeps what it was asked."""

    replans = True

    def __init__(
        self, setup: Setup, script: dict[str, Placement], rest: tuple[PlannedChunk, ...] | None
    ) -> None:
        super().__init__(setup, script)
        self.rest = rest
        self.asked: list[Asked] = []

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        self.asked.append((rest, current, pool))
        if rest.rid != "r0" or self.rest is None or len(self.asked) > 1:
            return None
        return Plan(self.rest, self.rest[-1].end_s, self.name, replanned="told to")


SCRIPT: dict[str, Placement] = {
    "r0": ((1000, (0,)), (2000, (0, 1))),
    "r1": ((3000, (1,)),),
    "r2": ((500, (1,)),),
}
WORK = requests((0, 3000, 1), (0, 3000, 1), (0, 500, 1))
"""r1 on instance 1 is bound after r0; r0's second chunk is before it there."""


def test_what_is_asked() -> None:
    setup = world(instances=4, page_size=1)
    policy = Changing(setup, SCRIPT, None)
    simulate(setup, WORK, policy=policy)
    [(rest, current, pool)] = policy.asked
    assert rest == PromptView("r0", 2000, 1000, (0,))
    assert [(c.tokens, c.start_s, c.end_s) for c in current.chunks] == [(2000, 0.0, 1.0)]
    # What stands behind the rest on its own instances does not count: instance 1 is free for it.
    assert pool.queue_s == (0.0, 0.0, 0.0, 0.0)
    assert pool.up == (True, True, True, True)
    # It holds 1000 slots on instance 0 of what was promised; r1 and r2 have 3500 on instance 1.
    assert pool.free_tokens == (99_000, 96_500, 100_000, 100_000)


def test_the_rest_runs_on_other_instances_and_those_it_leaves_turn_to_their_next() -> None:
    setup = world(instances=4)
    policy = Changing(setup, SCRIPT, (PlannedChunk(2000, (0, 2, 3), 0.0, 0.75),))
    result = simulate(setup, WORK, policy=policy)
    first, second, third = result.records
    assert first.replanned == 1
    assert [c.instances for c in first.chunks] == [(0,), (0, 2, 3)]
    assert first.chunks[1].end_s == pytest.approx(1 + 2 * setup.model.predict(3, 0, 1000))
    assert (second.chunks[0].start_s, second.chunks[0].end_s) == (1.0, 4.0)
    assert third.chunks[0].start_s == 4.0
    assert (second.replanned, third.replanned) == (0, 0)


def test_without_another_plan_nothing_changes() -> None:
    setup = world(instances=4)
    plain = simulate(setup, WORK, policy=Scripted(setup, SCRIPT))
    assert simulate(setup, WORK, policy=Changing(setup, SCRIPT, None)) == plain


def test_it_may_not_join_where_a_later_one_waits() -> None:
    """r2 is bound after r0 and keeps instance 2: r0's rest may not stand behind it."""
    setup = world(instances=4)
    script: dict[str, Placement] = {**SCRIPT, "r2": ((5000, (2,)),)}
    work = requests((0, 3000, 1), (0, 3000, 1), (0, 5000, 1))
    policy = Changing(setup, script, None)
    simulate(setup, work, policy=policy)
    assert policy.asked[0][2].up == (True, True, False, True)


def test_a_rest_that_does_not_go_on_where_the_prompt_is_is_a_mistake() -> None:
    setup = world(instances=4)
    policy = Changing(setup, SCRIPT, (PlannedChunk(2000, (2, 3), 0.0, 1.0),))
    with pytest.raises(InvariantError, match="lacks earlier members"):
        simulate(setup, WORK, policy=policy)


def test_another_rest_holds_what_it_needs_and_no_more() -> None:
    """1000 on instance 0 spread over four: each holds its part of both chunks at the end."""
    setup = world(instances=4, kv_tokens=4000)
    script: dict[str, Placement] = {"r0": ((1000, (0,)), (2000, (0, 1)))}
    policy = Changing(setup, script, (PlannedChunk(2000, (0, 1, 2, 3), 0.0, 0.5),))
    result = simulate(setup, requests((0, 3000, 1)), policy=policy)
    assert result.records[0].ttft_s == 1.5
    assert result.peak_slots == (2000, 1500, 750, 750)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate"), [("cdsp", 0.3), ("cdsp-late", 0.1)])
def test_over_seeds_it_is_never_worse_than_binding_once_by_more_than_a_hundredth(
    name: str, rate: float
) -> None:
    """Mean TTFT, with chunks that end early and late. One other plan changes all that follows, so
    single runs differ by more in both directions."""
    logs, changed = [], 0
    for noise in (0.0, 0.05, 0.1, 0.2):
        for seed in range(20, 32):
            setup = Setup(policy=name, improvement_rate=rate, noise=noise, seed=seed)
            work = poisson("medium", 2.8, 200, seed)
            once = make_policy(name, setup.make_options())
            once.replans = False
            bound = simulate(setup, work, policy=once).records
            anew = simulate(setup, work).records
            changed += sum(record.replanned for record in anew)
            logs.append(np.log(ttfts(anew).mean() / ttfts(bound).mean()))
    assert changed
    assert np.exp(np.mean(logs)) <= 1.01
