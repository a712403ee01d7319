"""Online correction: it follows, it is bounded, it shows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import CorrectionOptions, LatencyModelError, OnlineCorrection
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from tests.planner.pools import MODEL, quick


def test_it_follows_a_machine_that_is_slower_than_profiled() -> None:
    correction = OnlineCorrection(MODEL)
    for _ in range(100):
        correction.observe(2, 1000, 5000, 1.3 * MODEL.predict(2, 1000, 5000))
    assert correction.model.predict(2, 0, 9000) == pytest.approx(
        1.3 * MODEL.predict(2, 0, 9000), rel=0.011
    )


def test_a_slower_machine_makes_no_size_look_better_that_was_not_tried() -> None:
    """Twice as slow at all sizes: what only one of them has shown does not change the choice."""
    correction = OnlineCorrection(MODEL)
    for _ in range(8):
        correction.observe(2, 0, 16000, 2 * MODEL.predict(2, 0, 16000))
    factors = {size: state["factor"] for size, state in correction.snapshot()["sp"].items()}
    assert factors["2"] > 1.1
    assert factors["1"] == factors["4"] == pytest.approx(factors["2"] ** 0.5)
    assert correction.snapshot()["sp"]["1"]["samples"] == 0


def test_a_size_that_alone_is_slower_is_told_from_the_others() -> None:
    correction = OnlineCorrection(MODEL)
    for _ in range(400):
        for size, slower in ((1, 1.0), (2, 1.3), (1, 1.0), (1, 1.0)):
            correction.observe(size, 0, 5000, slower * MODEL.predict(size, 0, 5000))
    for size, slower in ((1, 1.0), (2, 1.3)):
        factor = correction.snapshot()["sp"][str(size)]["factor"]
        assert factor == pytest.approx(slower, rel=0.02)


@quick
@given(
    st.lists(st.tuples(st.sampled_from(MODEL.sp_sizes), st.floats(1e-6, 1e6)), max_size=100),
    st.floats(0, 0.99),
)
def test_no_sample_of_any_size_moves_a_factor_by_more_than_its_step(
    samples: list[tuple[int, float]], shared: float
) -> None:
    correction = OnlineCorrection(MODEL, CorrectionOptions(shared=shared))

    def factors() -> list[float]:
        return [state["factor"] for state in correction.snapshot()["sp"].values()]

    for size, seconds in samples:
        before = factors()
        correction.observe(size, 0, 1000, seconds)
        assert all(0.98 <= a / b <= 1.0203 for a, b in zip(factors(), before, strict=True))


@quick
@given(st.floats(1e-9, 1e9))
def test_one_outlier_moves_a_factor_by_two_percent_at_most(seconds: float) -> None:
    correction = OnlineCorrection(MODEL)
    correction.observe(1, 0, 1000, seconds)
    factor = correction.snapshot()["sp"]["1"]["factor"]
    assert 0.98 <= factor <= 1.0203


@quick
@given(st.lists(st.floats(1e-6, 1e6), max_size=200))
def test_no_sequence_leaves_the_bound(times: list[float]) -> None:
    correction = OnlineCorrection(MODEL, CorrectionOptions(gain=1.0, max_step=9.0, bound=1.5))
    for seconds in times:
        correction.observe(1, 0, 1000, seconds)
    shown = correction.snapshot()["sp"]["1"]
    assert 1 / 1.5 - 1e-9 <= shown["factor"] <= 1.5 + 1e-9
    assert shown["samples"] == len(times)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_counted_and_not_used(seconds: float) -> None:
    correction = OnlineCorrection(MODEL)
    correction.observe(1, 0, 1000, seconds)
    assert correction.model is MODEL
    assert correction.snapshot()["ignored"] == 1
    assert correction.snapshot()["sp"]["1"]["samples"] == 0


def test_small_changes_do_not_make_a_new_model() -> None:
    correction = OnlineCorrection(MODEL)
    correction.observe(1, 0, 1000, 1.05 * MODEL.predict(1, 0, 1000))
    assert correction.model is MODEL
    for _ in range(10):
        correction.observe(1, 0, 1000, 1.05 * MODEL.predict(1, 0, 1000))
    assert correction.model is not MODEL


def test_a_size_between_two_profiled_ones_teaches_both() -> None:
    correction = OnlineCorrection(MODEL)
    for _ in range(100):
        correction.observe(3, 0, 5000, 1.2 * MODEL.predict(3, 0, 5000))
    assert correction.model.predict(3, 0, 5000) == pytest.approx(
        1.2 * MODEL.predict(3, 0, 5000), rel=0.012
    )


def test_the_state_is_visible() -> None:
    correction = OnlineCorrection(MODEL)
    correction.observe(1, 0, 1000, 100 * MODEL.predict(1, 0, 1000))
    shown = correction.snapshot()
    assert shown["sp"]["1"]["cut"] == 1
    assert shown["sp"]["1"]["mean_abs_error"] == pytest.approx(99)
    assert json.loads(json.dumps(shown)) == shown


def test_bad_options_are_refused() -> None:
    with pytest.raises(LatencyModelError, match="gain in"):
        CorrectionOptions(gain=0)
    with pytest.raises(LatencyModelError, match="shared in"):
        CorrectionOptions(shared=1.0)


def test_a_batch_pays_the_constant_once() -> None:
    """Twice as slow as Equation 1 says, alone and in batches: the factor goes to 2 alike."""
    base = LatencyModel(((1, Coefficients(0.5, 1e-3, 1e-7, 1e-7)),))
    parts = ((0, 300), (256, 100), (0, 50))
    alone_s = sum(base.predict(1, history, tokens) for history, tokens in parts)
    batch_s = alone_s - 2 * 0.5
    correction = OnlineCorrection(base, CorrectionOptions(bound=4.0))
    for _ in range(200):
        correction.observe_batch(1, parts, 2 * batch_s)
    assert correction.snapshot()["sp"]["1"]["factor"] == pytest.approx(2.0, rel=0.01)
    assert correction.snapshot()["sp"]["1"]["samples"] == 200


def test_an_empty_batch_teaches_nothing() -> None:
    correction = OnlineCorrection(LatencyModel(((1, Coefficients(0.5, 1e-3, 0, 0)),)))
    correction.observe_batch(1, (), 1.0)
    assert correction.snapshot()["ignored"] == 1
