"""Replicas with chunked prefill, reckoned by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.planner import Coefficients, LatencyModel
from sglang_cdsp.simulator.chunked import simulate_chunked
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.metrics import token_gaps
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.types import Request
from tests.simulator.small_worlds import requests, there, world

# An iteration with chunks costs 0.01 s and 1 s for 1000 tokens; a decode step 0.1 s alone.
MODEL = LatencyModel(((1, Coefficients(0.01, 1e-3, 0.0, 0.0)),))
DECODE = DecodeModel(0.1, 0.02, 0.0)


def pool(instances: int = 1) -> Setup:
    return world(model=MODEL, sp_sizes=(1,), instances=instances, decode=DECODE)


def test_a_prompt_runs_in_chunks() -> None:
    (record,) = simulate_chunked(pool(), requests((0, 2500, 3)), 1000).records
    assert [chunk.tokens for chunk in record.chunks] == [1000, 1000, 500]
    assert record.ttft_s == pytest.approx(2.5 + 0.03)
    assert token_gaps([record]) == pytest.approx([0.12, 0.12])
    assert record.end_s == pytest.approx(2.53 + 0.24)


def test_a_mixed_iteration_gives_running_requests_a_token() -> None:
    work = requests((0, 100, 6), (0.2, 2000, 1))
    running, prompt = simulate_chunked(pool(), work, 1000).records
    # 0.11 s of prefill, a step until 0.23, two iterations with a row beside the chunk, two steps.
    assert token_gaps([running]) == pytest.approx([0.12, 1.03, 1.03, 0.12, 0.12])
    assert prompt.ttft_s == pytest.approx(0.03 + 2.06)


def test_without_mixed_iterations_decode_waits_for_the_prompt() -> None:
    work = requests((0, 100, 6), (0.2, 2000, 1))
    running, prompt = simulate_chunked(pool(), work, 1000, mixed=False).records
    assert token_gaps([running]) == pytest.approx([0.12, 2.02 + 0.12, 0.12, 0.12, 0.12])
    assert prompt.ttft_s == pytest.approx(0.03 + 2.02)


def test_what_a_chunk_leaves_is_the_next_prompts() -> None:
    work = requests((0, 1500, 1), (0, 700, 1))
    first, second = simulate_chunked(pool(), work, 1000).records
    assert [chunk.tokens for chunk in second.chunks] == [500, 200]
    assert first.ttft_s == pytest.approx(2.02)
    assert second.ttft_s == pytest.approx(2.02 + 0.21)


def test_a_request_goes_where_least_is_left() -> None:
    work = requests((0, 3000, 1), (0, 100, 1), (0.5, 100, 1))
    records = simulate_chunked(pool(2), work, 1000).records
    assert [r.decode_instance for r in records] == [0, 1, 1]
    assert records[2].ttft_s == pytest.approx(0.11)


def test_what_fits_no_replica_is_named() -> None:
    with pytest.raises(SetupError, match="r0: 200001 tokens do not fit"):
        simulate_chunked(pool(), requests((0, 200_000, 1)), 1000)


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 4000), st.integers(1, 30)),
        min_size=1,
        max_size=15,
    ),
    st.integers(1, 3),
    st.sampled_from((64, 1000, 5000)),
    st.booleans(),
)
@settings(max_examples=80, deadline=None, print_blob=True)
def test_every_request_gets_all_its_tokens(
    rows: list[tuple[float, int, int]], instances: int, chunk_tokens: int, mixed: bool
) -> None:
    work = [Request(f"r{n}", *row) for n, row in enumerate(rows)]
    result = simulate_chunked(pool(instances), work, chunk_tokens, mixed=mixed)
    for record in result.records:
        assert sum(chunk.tokens for chunk in record.chunks) == record.request.prompt_tokens
        between = token_gaps([record])
        assert len(between) == record.request.output_tokens - 1
        spent = there(record.end_s) - there(record.first_token_s)
        assert between.sum() == pytest.approx(spent, abs=1e-9)
        assert there(record.ttft_s) > 0
    # One forward at a time: a replica's work is no more than the time it had.
    for prefill_s, decode_s in zip(result.busy_s, result.decode_busy_s, strict=True):
        assert prefill_s + decode_s <= result.end_s + 1e-9
