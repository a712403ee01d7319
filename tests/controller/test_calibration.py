"""The pool measures itself: a pool with a known latency model is recovered."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.calibration import calibrate, probe_lengths, probe_plan, samples_of
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.request import ChunkTimes, PoolRequest
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.types import Plan
from tests.controller.cases import with_pages
from tests.controller.fake_pool import FakePool

TRUTH = LatencyModel(
    (
        (1, Coefficients(0.010, 2e-4, 3e-8, 2e-8)),
        (2, Coefficients(0.014, 1.1e-4, 1.6e-8, 1.1e-8)),
        (4, Coefficients(0.020, 6e-5, 9e-9, 6e-9)),
    )
)


class KnownPool:
    """Runs probes by Equation 1, except for the first of each SP size, which warms up."""

    def __init__(self, warm_up_s: float = 5.0) -> None:
        self.plans: list[Plan] = []
        self._warm: set[int] = set()
        self._warm_up_s = warm_up_s

    def run(self, plan: Plan) -> PoolRequest:
        self.plans.append(plan)
        request = PoolRequest("probe", None, plan.tokens, 0.0, plan=plan)
        at_s, history = 50.0, 0
        for chunk in plan.chunks:
            extra = 0.0 if chunk.sp_size in self._warm else self._warm_up_s
            end_s = at_s + TRUTH.predict(chunk.sp_size, history, chunk.tokens) + extra
            request.times.append(ChunkTimes(at_s, end_s))
            at_s, history = end_s + 1.0, history + chunk.tokens
        self._warm.add(plan.chunks[0].sp_size)
        return request


def calibrated(pool: KnownPool, longest: int, page_size: int = 1) -> LatencyModel:
    return calibrate((1, 2, 4), longest, page_size, pool.run, model="m", device="d")


def test_the_known_model_is_recovered() -> None:
    pool = KnownPool()
    found = calibrated(pool, 32768)
    assert found.sp_sizes == (1, 2, 4)
    assert (found.model, found.device) == ("m", "d")
    # On four instances 4,096 tokens take 0.37 s: two such chunks are the longest probe.
    assert found.measured_tokens == max(plan.tokens for plan in pool.plans) == 8192
    for size in found.sp_sizes:
        for history, tokens in ((0, 100), (0, 3000), (3000, 500), (2000, 2000)):
            assert found.predict(size, history, tokens) == pytest.approx(
                TRUTH.predict(size, history, tokens), rel=0.01
            )


def test_measuring_stops_once_chunks_take_long_enough() -> None:
    """At SP 1, 1024 tokens take 0.24 s and 2048 take 0.5 s: longer ones are not tried."""
    pool = KnownPool()
    calibrated(pool, 32768)
    tried = [plan.chunks[0].tokens for plan in pool.plans if plan.chunks[0].sp_size == 1]
    assert tried == [64, 64, 128, 256, 512, 1024, 2048]


def test_a_pool_too_small_to_measure_names_the_remedy() -> None:
    with pytest.raises(RuntimeError, match="--cdsp-latency-model"):
        calibrated(KnownPool(), 100)


def test_lengths_are_whole_pages_and_two_chunks_fit() -> None:
    assert list(probe_lengths(1000, 1)) == [64, 128, 256]
    assert list(probe_lengths(1024, 48)) == [96, 192, 384]
    assert all(length <= 16384 for length in probe_lengths(10**6, 1))


def test_a_probe_is_two_chunks_on_the_first_instances() -> None:
    plan = probe_plan(64, 2)
    assert [(chunk.tokens, chunk.instances) for chunk in plan.chunks] == [(64, (0, 1))] * 2


def test_a_failed_probe_ends_the_measurement() -> None:
    request = PoolRequest("probe", None, 128, 0.0, plan=probe_plan(64, 1))
    request.error = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        samples_of(request)


def test_a_chunk_that_took_no_time_is_still_a_sample() -> None:
    request = PoolRequest("probe", None, 128, 0.0, plan=probe_plan(64, 1))
    request.times = [ChunkTimes(1.0, 1.0), ChunkTimes(1.0, 2.0)]
    first, second = samples_of(request)
    assert 0 < first.seconds < 1e-3
    assert (second.history, second.tokens, second.seconds) == (64, 64, 1.0)


def test_what_measures_and_what_serves_count_their_chunks_together() -> None:
    """An instance takes a chunk with a serial that it has seen for a late one of another chunk."""
    lanes, serials = LaneTable(2), list[int]()
    for _ in range(2):
        pool = FakePool(size=2, lanes=lanes)
        request = with_pages(pool, [(100, [0, 1])])
        pool.settle()
        serials.append(request.serial)
    assert serials == [1, 2]
