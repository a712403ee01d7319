"""The policy sees the simulated pool as a server's: controller/ledger.py is the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.controller.ledger import RESERVE_TOKENS, InstanceLedger
from sglang_cdsp.planner import Plan, PoolView, PromptView, kv_demand
from sglang_cdsp.planner.policies.chunkwise import Cdsp, CdspPaper
from sglang_cdsp.planner.rests import Placed
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.types import Record, Request, gaps
from tests.planner.drawn_plans import DrawnRests
from tests.simulator.busy_day import busy_day
from tests.simulator.small_worlds import there

PAGE = 64


@dataclass(frozen=True)
class Seen:
    now_s: float
    pool: PoolView
    plans: tuple[tuple[str, Plan], ...]


@dataclass
class Mirror:
    """A server's ledger, told of what the simulator's records say happened."""

    ledger: InstanceLedger
    records: dict[str, Record]
    ends: list[tuple[float, int, str, int]] = field(default_factory=list)
    seqs: dict[str, int] = field(default_factory=dict)

    def bind(self, now: float, rid: str, plan: Plan) -> None:
        seq = self.seqs[rid] = len(self.seqs)
        demand = kv_demand([(c.tokens, c.instances) for c in plan.chunks], PAGE)
        self.ledger.bind(seq, plan, now, demand)
        record = self.records[rid]
        for number, chunk in enumerate(record.chunks):
            self.ends.append((chunk.end_s, 0, rid, number))
        assert record.transferred_s is not None
        self.ends.append((record.transferred_s, 1, rid, 0))
        self.ends.sort()

    def advance(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now:
            at, kind, rid, number = self.ends.pop(0)
            seq = self.seqs[rid]
            if kind:
                self.ledger.release(seq)
                continue
            self.ledger.ended(seq, number, at)
            if number + 1 == len(self.records[rid].chunks):
                self.ledger.computed(seq)


class Watched(CdspPaper):
    """`cdsp-paper`, and what it saw."""

    seen: list[Seen]

    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        plans = super().step(pool, now_s)
        self.seen.append(Seen(now_s, pool, tuple(plans)))
        return plans


@given(
    st.lists(st.tuples(st.floats(0, 8), st.integers(1, 60_000)), min_size=1, max_size=25),
    st.sampled_from((0.0, 0.3)),
    st.sampled_from((33_333, 400_000)),
)
@settings(max_examples=60, deadline=None, print_blob=True)
def test_same_queue_times_and_free_slots(
    rows: list[tuple[float, int]], noise: float, slots: int
) -> None:
    setup = Setup(
        instances=4,
        instances_per_node=2,
        kv_tokens=slots,
        page_size=PAGE,
        noise=noise,
        send_bytes_per_s=1e9,
    )
    policy = Watched(setup.make_options())
    policy.seen = []
    work = [Request(f"r{n}", at, tokens, 2) for n, (at, tokens) in enumerate(rows)]
    records = {r.request.rid: r for r in simulate(setup, work, policy=policy).records}
    capacity = (slots + RESERVE_TOKENS,) * setup.instances
    mirror = Mirror(InstanceLedger(capacity, PAGE, setup.instances_per_node), records)
    for seen in policy.seen:
        mirror.advance(seen.now_s)
        view = mirror.ledger.view(seen.now_s)
        assert seen.pool.queue_s == pytest.approx(view.queue_s, abs=1e-6)
        assert seen.pool.free_tokens == view.free_tokens
        assert seen.pool.capacity_tokens == view.capacity_tokens
        for rid, plan in seen.plans:
            mirror.bind(seen.now_s, rid, plan)


@dataclass(frozen=True)
class Asked:
    """What `Policy.replan` was asked, and its answer."""

    rest: PromptView
    current: Plan
    pool: PoolView
    plan: Plan | None


class Changing(Cdsp):
    """`cdsp` with drawn plans for rests, and what it saw."""

    seen: list[Seen | Asked]
    drawn: DrawnRests

    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        plans = super().step(pool, now_s)
        self.seen.append(Seen(now_s, pool, tuple(plans)))
        return plans

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        plan = self.drawn(rest, current, pool)
        self.seen.append(Asked(rest, current, pool, plan))
        return plan


@given(
    st.lists(st.tuples(st.floats(0, 8), st.integers(1, 60_000)), min_size=1, max_size=25),
    st.sampled_from((33_333, 400_000)),
    st.integers(0, 1 << 32),
)
@settings(max_examples=60, deadline=None, print_blob=True)
def test_the_same_is_asked_about_rests(
    rows: list[tuple[float, int]], slots: int, seed: int
) -> None:
    """Chunk times scatter, so no two end at one moment."""
    setup = Setup(
        instances=4,
        instances_per_node=2,
        kv_tokens=slots,
        page_size=PAGE,
        noise=0.3,
        send_bytes_per_s=1e9,
    )
    policy = Changing(setup.make_options())
    policy.seen, policy.drawn = [], DrawnRests(setup.model, PAGE, seed)
    work = [Request(f"r{n}", at, tokens, 2) for n, (at, tokens) in enumerate(rows)]
    records = {r.request.rid: r for r in simulate(setup, work, policy=policy).records}
    capacity = (slots + RESERVE_TOKENS,) * setup.instances
    mirror = Mirror(InstanceLedger(capacity, PAGE, setup.instances_per_node), records)
    for seen in policy.seen:
        if isinstance(seen, Asked):
            _compare_rest(seen, mirror)
            continue
        mirror.advance(seen.now_s)
        view = mirror.ledger.view(seen.now_s)
        assert seen.pool.queue_s == pytest.approx(view.queue_s, abs=1e-6)
        assert seen.pool.free_tokens == view.free_tokens
        for rid, plan in seen.plans:
            mirror.bind(seen.now_s, rid, plan)


def _compare_rest(asked: Asked, mirror: Mirror) -> None:
    """A chunk has ended, and the server would ask the same; it takes the answer, too."""
    chunks = mirror.records[asked.rest.rid].chunks
    ends = list(accumulate(chunk.tokens for chunk in chunks))
    ran = ends.index(asked.rest.history_tokens) + 1
    now, seq = chunks[ran - 1].end_s, mirror.seqs[asked.rest.rid]
    mirror.advance(now)
    placed = Placed.after(tuple((c.tokens, c.instances) for c in chunks[:ran]), PAGE)
    assert placed.group == asked.rest.history_instances
    view = mirror.ledger.view_of_rest(seq, placed, now)
    assert asked.pool.queue_s == pytest.approx(view.queue_s, abs=1e-6)
    assert (asked.pool.free_tokens, asked.pool.up) == (view.free_tokens, view.up)
    assert asked.current.ttft_s == pytest.approx(mirror.ledger.due_s(seq) - now, abs=1e-6)
    if asked.plan is not None:
        slots = placed.with_rest(asked.plan.placement, PAGE)
        mirror.ledger.rebind(seq, ran, asked.plan, now, slots)


def spaced(count: int) -> list[Request]:
    """Requests that never meet."""
    return [Request(f"r{n}", 100.0 * n, 20_000 + n, 20) for n in range(count)]


def test_noise_touches_chunk_times_and_nothing_else() -> None:
    plain = simulate(Setup(noise=0.0, seed=1), spaced(300)).records
    assert plain == simulate(Setup(noise=0.0, seed=2), spaced(300)).records
    noisy = simulate(Setup(noise=0.1, seed=1), spaced(300)).records
    factors = []
    for a, b in zip(plain, noisy, strict=True):
        assert [(c.tokens, c.instances) for c in a.chunks] == [
            (c.tokens, c.instances) for c in b.chunks
        ]
        assert [count for _, count in gaps(a)] == [count for _, count in gaps(b)]
        assert [s for s, _ in gaps(a)] == pytest.approx([s for s, _ in gaps(b)])
        factors.append(there(b.ttft_s) / there(a.ttft_s))
    assert len(set(factors)) == len(factors)
    assert sum(factors) / len(factors) == pytest.approx(1.0, abs=0.02)
    assert simulate(Setup(noise=0.1, seed=2), spaced(300)).records != noisy


def test_every_policy_has_the_same_luck() -> None:
    """A request's noise does not depend on who planned it."""
    ratios = []
    for name in ("fixed-sp:4", "data-parallel"):
        plain = simulate(Setup(policy=name), spaced(20)).records
        noisy = simulate(Setup(policy=name, noise=0.1), spaced(20)).records
        ratios.append(
            [there(b.ttft_s) / there(a.ttft_s) for a, b in zip(plain, noisy, strict=True)]
        )
    assert ratios[0] == pytest.approx(ratios[1])


