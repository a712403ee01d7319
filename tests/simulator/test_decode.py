"""Decode in closed form against decode token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.setup import DecodeModel
from sglang_cdsp.simulator.types import Record, Request, gaps
from tests.simulator.small_worlds import there, world


def token_by_token(model: DecodeModel, records: tuple[Record, ...]) -> dict[str, list[float]]:
    """When each output token comes, if these requests' KV arrives at one instance as recorded."""
    coming = sorted(
        (r for r in records if r.request.output_tokens > 1), key=lambda r: there(r.transferred_s)
    )
    out: dict[str, list[float]] = {r.request.rid: [there(r.first_token_s)] for r in records}
    now = 0.0
    batch: list[Record] = []
    while coming or batch:
        if not batch:
            now = max(now, there(coming[0].transferred_s))
        # Times that differ by rounding only are one time.
        while coming and there(coming[0].transferred_s) <= now + 1e-9:
            batch.append(coming.pop(0))
        held = sum(r.request.prompt_tokens + len(out[r.request.rid]) - 1 for r in batch)
        now += model.a + model.b * len(batch) + model.c * held
        for r in batch:
            out[r.request.rid].append(now)
        batch = [r for r in batch if len(out[r.request.rid]) < r.request.output_tokens]
    return out


rows = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=12
)
models = st.builds(
    DecodeModel,
    st.sampled_from((0.01, 0.07, 0.31)),
    st.sampled_from((0.0, 0.011)),
    st.sampled_from((0.0, 1.3e-5)),
)


@given(rows, models)
@settings(max_examples=150, deadline=None, print_blob=True)
def test_runs_are_the_tokens(rows: list[tuple[float, int, int]], model: DecodeModel) -> None:
    setup = world(
        instances=4, decode_instances=1, decode=model, kv_bytes_per_token=1, send_bytes_per_s=1e5
    )
    work = [Request(f"r{n}", *row) for n, row in enumerate(rows)]
    records = simulate(setup, work).records
    expected = token_by_token(model, records)
    for record in records:
        tokens = expected[record.request.rid]
        runs = gaps(record)
        assert sum(count for _, count in runs) == record.request.output_tokens - 1
        if record.request.output_tokens == 1:
            assert record.end_s == record.transferred_s
            continue
        assert record.end_s == pytest.approx(tokens[-1])
        at, number = tokens[0], 0
        for seconds, count in runs:
            at, number = at + seconds * count, number + count
            # The first gap is cut off its run, whose mean it has.
            inside = model.c * len(rows) * record.request.output_tokens / 2 if number == 1 else 0.0
            assert at == pytest.approx(tokens[number], abs=1e-9 + inside)
