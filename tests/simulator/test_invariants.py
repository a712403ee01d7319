"""What must hold in any run, read from its records; and that the checks inside a run see it."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.planner import (
    POLICY_NAMES,
    Plan,
    PlannedChunk,
    PoolView,
    PromptView,
    builtin_model,
)
from sglang_cdsp.planner.types import Placement
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import InvariantError, SetupError
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.types import Request, gaps
from tests.simulator.small_worlds import Scripted, requests, there, world

POLICIES = [name.replace(":K", ":2").replace(":N", ":9000") for name in POLICY_NAMES]
rows = st.lists(
    st.tuples(st.floats(0, 8), st.integers(1, 60_000), st.integers(1, 200)), max_size=25
)
changes = st.fixed_dictionaries(
    {
        "instances": st.sampled_from((2, 4, 8)),
        "instances_per_node": st.sampled_from((2, 4, 8)),
        "kv_tokens": st.sampled_from((9_000, 33_333, 400_000)),
        "page_size": st.sampled_from((1, 64)),
        "improvement_rate": st.sampled_from((0.0, 0.3)),
        "noise": st.sampled_from((0.0, 0.2)),
        "straddle_cost": st.sampled_from((0.0, 0.1)),
        "online_correction": st.booleans(),
        "decode_instances": st.sampled_from((0, 1, 2)),
        "decode_kv_tokens": st.sampled_from((45_000, 1_000_000)),
        "reserve_at_arrival": st.booleans(),
        "send_bytes_per_s": st.sampled_from((1e9, 25e9)),
        "seed": st.integers(0, 3),
        "unified_merge": st.booleans(),
    }
)


@pytest.mark.parametrize("policy", [*POLICIES, "unified"])
@given(rows, changes)
@settings(max_examples=20, deadline=None, print_blob=True)
def test_any_workload(
    policy: str, rows: list[tuple[float, int, int]], changes: dict[str, Any]
) -> None:
    if policy == "unified":
        changes = {**changes, "policy": "loongserve", "unified": True}
    setup = Setup(**{"policy": policy, "model": builtin_model(), **changes})
    work = [Request(f"r{n}", *row) for n, row in enumerate(rows)]
    result = simulate(setup, work)
    assert {r.request.rid for r in result.records} == {request.rid for request in work}
    arrivals = [r.request.arrival_s for r in result.records]
    assert arrivals == sorted(arrivals)
    check_records(result)
    check_instances(result)
    check_passing(result)


def check_records(result: Result) -> None:
    decodes = result.setup.decode_instances or result.setup.unified
    for record in result.records:
        request = record.request
        if record.error:
            assert "do not fit" in record.error
            assert (record.chunks, record.end_s) == ((), request.arrival_s)
            continue
        assert sum(chunk.tokens for chunk in record.chunks) == request.prompt_tokens
        bound, first, end = there(record.bound_s), there(record.first_token_s), there(record.end_s)
        group: tuple[int, ...] = ()
        at = bound
        for chunk in record.chunks:
            assert chunk.instances[: len(group)] == group
            assert at <= chunk.start_s < chunk.end_s
            group, at = chunk.instances, chunk.end_s
        assert request.arrival_s <= bound
        assert first == at
        if not decodes:
            assert end == at
            continue
        transferred = there(record.transferred_s)
        assert at <= transferred <= end
        runs = gaps(record)
        assert sum(count for _, count in runs) == request.output_tokens - 1
        if runs:
            assert at + sum(seconds * count for seconds, count in runs) == pytest.approx(end)
            assert transferred - 1e-9 <= there(record.decode_s) < end


def check_instances(result: Result) -> None:
    """Groups are disjoint in time on every instance, also from decode in the unified form."""
    busy: Mapping[int, list[tuple[float, float]]] = defaultdict(list)
    passing: Mapping[int, list[tuple[float, float]]] = defaultdict(list)
    computed = [0.0] * result.setup.instances
    for record in result.records:
        stood = record.stood_s or (0.0,) * len(record.chunks)
        for chunk, still in zip(record.chunks, stood, strict=True):
            for i in chunk.instances:
                (passing if record.passed else busy)[i].append((chunk.start_s, chunk.end_s))
                computed[i] += chunk.end_s - chunk.start_s - still
        if result.setup.unified and record.decode_s is not None:
            # Requests of one group decode together: only prefill must keep away.
            began, end = there(record.decode_s), there(record.end_s)
            for other in result.records:
                for chunk in other.chunks:
                    if record.decode_instance in chunk.instances:
                        assert chunk.end_s <= began or end <= chunk.start_s
    for spans in (*busy.values(), *passing.values()):
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start
    assert computed == pytest.approx(result.busy_s)
    assert all(0 <= peak <= result.setup.kv_tokens for peak in result.peak_slots)


def check_passing(result: Result) -> None:
    """A chunk stands still at least as long as each of its members serves those that pass, and
    without noise no prompt is delayed beyond the budget."""
    setup = result.setup
    passed = [record.chunks[0] for record in result.records if record.passed]
    assert not passed or (setup.policy == "cdsp-late" and setup.preempt_budget)
    for record in result.records:
        stood = record.stood_s or (0.0,) * len(record.chunks)
        for chunk, still in zip(record.chunks, stood, strict=True):
            assert still >= 0
            for i in chunk.instances if not record.passed else ():
                served = [
                    min(p.end_s, chunk.end_s) - max(p.start_s, chunk.start_s)
                    for p in passed
                    if i in p.instances and p.start_s < chunk.end_s and chunk.start_s < p.end_s
                ]
                assert sum(served) <= still + 1e-6
        if not setup.noise and not setup.straddle_cost:
            own = sum(c.end_s - c.start_s for c in record.chunks) - sum(stood)
            # What the prompt was bound with may have been longer than what it got.
            if not record.replanned:
                assert sum(stood) <= setup.preempt_budget * own * (1 + 1e-6) + 1e-6


class Broken(Scripted):
    """Plans without looking at memory."""

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan:
        chunks = tuple(PlannedChunk(n, group, 0.0, 1.0) for n, group in self.script[prompt.rid])
        return Plan(chunks, 1.0, self.name)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (((5000, (0,)),), "instance 0 has 1000 KV slots free, not 5000"),
        (((700, (0,)),), "a plan of 700 tokens, not 5000"),
        (((2500, (0,)), (2500, (1,))), "lacks earlier members"),
    ],
)
def test_a_policys_mistake_is_named_with_time_and_request(chunks: Placement, message: str) -> None:
    setup = world(instances=2, kv_tokens=1000)
    with pytest.raises(InvariantError, match=message) as caught:
        simulate(setup, requests((1.5, 5000, 1)), policy=Broken(setup, {"r0": chunks}))
    assert (caught.value.now_s, caught.value.rid) == (1.5, "r0")


def test_a_policy_that_forgets_a_request_is_found_out() -> None:
    class Forgetful(Scripted):
        def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
            return []

    setup = world()
    with pytest.raises(InvariantError, match="nothing will happen any more"):
        simulate(setup, requests((0, 10, 1)), policy=Forgetful(setup, {}))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ([Request("a", 0, 1, 1), Request("a", 1, 1, 1)], "two requests have the id a"),
        (requests((0, 0, 1)), "at least one prompt"),
        (requests((0, 1, 0)), "one output token"),
        (requests((-1, 1, 1)), "at or after 0 s"),
    ],
)
def test_workloads_that_make_no_sense(work: list[Request], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        simulate(world(), work)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instances": 0}, "instances is 0"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"send_bytes_per_s": 0}, "send_bytes_per_s is 0"),
        ({"unified": True}, "cannot be unified"),
    ],
)
def test_setups_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        world(**changes)


def test_decode_models_that_make_no_sense() -> None:
    with pytest.raises(SetupError, match="a must be above 0"):
        DecodeModel(0.0, 1.0, 1.0)


def test_an_empty_workload() -> None:
    result = simulate(world(), [])
    assert (result.records, result.end_s, result.idle_fraction) == ((), 0.0, 1.0)