def test_the_regulator_runs_in_simulated_time() -> None:
    """Below 0.5 requests/s the table asks for no gain, above for an enormous one: after the first
    30 s of 4 requests/s plans are small, whatever their prompts would like."""
    table = {"0": 0.0, "1000000": 0.0, "4": 0.95}
    work = [Request(f"r{n}", n / 4, 30_000, 1) for n in range(300)]
    setup = Setup(policy="cdsp", improvement_rates=table, decode_instances=0)
    records = simulate(setup, work).records
    sizes = {
        early: {c.sp_size for r in records if (there(r.bound_s) < 30) is early for c in r.chunks}
        for early in (True, False)
    }
    assert max(sizes[True]) >= 8
    assert sizes[False] == {1}


def test_the_model_learns_from_what_chunks_really_took() -> None:
    """Eight instances look best; really they are four times as slow as believed."""
    slow = Setup().model.with_factors({8: 4.0})
    sizes = []
    for learns in (False, True):
        setup = Setup(policy="single-chunk", true_model=slow, online_correction=learns)
        records = simulate(setup, spaced(60)).records
        sizes.append((records[0].chunks[0].sp_size, records[-1].chunks[0].sp_size))
    assert sizes[0] == (8, 8)
    assert sizes[1][0] == 8
    assert sizes[1][1] != 8


def test_groups_on_more_nodes_than_they_need_can_be_slower() -> None:
    """Nodes of three, groups of two: the second group is instances 2 and 3, on two nodes."""
    work = [Request("near", 0.0, 20_000, 1), Request("far", 0.0, 20_000, 1)]
    setup = Setup(policy="fixed-sp:2", instances=6, instances_per_node=3, straddle_cost=0.1)
    near, far = simulate(setup, work).records
    assert far.chunks[0].instances == (2, 3)
    assert far.ttft_s == pytest.approx(1.1 * there(near.ttft_s))


HASH_SEEDED = """
from hashlib import sha256
from tests.simulator.busy_day import busy_day
print(sha256(repr(busy_day()).encode()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_to_the_byte_in_any_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", HASH_SEEDED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {sha256(repr(busy_day()).encode()).hexdigest() + "\n"}
