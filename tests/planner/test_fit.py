"""The fit: exact data gives exact coefficients; noise, bounds, held-out errors, refusals."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.planner import Coefficients, LatencyModel, LatencyModelError
from sglang_cdsp.planner.fit import (
    Sample,
    _non_negative,
    fit_coefficients,
    fit_model,
    relative_errors,
    split_grid,
)

LENGTHS = (512, 1024, 2048, 4096, 8192)
HISTORIES = (0, 2048, 4096, 8192)


def grid(row: Coefficients, sp: int = 1, factors: tuple[float, ...] = (1.0,)) -> list[Sample]:
    points = [(h, t) for h in HISTORIES for t in LENGTHS]
    return [
        Sample(sp, h, t, row.predict(h, t) * factors[k % len(factors)])
        for k, (h, t) in enumerate(points)
    ]


@settings(max_examples=60, deadline=None, print_blob=True)
@given(st.floats(0, 1), st.floats(1e-7, 1e-4), st.floats(0, 1e-8), st.floats(0, 1e-8))
def test_exact_data_is_reproduced(a: float, b: float, c: float, d: float) -> None:
    row = Coefficients(a, b, c, d)
    fitted, reports = fit_model(grid(row), model="m", device="d")
    assert reports[0].maximum < 1e-6
    for h, t in ((0, 100), (10_000, 3000)):
        assert fitted.predict(1, h, t) == pytest.approx(row.predict(h, t), rel=1e-4)


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.floats(0, 1), st.floats(1e-7, 1e-4), st.floats(0, 1e-8), st.floats(1e-8, 1e-5))
def test_what_history_costs_by_itself_is_found_where_it_is_looked_for(
    a: float, b: float, c: float, e: float
) -> None:
    row = Coefficients(a, b, c, c / 2, e)
    fitted, reports = fit_model(grid(row), model="m", device="d", expands=True)
    assert reports[0].maximum < 1e-5
    assert fitted.predict(1, 50_000, 600) == pytest.approx(row.predict(50_000, 600), rel=1e-3)
    assert fit_coefficients(grid(row)).e == 0.0


def test_without_history_nothing_is_said_of_its_cost() -> None:
    row = Coefficients(0.02, 1e-5, 2e-9, 1e-9)
    alone = [Sample(1, 0, t, row.predict(0, t)) for t in LENGTHS]
    assert fit_coefficients(alone, expands=True).e == 0.0


def test_relative_errors_weigh_short_chunks_like_long_ones() -> None:
    row = Coefficients(0.05, 2e-5, 0.0, 1e-9)
    fitted = fit_coefficients(grid(row, factors=(1.02, 0.98, 1.0)))
    model = LatencyModel(((1, fitted),))
    for sample in grid(row):
        assert model.predict(1, sample.history, sample.tokens) == pytest.approx(
            sample.seconds, rel=0.02
        )


def test_coefficients_never_turn_negative() -> None:
    # Times that fall with length would give a negative slope.
    falling = [Sample(1, h, t, 1.0 - t / 20_000) for h in HISTORIES for t in LENGTHS]
    found = fit_coefficients(falling)
    assert min(found.a, found.c, found.d) >= 0
    assert 0 < found.b < 1e-9  # flat, as far as a model may be


@settings(max_examples=60, deadline=None, print_blob=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(4, 12))
def test_it_is_as_good_as_scipys_non_negative_least_squares(
    seed: int, columns: int, rows: int
) -> None:
    """The planner does without scipy; trying every set of free entries costs nothing at four."""
    draw = np.random.default_rng(seed)
    design, target = draw.normal(size=(rows, columns)), draw.normal(size=rows)
    ours = _non_negative(design, target)
    _, least = scipy.optimize.nnls(design, target)
    assert (ours >= 0).all()
    assert np.linalg.norm(design @ ours - target) == pytest.approx(least, rel=1e-9, abs=1e-12)


def test_without_history_c_is_twice_d() -> None:
    row = Coefficients(0.02, 1e-5, 7e-9, 3e-9)
    found = fit_coefficients([Sample(1, 0, t, row.predict(0, t)) for t in LENGTHS])
    assert found.d == pytest.approx(3e-9, rel=1e-6)
    assert found.c == 2 * found.d


def test_half_the_grid_is_held_out_and_reported() -> None:
    row = Coefficients(0.02, 1e-5, 2e-9, 1e-9)
    samples = grid(row, 1) + grid(row.scaled(0.6), 2)
    fit, held = split_grid(samples)
    assert sorted((*fit, *held), key=str) == sorted(samples, key=str)
    assert len(fit) == len(held) == 20
    spoiled = [
        Sample(s.sp, s.history, s.tokens, s.seconds * (1.1 if s in held else 1.0)) for s in samples
    ]
    model, reports = fit_model(spoiled, model="m", device="cpu", tp_size=2)
    assert [report.sp for report in reports] == [1, 2]
    for report in reports:  # fitted on the clean half, judged on the spoiled one
        assert report.samples == 10
        assert report.mean == pytest.approx(1 - 1 / 1.1, rel=1e-3)
        assert report.maximum == pytest.approx(1 - 1 / 1.1, rel=1e-3)
    assert model.fit["held_out"]["1"]["max_relative_error"] == reports[0].maximum
    assert (model.model, model.device, model.tp_size) == ("m", "cpu", 2)
    assert LatencyModel.from_json(model.to_json()) == model


def test_the_worst_point_is_named() -> None:
    row = Coefficients(0.02, 1e-5, 2e-9, 1e-9)
    model = LatencyModel(((1, row),))
    samples = [*grid(row), Sample(1, 77, 777, 2 * row.predict(77, 777))]
    (report,) = relative_errors(model, samples)
    assert report.worst == samples[-1]
    assert report.maximum == pytest.approx(0.5)


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [Sample(1, 0, 100, 1.0)],
        [Sample(1, h, 100, 1.0 + h) for h in range(8)],
        [Sample(1, 0, t, 1.0) for t in (1, 2, 3)],
    ],
)
def test_too_few_points_are_refused(samples: list[Sample]) -> None:
    with pytest.raises(LatencyModelError, match="measure"):
        fit_model(samples, model="m", device="d")


@pytest.mark.parametrize(
    "bad",
    [(0, 0, 1, 1.0), (1, -1, 1, 1.0), (1, 0, 0, 1.0), (1, 0, 1, 0.0), (1, 0, 1, float("nan"))],
)
def test_impossible_samples_are_refused(bad: tuple[int, int, int, float]) -> None:
    with pytest.raises(LatencyModelError):
        Sample(*bad)
