"""The merge of attention states: references against float64, kernels against references."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_cdsp.kernels.merge import merge_into, merge_states
from sglang_cdsp.kernels.merge_reference import merge_states_reference

ROOT = Path(__file__).parents[2]
ROUNDING = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 4e-3}
Compare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Compare]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.kernels.interpreted"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None

    def compare(**case: Any) -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(case) + "\n")
        worker.stdin.flush()
        answer: dict[str, Any] = json.loads(worker.stdout.readline())
        return answer

    yield compare
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0
    worker.stdout.close()


@settings(print_blob=True, deadline=None, max_examples=40)
@given(
    n=st.integers(1, 6),
    tokens=st.integers(0, 9),
    heads=st.integers(1, 7),
    dim=st.sampled_from([1, 3, 16, 48, 64, 80, 100, 128, 192, 256]),
    dtype=st.sampled_from(list(ROUNDING)),
    unseen=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
def test_kernels_equal_their_references(interpreted: Compare, **case: Any) -> None:
    answer = interpreted(**case)
    assert "error" not in answer, answer["error"]
    limits = {"states_out": ROUNDING[case["dtype"]], "forms_out": ROUNDING[case["dtype"]]}
    for what, gap in answer.items():
        assert gap <= limits.get(what, 2e-5), (what, gap)  # NaN fails as well


def test_the_worker_really_interprets() -> None:
    """Were the references compared with themselves, the test above could not fail."""
    probe = (
        "from sglang_cdsp.kernels import merge; import torch\n"
        "assert merge._has_kernel(torch.zeros(1))\n"
        "merge._merge_states_kernel = None\n"
        "merge.merge_states(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'NoneType' object is not subscriptable" in run.stderr


@settings(print_blob=True, deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(0, 40), min_size=0, max_size=5),
    dim=st.sampled_from([1, 5, 32]),
    spread=st.sampled_from([0.1, 1.0, 300.0]),
    seed=st.integers(0, 999),
)
def test_merged_blocks_equal_one_softmax(
    cuts: list[int], dim: int, spread: float, seed: int
) -> None:
    """Softmax over 40 keys, cut into blocks (some of them empty), in float64."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 40, generator=draw).double() * spread
    values = torch.randn(40, dim, generator=draw).double()
    whole = torch.softmax(logits, -1) @ values
    edges = [0, *sorted(cuts), 40]
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    lses = torch.stack([logits[..., b].logsumexp(-1) for b in blocks])
    outs = torch.stack([torch.softmax(logits[..., b], -1) @ values[b] for b in blocks])

    out, lse = merge_states(outs.float(), lses.float())
    # In float32 a log-sum-exp of this size is known to about this much, and so is a weight.
    slack = 2e-6 + 4e-7 * float(logits.abs().max())
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1), atol=slack, rtol=1e-6)
    torch.testing.assert_close(out.double(), whole, atol=20 * slack, rtol=1e-5)

    running = torch.zeros(3, 2, dim), torch.full((3, 2), -math.inf)
    for block_out, block_lse in zip(outs.float(), lses.float(), strict=True):
        merge_into(*running, block_out, block_lse)
    torch.testing.assert_close(running[0].double(), whole, atol=20 * slack, rtol=1e-5)
    torch.testing.assert_close(running[1].double(), lse.double(), atol=slack, rtol=1e-6)


def test_states_without_keys_are_not_read() -> None:
    outs = torch.tensor([[[[1.0, 2.0]], [[math.nan, 0.0]]], [[[math.nan] * 2], [[math.nan] * 2]]])
    lses = torch.tensor([[[0.5], [-math.inf]], [[-math.inf], [-math.inf]]])
    out, lse = merge_states(outs, lses)
    assert out.tolist() == [[[1.0, 2.0]], [[0.0, 0.0]]]
    assert lse.tolist() == [[0.5], [-math.inf]]
    running = torch.zeros(2, 1, 2), torch.full((2, 1), -math.inf)
    for block in range(2):
        merge_into(*running, outs[block], lses[block])
    assert running[0].tolist() == out.tolist()
    assert running[1].tolist() == lse.tolist()


def test_a_broken_state_is_not_hidden() -> None:
    outs, lses = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1)
    lses[1] = math.nan
    for out, lse in (merge_states(outs, lses), merge_states_reference(outs, lses)):
        assert bool(lse.isnan().all())
        assert bool(out.isnan().all())
    running = torch.zeros(1, 1, 2), torch.zeros(1, 1)
    merge_into(*running, outs[1], lses[1])
    assert bool(running[0].isnan().all())
    assert bool(running[1].isnan().all())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="n at least 1"):
        merge_states(torch.zeros(0, 1, 1, 1), torch.zeros(0, 1, 1))
    with pytest.raises(ValueError, match="float32"):
        merge_states(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1).half())
    out, lse = torch.zeros(2, 1, 4), torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"\[T, H, D\]"):
        merge_into(out, lse, out[:1], lse)
    with pytest.raises(ValueError, match="in place"):
        merge_into(out[..., ::2], lse, out[..., ::2], lse)
