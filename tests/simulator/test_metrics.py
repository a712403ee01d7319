"""Figures of hand-made results, the light load, and the highest rate that holds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sglang_cdsp.planner.types import PlannedChunk
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.metrics import Spread, light_load, summarise, token_gaps, ttfts, within
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.sweep import UNIFIED, highest, is_regulated, variant
from sglang_cdsp.simulator.types import Record, Request
from sglang_cdsp.simulator.workload import poisson

SETUP = Setup(policy="fixed-sp:2", instances=2, sp_sizes=(1, 2), decode_instances=0)


def by_hand() -> Result:
    done = Record(
        Request("a", 1.0, 100, 4),
        chunks=(PlannedChunk(40, (0,), 1.5, 2.0), PlannedChunk(60, (0, 1), 2.0, 3.0)),
        first_token_s=3.0,
        end_s=4.0,
        token_gaps_s=((0.5, 1), (0.25, 2)),
    )
    failed = Record(Request("b", 2.0, 100, 4), end_s=9.0, error="too long")
    return Result(SETUP, (done, failed), 5.0, (1.5, 1.0), (60, 60), (), (), 7)


def test_the_figures_of_a_run() -> None:
    summary = summarise(by_hand())
    assert summary.ttft_s == Spread(2.0, 2.0, 2.0, 2.0)
    assert token_gaps(by_hand().records).tolist() == [0.5, 0.25, 0.25]
    assert summary.tbt_s.p50 == 0.25
    assert summary.tbt_s.mean == pytest.approx(1 / 3)
    assert (summary.completed, summary.failed) == (1, 1)
    assert summary.throughput_rps == pytest.approx(1 / 3)  # from 1 s to 4 s
    assert summary.idle_fraction == pytest.approx(0.75)
    assert summary.longest_wait_s == pytest.approx(0.5)
    assert summary.sp_histogram == {1: 1, 2: 1}


def test_warm_up_counts_for_nothing_but_throughput() -> None:
    summary = summarise(by_hand(), warm_up=0.5)
    assert math.isnan(summary.ttft_s.p99)
    assert summary.to_dict()["ttft_s"]["p99"] is None
    assert summary.completed == 1


def test_light_load_is_every_request_alone_on_its_fastest_group() -> None:
    requests = poisson("short", 50.0, 40, seed=0)
    setup = Setup(policy="data-parallel", improvement_rate=0.7, noise=0.5)
    light = light_load(setup, requests)
    fastest = [
        min(setup.model.predict(s, 0, r.prompt_tokens) for s in setup.sp_sizes) for r in requests
    ]
    assert light.ttft_s.to_dict() == pytest.approx(Spread.of(np.array(fastest)).to_dict())
    busy = simulate(replace(setup, noise=0.0), requests)
    assert all(
        mine >= alone * (1 - 1e-9) for mine, alone in zip(ttfts(busy.records), fastest, strict=True)
    )


def test_a_run_holds_if_every_figure_does() -> None:
    light = summarise(by_hand())
    ok = replace(light, failed=0)
    assert within(ok, light, 1.0)
    assert not within(light, light, 1.0)  # one failed
    for name in ("ttft_s", "tbt_s"):
        spread = getattr(ok, name)
        for figure in ("p50", "p99"):
            worse = replace(spread, **{figure: getattr(spread, figure) * 2.1})
            assert not within(replace(ok, **{name: worse}), light, 2.0)
            assert within(replace(ok, **{name: worse}), light, 2.2)
    one_token = replace(ok, tbt_s=Spread.of(np.array([])))
    assert within(one_token, one_token, 1.0)


@pytest.mark.parametrize("limit", [0.003, 0.7, 1.0, 2.345, 700.0])
def test_highest_finds_the_limit(limit: float) -> None:
    found = highest(lambda rate: rate <= limit)
    assert limit * 0.99 <= found <= limit


def test_highest_without_a_limit() -> None:
    assert highest(lambda rate: False) == 0.0
    with pytest.raises(SetupError, match="simulate more requests"):
        highest(lambda rate: True)


def test_variants() -> None:
    unified = variant(SETUP, UNIFIED)
    assert (unified.policy, unified.unified, unified.instances) == ("loongserve", True, 2)
    # Two decode instances at TP8 are 16 more instances at TP1.
    assert variant(Setup(), UNIFIED).instances == 32
    assert variant(unified, "cdsp") == replace(unified, policy="cdsp", unified=False)
    regulated = ("cdsp", "cdsp-paper", "single-chunk", "cdsp-late")
    assert all(map(is_regulated, regulated))
    assert not any(map(is_regulated, ("fixed-sp:8", "loongserve", UNIFIED, "threshold:9")))
