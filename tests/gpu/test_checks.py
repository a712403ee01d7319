"""The checks themselves, on the CPU: they pass, and they fail on what they are there to find."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from sglang_cdsp.kernels.merge import merge_into, merge_states

from bench.gpu import attention, environment, pacing, paged, plans, rings, serving, speed
from bench.gpu.attention import MergeCase, attention_cases, check_attention, merge_cases
from bench.gpu.record import CheckFailed, Recorder, read_checks
from bench.gpu.target import Target, target_for
from sglang_cdsp.attention.blocks import TensorBlock
from sglang_cdsp.attention.partial import Implementation
from sglang_cdsp.attention.ring import RingLayout, ring_attention
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.testing.answers import Answer, compare
from sglang_cdsp.testing.checkpoint import LlamaShape

CPU = target_for(dry_run=True)
(TORCH,) = attention.usable(CPU, 64)
CASE = attention_cases(True)[0]
MERGE = MergeCase(3, 33, 4, 64, torch.float32)


def test_the_issue_s_cases_are_all_there() -> None:
    cases = attention_cases(False)
    assert {case.head_dim for case in cases} == {64, 128, 256}
    for dim in (64, 128, 256):
        mine = [case for case in cases if case.head_dim == dim]
        assert {case.shared for case in mine} == {1, 4, 8}
        assert {(case.causal, case.strided) for case in mine} >= {(True, True), (False, True)}
    q, k, _ = attention.inputs(CPU, replace(CASE, queries=9, strided=True))
    assert not q.is_contiguous()
    assert not k.is_contiguous()


@pytest.mark.parametrize("case", attention_cases(True)[::4], ids=str)
def test_attention_passes(case: attention.AttentionCase) -> None:
    assert check_attention(CPU, TORCH, case)["out off by"] <= CPU.tolerance


def broken(change: str) -> Implementation:
    """The CPU's implementation with one thing wrong."""

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if change == "mask":
            causal = not causal and q.shape[0] == k.shape[0]
        if change == "zeros":
            v = torch.zeros_like(v)
        if change == "last key":
            k, v = k[:-1], v[:-1]
        if change == "heads":  # neighbours share a KV head, not every eighth
            k, v = k.flip(1), v.flip(1)
        return TORCH.run(q, k, v, causal, scale)

    return replace(TORCH, run=run, lse_unit=math.log(2.0) if change == "base" else 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("base", "log-sum-exp is off"),
        ("mask", "is off"),
        ("last key", "is off"),
        ("zeros", "output is off"),
        ("heads", "is off"),
    ],
)
def test_wrong_attention_fails(change: str, words: str) -> None:
    causal = change == "mask"
    keys = {"mask": 65, "zeros": 4001}.get(change, 131)
    case = attention.AttentionCase(64, 4, causal, False, 65, keys)
    with pytest.raises(CheckFailed, match=words):
        check_attention(CPU, broken(change), case)


@pytest.mark.parametrize("case", merge_cases(True)[::3], ids=str)
def test_merges_pass(case: MergeCase) -> None:
    attention.check_merge_states(CPU, case)
    attention.check_merge_into(CPU, case)


def test_merge_cases_hold_unseen_rows_that_are_poisoned() -> None:
    outs, lses = attention.merge_inputs(CPU, MERGE)
    assert bool(outs[lses == -math.inf].isnan().all())
    assert not outs[lses > -math.inf].isnan().any()
    assert bool((lses == -math.inf).all(0).any()), "rows that no state has seen"


