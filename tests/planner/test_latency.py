"""Equation 1: the shipped fit, files, interpolation, the root that Algorithm 3 needs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import LatencyModel, LatencyModelError, builtin_model
from tests.planner.pools import MODEL, quick

# Table I of the paper, LLaMA3-8B on A100: seconds at 4k, 8k, ... 256k tokens.
TABLE_1 = {
    1: (0.28, 0.57, 1.29, 3.22, 9.05, 29.20),
    2: (0.16, 0.31, 0.69, 1.67, 4.61, 14.30, 50.07),
    4: (0.13, 0.20, 0.39, 0.92, 2.43, 7.32, 24.77),
    8: (0.21, 0.24, 0.31, 0.58, 1.37, 3.96, 12.81),
    16: (0.39, 0.43, 0.46, 0.53, 0.96, 2.31, 7.02),
}


@pytest.mark.parametrize("sp", TABLE_1)
def test_the_shipped_fit_is_as_close_to_table_1_as_it_says(sp: int) -> None:
    errors = [
        abs(MODEL.predict(sp, 0, 4096 << step) / seconds - 1)
        for step, seconds in enumerate(TABLE_1[sp])
    ]
    assert max(errors) == pytest.approx(MODEL.fit["max_relative_error"][str(sp)], abs=5e-5)
    assert max(errors) < 0.065  # the paper's own model is 7.6 % off at worst


def test_the_shipped_fit_names_its_source_and_its_assumption() -> None:
    assert "Table I" in MODEL.fit["source"]
    assert "c = 2 d" in MODEL.fit["assumption"]
    for sp in MODEL.sp_sizes:
        row = MODEL.coefficients(sp)
        assert row.c == pytest.approx(2 * row.d, rel=1e-6)


@quick
@given(st.sampled_from(MODEL.sp_sizes), st.integers(0, 10**5), st.integers(1, 10**5))
def test_splitting_a_prompt_conserves_the_quadratic_work(sp: int, first: int, rest: int) -> None:
    row = MODEL.coefficients(sp)
    whole = row.predict(0, first + rest)
    split = row.predict(0, first) + row.predict(first, rest)
    assert split - whole == pytest.approx(row.a, rel=1e-4)  # one more step cost, nothing else


@quick
@given(
    st.sampled_from(MODEL.sp_sizes),
    st.integers(0, 200_000),
    st.floats(0, 30),
    st.booleans(),
    st.sampled_from([0.0, 1e-6, 1e-4]),
)
def test_the_root_of_the_budget_is_exact(
    sp: int, history: int, budget: float, flat: bool, expansion: float
) -> None:
    row = replace(MODEL.coefficients(sp), e=expansion)
    if flat:
        row = replace(row, d=0.0)
    length = row.fill(history, budget)
    before = row.a + row.e * history
    if budget <= before:
        assert length == 0
    else:
        time = before + length * (row.b + row.c * history + row.d * length)
        assert time == pytest.approx(budget, abs=1e-6)


def test_sizes_between_two_fitted_ones_lie_between_them() -> None:
    low, mid, high = (MODEL.coefficients(sp) for sp in (2, 3, 4))
    for name in ("b", "c", "d"):
        assert getattr(high, name) < getattr(mid, name) < getattr(low, name)
    # Work shrinks like 1/s: three instances take two thirds of what two take, nearly.
    assert mid.d * 3 == pytest.approx(low.d * 2, rel=0.02)
    assert mid.a == pytest.approx((low.a + high.a) / 2)


@pytest.mark.parametrize("sp", [0, 17, 32])
def test_sizes_outside_the_profile_are_an_error_with_the_remedy(sp: int) -> None:
    with pytest.raises(LatencyModelError, match=rf"SP size {sp} .*\[1, 2, 4, 8, 16\]; profile it"):
        MODEL.predict(sp, 0, 100)


def test_sizes_below_the_smallest_fitted_one_are_not_extrapolated() -> None:
    without_one = LatencyModel(MODEL.rows[1:])
    with pytest.raises(LatencyModelError, match="SP size 1 lies outside"):
        without_one.predict(1, 0, 100)


def test_what_history_costs_by_itself_stands_in_the_file_only_where_there_is_such_a_cost(
    tmp_path: Path,
) -> None:
    assert all(set(row) == set("abcd") for row in MODEL.to_json()["sp"].values())
    rows = tuple((sp, replace(row, e=1e-6 * sp)) for sp, row in MODEL.rows)
    expanding = LatencyModel(rows)
    expanding.save(tmp_path / "model.json")
    assert LatencyModel.load(tmp_path / "model.json") == expanding
    assert expanding.coefficients(3).e == pytest.approx(3e-6), "each member expands all history"
    assert expanding.predict(2, 1000, 10) == pytest.approx(MODEL.predict(2, 1000, 10) + 2e-3)
    assert expanding.coefficients(2).scaled(3.0).e == pytest.approx(6e-6)


def test_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    MODEL.save(path)
    again = LatencyModel.load(path)
    assert again == MODEL
    assert again.fit == MODEL.fit
    assert builtin_model("llama3-8b-a100") == MODEL


ROW = {"a": 0.1, "b": 1e-5, "c": 0, "d": 1e-9}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", 'a key "sp"'),
        ('{"sp": {}}', "no SP size"),
        (json.dumps({"sp": {"two": ROW}}), "'two'; SP sizes are integers"),
        (json.dumps({"sp": {"0": ROW}}), "must be positive"),
        (json.dumps({"sp": {"1": {**ROW, "d": None}}}), "SP 1: coefficient d is None"),
        (json.dumps({"sp": {"1": {**ROW, "b": -1}}}), "SP 1: coefficient b is -1"),
        (json.dumps({"sp": {"1": {**ROW, "b": 0, "d": 0}}}), "b and d are both 0"),
        (json.dumps({"sp": {"1": 3}}), "SP 1: give an object"),
        (json.dumps({"sp": {"1": ROW}, "tp_size": 0}), "tp_size is 0"),
        (json.dumps({"sp": {"1": ROW}, "fit": 1}), '"fit" must be an object'),
    ],
)
def test_malformed_files_are_named_with_what_is_wrong(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(LatencyModelError, match=message) as error:
        LatencyModel.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_bytes_that_are_no_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(LatencyModelError, match="No such file"):
        LatencyModel.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LatencyModelError, match="not UTF-8"):
        LatencyModel.load(tmp_path / "binary")
