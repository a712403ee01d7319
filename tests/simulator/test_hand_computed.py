"""Small systems whose every time is reckoned by hand."""

from dataclasses import replace

import pytest

from sglang_cdsp.planner import Coefficients, LatencyModel, PlannedChunk
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.setup import DecodeModel
from sglang_cdsp.simulator.types import gaps
from tests.simulator.small_worlds import LINEAR, Scripted, requests, world

K = 1024
ALL = tuple(range(16))
LEFT, RIGHT = ALL[:8], ALL[8:]
# Table I at 16k and 32k: SP 8 takes .31 and .58 s, SP 16 .46 and .53 s.
TABLE_I = LatencyModel(
    (
        (8, Coefficients(0.04, 0.27 / (16 * K), 0.0, 0.0)),
        (16, Coefficients(0.39, 0.07 / (16 * K), 0.0, 0.0)),
    )
)
ONE_SECOND = round((1 - 0.39) / 0.07 * 16 * K)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(ALL, LEFT, (1.53, 1.84)), (LEFT, RIGHT, (1.58, 1.31))],
    ids=["one behind the other", "side by side"],
)
def test_the_papers_two_requests(
    a: tuple[int, ...], b: tuple[int, ...], expected: tuple[float, float]
) -> None:
    setup = world(model=TABLE_I, sp_sizes=(8, 16), instances=16, instances_per_node=16)
    script = {
        "r0": ((ONE_SECOND, ALL),),
        "r1": ((32 * K, a),),
        "r2": ((16 * K, b),),
    }
    work = requests((0, ONE_SECOND, 1), (0, 32 * K, 1), (0, 16 * K, 1))
    _, first, second = simulate(setup, work, policy=Scripted(setup, script)).records
    assert (first.ttft_s, second.ttft_s) == pytest.approx(expected, abs=1e-5)


def test_a_gap_is_filled_by_a_chunk() -> None:
    """Two instances; a step of two costs 0.5 s. The first prompt takes one instance for 1 s, and
    the second has its first 1000 tokens done on the other when both are free."""
    two = LatencyModel(
        ((1, Coefficients(0.0, 1e-3, 0.0, 0.0)), (2, Coefficients(0.5, 5e-4, 0.0, 0.0)))
    )
    setup = world(policy="cdsp-paper", model=two, sp_sizes=(1, 2), instances=2)
    result = simulate(setup, requests((0, 1000, 1), (0, 3200, 1)))
    first, second = result.records
    assert first.chunks == (PlannedChunk(1000, (0,), 0.0, 1.0),)
    assert second.chunks == (
        PlannedChunk(1000, (1,), 0.0, 1.0),
        PlannedChunk(2200, (1, 0), 1.0, 2.6),
    )
    assert result.busy_s == pytest.approx((2.6, 2.6))
    assert result.idle_fraction == pytest.approx(0)


def test_a_late_member_keeps_the_group_waiting() -> None:
    """Instance 1 computes r0 till 2 s; r1's chunk on both waits for it, and r2 for r1."""
    setup = world(instances=2)
    script = {
        "r0": ((2000, (1,)),),
        "r1": ((500, (0,)), (1000, (0, 1))),
        "r2": ((1000, (0,)),),
    }
    work = requests((0, 2000, 1), (0, 1500, 1), (0.1, 1000, 1))
    records = simulate(setup, work, policy=Scripted(setup, script)).records
    assert [(c.start_s, c.end_s) for c in records[1].chunks] == [(0.0, 0.5), (2.0, 2.5)]
    assert records[2].chunks[0].start_s == 2.5


def test_a_full_pool_makes_a_prompt_wait_for_kv() -> None:
    """r0's 600 slots are free when its KV has gone to decode: 0.6 s compute, 1 s on the way."""
    setup = world(kv_tokens=1000, decode_instances=1, send_bytes_per_s=600.0)
    work = requests((0, 600, 1), (0, 600, 1), (0, 1001, 1))
    first, second, third = simulate(setup, work).records
    assert (first.first_token_s, first.transferred_s) == pytest.approx((0.6, 1.6))
    assert (second.bound_s, second.first_token_s) == pytest.approx((1.6, 2.2))
    assert third.error.startswith("prompt r2: 1001 tokens after 0 of history do not fit an empty")
    assert third.end_s == 0
    assert third.ttft_s is None


def test_two_transfers_share_decodes_bandwidth() -> None:
    """Both 1000 tokens leave at 1 s; alone each would take 1 s."""
    setup = world(instances=2, decode_instances=1)
    both = simulate(setup, requests((0, 1000, 1), (0, 1000, 1))).records
    assert [r.transferred_s for r in both] == pytest.approx([3.0, 3.0])
    # Half a second apart: the first sends alone till 1.5, halves, ends at 2.5; then the second.
    apart = simulate(setup, requests((0, 1000, 1), (0.5, 1000, 1))).records
    assert [r.transferred_s for r in apart] == pytest.approx([2.5, 3.0])
    wide = world(instances=2, decode_instances=1, receive_bytes_per_s=2000.0)
    assert [
        r.transferred_s for r in simulate(wide, requests((0, 1000, 1), (0, 1000, 1))).records
    ] == pytest.approx([2.0, 2.0])


def test_chunks_are_sent_while_later_ones_compute() -> None:
    """1000 tokens in 0.5 s over 0.5 s of the next chunk's 1 s; then 2000 from two senders."""
    setup = world(instances=2, decode_instances=1, receive_bytes_per_s=2000.0)
    script = {"r0": ((500, (0,)), (2000, (0, 1)))}
    (record,) = simulate(setup, requests((0, 2500, 1)), policy=Scripted(setup, script)).records
    assert record.first_token_s == pytest.approx(1.5)
    assert record.transferred_s == pytest.approx(2.5)