def test_wrong_merges_fail() -> None:
    def base_2(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return merge_states(outs, lses * math.log(2.0))

    def reads_poison(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.softmax(lses, 0).nan_to_num(0.0)
        return (weights[..., None] * outs).sum(0), torch.logsumexp(lses, 0)

    def mean(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return outs.nan_to_num(0.0).mean(0), torch.logsumexp(lses, 0)

    for wrong in (base_2, reads_poison, mean):
        with pytest.raises(CheckFailed):
            attention.check_merge_states(CPU, MERGE, wrong)

    def forgets(
        out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
    ) -> None:
        before = lse.clone()
        merge_into(out, lse, other, other_lse)
        lse.copy_(torch.maximum(before, other_lse))

    with pytest.raises(CheckFailed):
        attention.check_merge_into(CPU, MERGE, forgets)


def test_an_infinity_or_nan_is_never_within() -> None:
    one = torch.ones(2)
    assert attention.within("x", torch.full((2,), -math.inf), torch.full((2,), -math.inf), 0.0) == 0
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(CheckFailed):
            attention.within("x", torch.tensor([1.0, wrong]), one, 1e9)
        with pytest.raises(CheckFailed):
            attention.within("x", one, torch.tensor([1.0, wrong]), 1e9)


@pytest.fixture(scope="module")
def links() -> Iterator[list[Lane]]:
    with rings.lanes(CPU, 4) as lanes:
        yield lanes


def test_rings_pass(links: list[Lane]) -> None:
    for case in rings.ring_cases(4, small=True):
        for way in rings.WAYS.values():
            rings.check_ring(CPU, links, way, case)
    rings.check_moves(CPU, links, 4)


def test_a_ring_that_loses_a_block_fails(links: list[Lane]) -> None:
    def loses(
        q: torch.Tensor, block: TensorBlock, layout: RingLayout, lane: Lane, *, scale: float
    ) -> torch.Tensor:
        if layout.me == 1:
            block = replace(block, v_history=torch.zeros_like(block.v_history))
        return ring_attention(q, block, layout, lane, scale=scale)

    with pytest.raises(CheckFailed, match="ring is off"):
        rings.check_ring(CPU, links, loses, rings.ring_cases(4, small=True)[1])


def test_rows_read_in_the_pool_pass() -> None:
    (kernel,) = paged.kernels(CPU)
    found = paged.check_paged(CPU, kernel, 64, 33)
    assert found["own off by"] <= CPU.tolerance
    assert found["guests off by"] <= CPU.tolerance
    paged.check_turns(CPU, kernel)
    assert paged.times(CPU, kernel, 64, 16)["own TFLOP/s"] > 0


@pytest.mark.parametrize("change", ["base", "mask", "slots"])
def test_wrong_reading_of_the_pool_fails(change: str) -> None:
    """Another base, no mask, or neighbouring slots."""
    (kernel,) = paged.kernels(CPU)

    def make(workspace: torch.Tensor) -> Any:
        wrapper: Any = kernel.make(workspace)
        plan = wrapper.plan

        def changed(**planned: Any) -> None:
            if change == "mask":
                planned["causal"] = False
            if change == "slots":
                planned["paged_kv_indices"] = planned["paged_kv_indices"].roll(1)
            plan(**planned)

        wrapper.plan = changed
        return wrapper

    wrong = replace(kernel, make=make, lse_unit=1.0 if change == "base" else kernel.lse_unit)
    with pytest.raises(CheckFailed, match="is off"):
        paged.check_paged(CPU, wrong, 64, 33)


def test_a_plan_that_forwards_share_fails() -> None:
    (kernel,) = paged.kernels(CPU)
    shared: Any = kernel.make(torch.empty(16, dtype=torch.uint8))
    shared.reset_workspace_buffer = lambda *buffers: None
    with pytest.raises(CheckFailed, match="takes turns"):
        paged.check_turns(CPU, replace(kernel, make=lambda workspace: shared))


def test_speed_checks_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.parts_against_whole(CPU, 16, 64)["apart"] <= CPU.tolerance
    monkeypatch.setattr(speed, "merge_states", lambda outs, lses: (outs.mean(0), lses[0]))
    with pytest.raises(CheckFailed, match="8 parts"):
        speed.parts_against_whole(CPU, 16, 64)
    assert speed.host_time(CPU, ring_attention, 2)["host ms"] > 0


def test_the_machine_is_described_without_a_gpu() -> None:
    found = environment.described(CPU)
    assert found["torch"] == torch.__version__
    assert found["device"]


def test_without_a_gpu_the_real_check_says_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="--dry-run"):
        target_for(dry_run=False)


@pytest.mark.parametrize("sizes", [serving.ON_GPU, serving.IN_DRY_RUN])
def test_plans_circulate_what_they_are_to(sizes: serving.Sizes) -> None:
    for length in sizes.lengths:
        cases = {case.name: case for case in plans.cases(length, sizes.shape)}
        assert plans.circulations(cases["two instances"].chunks, sizes.shape) == ["kv"]
        assert plans.circulations(cases["Q mode"].chunks, sizes.shape) == ["kv", "q"]
        for case in cases.values():
            assert sum(tokens for tokens, _ in case.chunks) == length
            assert all(tokens % plans.PAGE == 0 for tokens, _ in case.chunks[:-1])


def test_a_model_for_which_q_never_circulates_is_refused() -> None:
    with pytest.raises(ValueError, match="choose another model"):
        plans.cases(2048, LlamaShape(num_attention_heads=32, num_key_value_heads=1))


def answer(*logprobs: float) -> Answer:
    """One token whose candidates 1, 2, ... have these log-probabilities."""
    top = dict(enumerate(logprobs, start=1))
    best = max(top, key=top.__getitem__)
    return Answer((best,), (top[best],), (top,))


def test_answers_are_compared() -> None:
    assert compare(answer(-0.5, -2.0), answer(-0.6, -2.0), 0.2).worst == pytest.approx(0.1)
    with pytest.raises(AssertionError, match="off by"):
        compare(answer(-0.5, -2.0), answer(-0.9, -2.0), 0.2)
    tie = compare(answer(-0.9, -1.0), answer(-1.0, -0.9), 0.2)
    assert (tie.compared, tie.early) == (0, True)
    with pytest.raises(AssertionError, match=r"\(2,\) for \(1,\)"):
        compare(answer(-0.5, -1.0), answer(-0.9, -0.8), 0.45)


def test_what_a_recorder_wrote_can_be_read(tmp_path: object) -> None:
    path = tmp_path / "step.jsonl"  # type: ignore[operator]
    recorder = Recorder(path, lambda line: None)
    assert recorder.check("right", lambda: {"ms": 1.5})
    assert not recorder.check("wrong", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    with path.open("a") as file:
        file.write('{"name": "cut o')
    right, wrong = read_checks(path)
    assert (right.ok, right.figures) == (True, {"ms": 1.5})
    assert "ZeroDivisionError" in wrong.error


def test_the_target_of_a_dry_run_is_small() -> None:
    assert Target(torch.device("cpu"), torch.float32, small=True) == CPU


class Lagging:
    """An event of a device that runs one piece at each look."""

    done = 0
    made = 0

    def __init__(self, **timing: bool) -> None:
        Lagging.made += 1
        self.number = Lagging.made

    def record(self) -> None:
        """Behind what was launched before."""

    def query(self) -> bool:
        Lagging.done += 1
        return self.number <= Lagging.done // 40


def test_a_host_that_runs_ahead_of_its_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must not pass on a machine where the pace does nothing."""
    monkeypatch.setattr(torch.cuda, "Event", Lagging)
    monkeypatch.setattr(Target, "cuda", property(lambda self: True))
    monkeypatch.setattr(Target, "synchronize", lambda self: None)
    monkeypatch.setattr(pacing, "milliseconds", lambda *_, **__: 1.0)
    monkeypatch.setattr(pacing, "Pace", lambda give_way, events: lambda: None)
    with pytest.raises(CheckFailed, match="ahead of the device"):
        pacing.pace_bound(CPU)
