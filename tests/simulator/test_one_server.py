"""One server: decode beside chunks, homes and roles, reckoned by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.metrics import token_gaps
from sglang_cdsp.simulator.one_server import OneServer, Role, parse_roles
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.sweep import UNIFIED_DECODE
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import poisson
from tests.simulator.small_worlds import Scripted, requests, there, world

# A step takes 0.1 s; beside a chunk it comes after a stretch of 0.4 s, so chunks get 0.8.
STEP = DecodeModel(0.1, 0.0, 0.0)
FORM = OneServer(decode_share=0.2, stock_tokens=1)
ON_0, BOTH = (0,), (0, 1)


def pool(form: OneServer = FORM, **changes: Any) -> Setup:
    return world(one_server=form, decode=STEP, preempt_budget=0.0, **changes)


def run(setup: Setup, work: list[Request], script: dict[str, Any]) -> Result:
    return simulate(setup, work, policy=Scripted(setup, script))


def test_alone() -> None:
    result = run(pool(), requests((0, 2000, 4)), {"r0": ((2000, ON_0),)})
    (record,) = result.records
    assert record.ttft_s == pytest.approx(2.0)
    assert token_gaps([record]) == pytest.approx([0.1, 0.1, 0.1])
    assert record.end_s == pytest.approx(2.3)
    assert record.decode_instance == 0
    assert result.moved_tokens == 0


def test_steps_come_after_stretches_of_a_chunk() -> None:
    work = requests((0, 1000, 101), (3.05, 4000, 1))
    script = {"r0": ((1000, ON_0),), "r1": ((4000, ON_0),)}
    running, prompt = run(pool(), work, script).records
    # 4 s of chunk at 0.8 of the instance.
    assert prompt.ttft_s == pytest.approx(5.0)
    # 20 steps until 3.0; that until 3.1 ends as it began; ten cycles until 8.1; 69 more steps.
    found = token_gaps([running])
    assert found == pytest.approx([0.1] * 21 + [0.5] * 10 + [0.1] * 69)
    assert running.end_s == pytest.approx(15.0)


def test_a_chunk_is_faster_again_when_nobody_decodes() -> None:
    work = requests((0, 1000, 11), (1.05, 4000, 1))
    script = {"r0": ((1000, ON_0),), "r1": ((4000, ON_0),)}
    running, prompt = run(pool(), work, script).records
    # One step until 1.1 and nine cycles until 5.6, when 0.8 * 4.55 = 3.64 s are computed.
    assert running.end_s == pytest.approx(5.6)
    assert prompt.ttft_s == pytest.approx(4.55 + 0.36)


def test_a_stretch_ends_with_its_chunk() -> None:
    work = requests((0, 1000, 11), (1.05, 80, 1))
    script = {"r0": ((1000, ON_0),), "r1": ((80, ON_0),)}
    running, prompt = run(pool(), work, script).records
    # The chunk runs from 1.05 to 1.15, in the cycle that began at 1.1.
    assert prompt.ttft_s == pytest.approx(0.1)
    assert token_gaps([running]) == pytest.approx([0.1, 0.15] + [0.1] * 8)


def test_the_share_of_a_chunk_follows_who_runs_and_who_waits_when_it_starts() -> None:
    work = requests((0, 1000, 101), (3.05, 4000, 1), (3.05, 4000, 1))
    script = {"r0": ((1000, ON_0),), "r1": ((4000, ON_0),), "r2": ((4000, ON_0),)}
    running, first, second = run(pool(replace(FORM, decode_share=None)), work, script).records
    # One runs. Two wait for the first chunk: a quarter of 0.2 would be stretches of longer than a
    # second, so decode has a step of 0.1 s after each second. For the second one waits: 0.2.
    assert first.ttft_s == pytest.approx(4.0 * 1.1)
    assert second.ttft_s == pytest.approx(4.0 * 1.1 + 4.0 / 0.8)
    # The cycle in which the second chunk starts ends as it began, at 7.5; it ends within a step.
    found = token_gaps([running])
    assert found == pytest.approx([0.1] * 21 + [1.1] * 4 + [0.5] * 10 + [0.1] * 65)


def test_prompts_without_a_plan_count_for_all_who_take_chunks() -> None:
    """Three of them, of which two have no room yet."""
    form = OneServer(parse_roles("", 2), None, stock_tokens=1)
    setup = pool(form, instances=2, kv_tokens=1800)
    work = requests((0, 700, 101), *[(3.05, 600, 1)] * 3)
    script = {f"r{n}": ((r.prompt_tokens, ON_0),) for n, r in enumerate(work)}
    _, first, *_ = run(setup, work, script).records
    # One runs; one has the chunk, and two wait for two instances: two wait there, and stretches
    # are as long as may be.
    assert first.ttft_s == pytest.approx(0.6 * 1.1)


def test_a_ring_is_as_slow_as_its_slowest_member() -> None:
    work = requests((0, 1000, 101), (3.05, 4000, 1))
    script = {"r0": ((1000, ON_0),), "r1": ((4000, BOTH),)}
    running, prompt = run(pool(instances=2), work, script).records
    assert prompt.ttft_s == pytest.approx(2.0 / 0.8)
    assert max(token_gaps([running])) == pytest.approx(0.5)


def test_decode_stands_still_beside_a_forward_that_does_not_give_way() -> None:
    work = requests((0, 2000, 31), (3.05, 500, 1))
    script = {"r0": ((2000, ON_0),), "r1": ((500, ON_0),)}
    running, prompt = run(pool(replace(FORM, stock_tokens=1000)), work, script).records
    assert prompt.ttft_s == pytest.approx(0.5)
    assert token_gaps([running]) == pytest.approx([0.1] * 10 + [0.6] + [0.1] * 19)
    assert running.end_s == pytest.approx(5.5)


def test_home_takes_a_members_place_where_none_has_the_room() -> None:
    work = requests((0, 2000, 500), (3, 400, 200))
    script = {"r0": ((2000, ON_0),), "r1": ((400, ON_0),)}
    _, second = run(pool(instances=2, kv_tokens=3000), work, script).records
    assert second.decode_instance == 1
    assert second.chunks[0].instances == (1,)


def test_what_nobody_can_hold_now_waits_and_so_does_what_is_behind_it() -> None:
    work = requests((0, 400, 500), (1, 90, 200), (1, 10, 1))
    script = {f"r{n}": ((r.prompt_tokens, ON_0),) for n, r in enumerate(work)}
    first, second, third = run(pool(kv_tokens=1000), work, script).records
    assert second.bound_s == third.bound_s == first.end_s
    assert first.end_s == pytest.approx(0.4 + 49.9)


def test_a_request_that_no_instance_can_hold_is_refused() -> None:
    (record,) = simulate(pool(kv_tokens=1000), requests((0, 600, 500))).records
    assert "1100 tokens do not fit an instance of 1000 KV slots" in record.error


@pytest.mark.parametrize(
    ("chunks", "bandwidth", "decodes_s"),
    [
        # It leaves while the last chunk runs: that takes 2 s, or 1 s of two chunks.
        (((2000, ON_0),), 1000.0, 2.0),
        (((2000, ON_0),), 500.0, 4.0),
        (((1000, ON_0), (1000, ON_0)), 1000.0, 3.0),
        (((2000, ON_0),), 1e6, 2.0),
    ],
)
def test_kv_moves_to_an_instance_that_decodes(
    chunks: Any, bandwidth: float, decodes_s: float
) -> None:
    form = replace(FORM, roles=parse_roles("1p1d", 2))
    setup = pool(form, instances=2, send_bytes_per_s=bandwidth)
    result = run(setup, requests((0, 2000, 3)), {"r0": chunks})
    (record,) = result.records
    assert record.first_token_s == pytest.approx(2.0)
    assert record.decode_instance == 1
    assert record.decode_s == pytest.approx(decodes_s)
    assert token_gaps([record]) == pytest.approx([decodes_s - 2.0 + 0.1, 0.1])
    assert result.moved_tokens == 2000


def test_nothing_is_planned_on_instances_that_only_decode() -> None:
    form = replace(FORM, roles=parse_roles("2p2d", 4))
    setup = pool(form, policy="cdsp", instances=4)
    result = simulate(setup, requests((0, 3000, 20), (0, 3000, 20), (0.5, 4000, 20)))
    assert {i for r in result.records for c in r.chunks for i in c.instances} <= {0, 1}
    assert {r.decode_instance for r in result.records} == {2, 3}


def test_a_prompt_leaves_decoding_instances_alone_where_those_lose_more() -> None:
    # Alone on the other instance 1000 tokens take 1 s, on both 0.625 s: 0.375 s sooner. The one
    # that decodes would lose 0.5 s of these.
    setup = pool(policy="cdsp", instances=2, sp_sizes=(1, 2))
    running, prompt = simulate(setup, requests((0, 1000, 200), (1.55, 1000, 1))).records
    assert prompt.chunks[-1].instances == (1 - there_int(running.decode_instance),)
    # Of 3 tokens there are 1.2 s to lose at most, and 4000 tokens come 1.5 s sooner.
    soon = simulate(setup, requests((0, 1000, 3), (0.55, 4000, 1))).records[1]
    assert soon.chunks[-1].sp_size == 2


def there_int(value: int | None) -> int:
    assert value is not None
    return value


@pytest.mark.parametrize("text", ["p2", "9p", "4p", "4d", "1p2d2", "2p3d"])
def test_roles_that_are_none(text: str) -> None:
    with pytest.raises(SetupError, match="roles"):
        parse_roles(text, 4)


def test_roles() -> None:
    assert parse_roles("1p2d", 4) == (Role.PREFILL, Role.DECODE, Role.DECODE, Role.BOTH)
    assert parse_roles("", 2) == (Role.BOTH, Role.BOTH)


rows = st.lists(
    st.tuples(st.floats(0, 4), st.integers(1, 3000), st.integers(1, 40)), min_size=1, max_size=15
)


@given(
    rows,
    st.sampled_from(("", "2p2d", "1p", "1d")),
    st.sampled_from((1, 1000)),
    st.sampled_from(("cdsp", "cdsp-late", "data-parallel")),
    st.sampled_from((0.0, 0.2)),
    st.sampled_from((3500, 20_000)),
    st.sampled_from((0.2, None)),
)
@settings(max_examples=60, deadline=None, print_blob=True)
def test_every_request_ends_and_its_gaps_are_its_time(
    rows: list[tuple[float, int, int]],
    roles: str,
    stock_tokens: int,
    policy: str,
    budget: float,
    kv_tokens: int,
    share: float | None,
) -> None:
    form = OneServer(parse_roles(roles, 4), share, stock_tokens)
    setup = world(
        one_server=form,
        policy=policy,
        instances=4,
        kv_tokens=kv_tokens,
        decode=DecodeModel(0.03, 0.001, 1e-6),
        preempt_budget=budget,
        send_bytes_per_s=1e5,
        receive_bytes_per_s=1e5,
    )
    result = simulate(setup, [Request(f"r{n}", *row) for n, row in enumerate(rows)])
    for record in result.records:
        assert not record.error
        between = token_gaps([record])
        assert len(between) == record.request.output_tokens - 1
        if len(between):
            spent = there(record.end_s) - there(record.first_token_s)
            assert between.sum() == pytest.approx(spent)
            assert between.min() > 0
        for chunk in record.chunks:
            alone = setup.model.predict(chunk.sp_size, 0, chunk.tokens)
            assert chunk.end_s - chunk.start_s >= alone * (1 - 1e-9)


def test_a_ring_that_stands_still_for_longer_than_was_expected_is_charged_for_it() -> None:
    """Decode slows those that pass, too. At this rate many prompts pass."""
    setup = Setup(
        one_server=OneServer(),
        decode=UNIFIED_DECODE,
        policy="cdsp-late",
        decode_instances=0,
        preempt_budget=0.2,
    )
    result = simulate(setup, poisson("short", 6.0, 150, 1))
    assert [record.error for record in result.records] == [""] * 150