def test_a_growing_batch_decodes_slower() -> None:
    """Iterations take 1 + 0.5 per request. r1 comes during r0's second, which ends at 4."""
    setup = world(
        instances=2,
        decode_instances=1,
        kv_bytes_per_token=0,
        decode=DecodeModel(1.0, 0.5, 0.0),
    )
    first, second = simulate(setup, requests((0, 1000, 5), (2, 1000, 3))).records
    assert (first.decode_s, second.decode_s) == (1.0, 4.0)
    # r0: 2.5, 4, then with r1: 6, 8. r1 waits from 3 to 4 for the iteration to end.
    assert gaps(first) == ((1.5, 1), (1.5, 1), (2.0, 2))
    assert gaps(second) == ((3.0, 1), (2.0, 1))
    assert (first.end_s, second.end_s) == (8.0, 8.0)


def test_kv_read_makes_iterations_slower() -> None:
    """1 s + 1 ms per KV token: 100, 101, 102 tokens."""
    setup = world(decode_instances=1, kv_bytes_per_token=0, decode=DecodeModel(1.0, 0.0, 1e-3))
    (record,) = simulate(setup, requests((0, 100, 4))).records
    assert record.end_s == pytest.approx(0.1 + 1.100 + 1.101 + 1.102)
    assert sum(seconds * count for seconds, count in gaps(record)) == pytest.approx(3.303)


def test_requests_go_to_the_freest_decode_instance() -> None:
    """Free slots over batch: r0 takes instance 0, r1 the emptier 1, r2 the one of the lighter."""
    setup = world(instances=4, decode_instances=2, decode_kv_tokens=1000, kv_bytes_per_token=0)
    work = requests((0, 500, 100), (1, 100, 100), (2, 100, 100))
    assert [r.decode_instance for r in simulate(setup, work).records] == [0, 1, 1]


@pytest.mark.parametrize("at_arrival", [False, True])
def test_full_decode_holds_requests_back(at_arrival: bool) -> None:
    """Decode holds one request: r1 gets its slots when r0 ends at 1 + 2 = 3 s. In the real pool's
    order it is computed only then; else its KV waits."""
    setup = world(
        instances=2,
        decode_instances=1,
        decode_kv_tokens=1500,
        kv_bytes_per_token=0,
        reserve_at_arrival=at_arrival,
    )
    work = requests((0, 1000, 3), (0, 1000, 3), (0, 1400, 101))
    first, second, third = simulate(setup, work).records
    assert first.end_s == 3.0
    assert second.bound_s == (3.0 if at_arrival else 0.0)
    assert second.transferred_s == (4.0 if at_arrival else 3.0)
    assert third.error == (
        "prompt r2: prompt and output of 1501 tokens do not fit a decode instance of 1500 KV slots"
    )


UNIFIED = world(
    policy="loongserve", unified=True, instances=2, sp_sizes=(1, 2), decode=DecodeModel(1, 0, 0)
)


def test_loongserve_unified_scales_down() -> None:
    """r0 runs on both instances (0.5 s) and decodes on one; r1 gets the other, and r2 waits for
    the end of r1's decode: three iterations from 2 s."""
    work = requests((0, 1000, 11), (1, 1000, 4), (3, 1000, 1))
    first, second, third = simulate(UNIFIED, work).records
    assert first.chunks[0].instances == (0, 1)
    assert (first.decode_instance, first.decode_s, first.end_s) == (0, 0.5, 10.5)
    assert second.chunks == (PlannedChunk(1000, (1,), 1.0, 2.0),)
    assert (second.decode_instance, second.decode_s, second.end_s) == (1, 2.0, 5.0)
    assert third.chunks == (PlannedChunk(1000, (1,), 5.0, 6.0),)


def test_loongserve_unified_merges() -> None:
    """r1 moves to the batch that runs: a transfer of 1 s later its instance holds nothing, and it
    decodes from r0's next iteration on."""
    work = requests((0, 1000, 11), (1, 1000, 4), (3, 1000, 1))
    first, second, third = simulate(replace(UNIFIED, unified_merge=True), work).records
    assert (first.decode_instance, first.decode_s, first.end_s) == (0, 0.5, 10.5)
    assert (second.decode_instance, second.transferred_s) == (0, 3.0)
    assert (second.decode_s, second.end_s) == (3.5, 6.5)
    assert third.chunks == (PlannedChunk(1000, (1,), 3.0, 4.0),)


def test_a_prompt_too_long_for_one_decodes_on_the_fewest_that_hold_it() -> None:
    """1500 tokens and 5 of output on four instances of 600 slots: three decode it, faster together:
    iteration j reads (1500 + j) / 3 tokens at 1 ms."""
    setup = replace(
        UNIFIED, instances=4, sp_sizes=(4,), kv_tokens=600, decode=DecodeModel(1, 0, 1e-3)
    )
    first, second = simulate(setup, requests((0, 1500, 5), (1, 100, 1))).records
    assert first.end_s == pytest.approx(0.375 + 4 * 1.5 + (0 + 1 + 2 + 3) / 3000)
    assert second.bound_s == first.end_s  # four at once are free only then


def test_linear_model_is_what_the_cases_assume() -> None:
    assert [LINEAR.predict(s, 500, 1000) for s in (1, 2, 4)] == [1.0, 0.5, 0.25]


def test_progress_is_told_now_and_then_and_at_the_end() -> None:
    told: list[tuple[int, int]] = []
    work = requests(*((float(n), 10, 1) for n in range(600)), (700.0, 200_000, 1))
    simulate(world(), work, progress=lambda done, total: told.append((done, total)))
    assert told == [(512, 601), (601, 601)]
