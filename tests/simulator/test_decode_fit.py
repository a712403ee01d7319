"""Decode's step-time model from a plan log, and one server's run replayed from its own log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.simulator.decode_fit import (
    Sample,
    beside,
    decode_samples,
    decoded_beside,
    fit_decode,
    fit_overrun,
)
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.one_server import OneServer
from sglang_cdsp.simulator.plan_log import read_plan_log
from sglang_cdsp.simulator.replay import Beside, chunk_errors, fitted_speed, replay
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from tests.simulator.plan_logs import line, lines_of, write
from tests.simulator.small_worlds import LINEAR, Scripted, requests, there, world

MODEL = DecodeModel(0.02, 0.003, 1e-6)


def steps(model: DecodeModel, batches: list[tuple[int, int]]) -> list[Sample]:
    return [Sample(n, k, model.a + model.b * n + model.c * k) for n, k in batches]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50_000)), min_size=15, max_size=30),
    st.floats(0.005, 0.1),
    st.sampled_from((0.0, 0.002)),
    st.sampled_from((0.0, 2e-6)),
)
def test_exact_steps_are_found_again(
    batches: list[tuple[int, int]], a: float, b: float, c: float
) -> None:
    model = DecodeModel(a, b, c)
    found = fit_decode(steps(model, batches))
    for sample in steps(model, batches):
        again = found.a + found.b * sample.batch + found.c * sample.tokens
        assert again == pytest.approx(sample.seconds, rel=1e-6)


@given(st.lists(st.floats(0.005, 0.5), min_size=1, max_size=30))
def test_the_model_has_the_mean_of_the_steps(seconds: list[float]) -> None:
    samples = [Sample(1 + n % 7, 100.0 * n, s) for n, s in enumerate(seconds)]
    found = fit_decode(samples)
    assert sum(sample.step_s(found) for sample in samples) == pytest.approx(sum(seconds))


def test_few_samples_are_a_mean() -> None:
    found = fit_decode([Sample(1, 100, 0.02), Sample(5, 9000, 0.02)])
    assert (found.a, found.b, found.c) == pytest.approx((0.02, 0.0, 0.0))


def test_nothing_to_fit() -> None:
    with pytest.raises(SetupError, match="--decode-model"):
        fit_decode([])


def one_server() -> Setup:
    form = OneServer(decode_share=0.2, stock_tokens=1)
    return world(one_server=form, decode=MODEL, instances=2, preempt_budget=0.0)


WORK = requests((0, 1000, 60), (0.5, 800, 40), (1.8, 4000, 30), (9, 2000, 50), (30, 500, 80))
SCRIPT = {
    "r0": ((1000, (0,)),),
    "r1": ((800, (1,)),),
    "r2": ((1000, (0,)), (3000, (0, 1))),
    "r3": ((2000, (1, 0)),),
    "r4": ((500, (1,)),),
}


def test_a_run_is_replayed_from_its_own_log(tmp_path: Path) -> None:
    setup = one_server()
    ran = simulate(setup, WORK, policy=Scripted(setup, SCRIPT)).records
    recorded = read_plan_log(write(tmp_path / "log", lines_of(ran, one_server=True)))
    assert [r.home for r in recorded] == [r.decode_instance for r in ran]
    assert [r.end_s for r in recorded] == pytest.approx([there(r.end_s) for r in ran])
    found = replay(recorded, setup, plans=True)
    assert found.simulated == pytest.approx([there(r.ttft_s) for r in ran])
    assert found.simulated_tpot == pytest.approx(found.real_tpot)
    said = found.to_dict()
    assert said["mean_ttft_error"] == pytest.approx(0.0, abs=1e-9)
    assert said["mean_tpot_error"] == pytest.approx(0.0, abs=1e-9)
    # Beside decode a chunk took 1 / 0.8 of what it takes alone; all that is decode's.
    alone = chunk_errors(recorded, LINEAR)
    assert alone.min() < -0.1
    assert abs(chunk_errors(recorded, LINEAR, Beside(0.2))).max() < abs(alone).max()
    assert fitted_speed(recorded, LINEAR, Beside(0.2)).predict(1, 0, 1000) == pytest.approx(
        1.0, rel=0.02
    )


def test_decodes_part_of_a_chunk_is_the_share_that_the_log_says(tmp_path: Path) -> None:
    """LINEAR: 900 tokens take 0.9 s alone, and took one second while another request decoded."""
    decoding = line("a", 0.0, 0.0, 1.0, (1000, [0], 0.0, 1.0))
    decoding |= {"output_tokens": 100, "end_s": 11.0}
    beside_it = line("b", 2.0, 0.0, 1.0, (900, [0], 0.0, 1.0))
    for name, shares, error in (("old", (), 0.9 / 0.8), ("new", (0.0, 0.1), 1.0)):
        log = [dict(decoding), dict(beside_it)]
        for said, share in zip(log, shares, strict=False):
            said["chunks"] = [{**said["chunks"][0], "decode_share": share}]
        recorded = read_plan_log(write(tmp_path / name, log))
        assert chunk_errors(recorded, LINEAR, Beside(0.2)) == pytest.approx([0.0, error - 1])


def test_what_ran_beside(tmp_path: Path) -> None:
    setup = one_server()
    ran = simulate(setup, WORK, policy=Scripted(setup, SCRIPT)).records
    recorded = read_plan_log(write(tmp_path / "log", lines_of(ran, one_server=True)))
    # r4 decodes on 1 alone, and its step is known.
    assert beside(recorded, 1, recorded[4].decode_span) == 0.0
    assert max(decoded_beside(recorded, n, recorded[2]) for n in (0, 1)) > 0.1
    alone = [s for s in decode_samples(recorded) if s.batch == pytest.approx(1.0)]
    assert any(
        s.seconds == pytest.approx(MODEL.a + MODEL.b + MODEL.c * s.tokens, rel=0.01) for s in alone
    )


@pytest.mark.parametrize("overrun_s", [0.0, 0.03, 0.06])
def test_stretches_that_overrun_are_found_again(tmp_path: Path, overrun_s: float) -> None:
    setup = one_server()
    assert setup.one_server is not None
    setup = replace(setup, one_server=replace(setup.one_server, overrun_s=overrun_s))
    ran = simulate(setup, WORK, policy=Scripted(setup, SCRIPT)).records
    recorded = read_plan_log(write(tmp_path / "log", lines_of(ran, one_server=True)))
    found = fit_overrun(recorded, MODEL, Beside(0.2).asked)
    assert found == pytest.approx(overrun_s, abs=0.02)


def test_a_log_of_a_pool_before_decode_servers_has_no_decode(tmp_path: Path) -> None:
    setup = replace(one_server(), one_server=None, decode_instances=0)
    ran = simulate(setup, WORK, policy=Scripted(setup, SCRIPT)).records
    recorded = read_plan_log(write(tmp_path / "log", lines_of(ran)))
    assert {r.end_s for r in recorded} == {None}
    assert not len(replay(recorded, setup, plans=True).real_tpot)
