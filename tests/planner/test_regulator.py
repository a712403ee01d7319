"""Regulation: window, nearest entry, period, updates whole or not at all."""

import json
from pathlib import Path

import pytest

from sglang_cdsp.planner import OptionError, Regulation, Regulator, UpdateError
from sglang_cdsp.planner.regulator import make_regulator, read_rates

TABLE = ((0.5, 0.05), (1.0, 0.3), (2.0, 0.6))


def regulator(**changes: object) -> Regulator:
    return Regulator(Regulation(TABLE, (1, 2, 4)), allowed_sizes=(1, 2, 3, 4), **changes)  # type: ignore[arg-type]


def feed(target: Regulator, begin: float, end: float, gap: float) -> None:
    count = round((end - begin) / gap)
    for k in range(count):
        target.observe_arrival(begin + k * gap)


def test_the_nearest_entry_is_looked_up_once_a_period() -> None:
    r = regulator()
    assert r.refresh(0.0) == 0.05  # until the first look-up: the lowest arrival rate's
    feed(r, 0.0, 30.0, 1.0)
    assert r.refresh(29.9) == 0.05
    assert r.refresh(30.0) == 0.3
    feed(r, 30.0, 60.0, 0.4)
    assert r.refresh(59.0) == 0.3
    assert r.refresh(60.0) == 0.6
    assert r.refresh(300.0) == 0.05  # nobody came for minutes


def test_an_initial_rate_holds_until_the_first_look_up() -> None:
    r = regulator(initial_rate=0.42)
    assert r.refresh(5.0) == 0.42
    assert r.rate == 0.42


def test_the_window_slides() -> None:
    r = regulator(window_s=10.0)
    feed(r, 0.0, 100.0, 0.5)
    assert r.arrival_rate(100.0) == pytest.approx(2.0, abs=0.11)
    assert r.arrival_rate(105.0) == pytest.approx(1.0, abs=0.11)
    assert r.arrival_rate(120.0) == 0
    young = regulator(window_s=10.0)
    feed(young, 0.0, 4.0, 0.5)
    assert young.arrival_rate(4.0) == pytest.approx(2.0)  # over the time since the start
    first = regulator(window_s=10.0)
    first.observe_arrival(50.0)
    assert first.arrival_rate(50.01) == 1.0


def test_a_tie_goes_to_the_lower_arrival_rate() -> None:
    assert Regulation(TABLE, (1,)).nearest(0.75) == 0.05
    assert Regulation(TABLE, (1,)).nearest(0.76) == 0.3
    assert Regulation(TABLE, (1,)).nearest(99.0) == 0.6


def test_an_update_changes_what_it_names_and_acts_at_once() -> None:
    r = regulator()
    feed(r, 0.0, 30.0, 1.0)
    r.refresh(30.0)
    r.update({"improvement_rate_mapping": {"0": 0.1, "1.1": 0.2}})
    assert r.rate == 0.2  # the arrival rate of the last look-up, in the new table
    r.update({"sp_size_candidates": [3, 1]})
    assert r.sp_sizes == (1, 3)
    r.update({"improvement_rate_update_period": 5})
    feed(r, 30.0, 36.0, 10.0)
    assert r.refresh(36.0) == 0.1
    shown = r.snapshot(36.0)
    assert shown["updates"] == 3
    assert shown["improvement_rate_mapping"] == {"0.0": 0.1, "1.1": 0.2}
    assert shown["sp_size_candidates"] == [1, 3]
    assert shown["improvement_rate_update_period"] == 5
    assert json.loads(json.dumps(shown)) == shown


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({}, "the update is empty"),
        ([], "an update is an object"),
        ({"improvement_rate": 0.3}, "unknown key 'improvement_rate'; known keys are"),
        ({"improvement_rate_mapping": {}}, "must map arrival rates"),
        ({"improvement_rate_mapping": [0.1]}, "must map arrival rates"),
        ({"improvement_rate_mapping": {"fast": 0.1}}, "'fast' is not a number"),
        ({"improvement_rate_mapping": {"-1": 0.1}}, "must be finite and >= 0"),
        ({"improvement_rate_mapping": {"nan": 0.1}}, "must be finite"),
        ({"improvement_rate_mapping": {"1": 0.1, "1.0": 0.2}}, "appears twice"),
        ({"improvement_rate_mapping": {"1": 1.0}}, r"must be in \[0, 1\)"),
        ({"improvement_rate_mapping": {"1": "0.3"}}, "give a finite number"),
        ({"improvement_rate_mapping": {"1": True}}, "give a finite number"),
        ({"sp_size_candidates": []}, "at least one SP size"),
        ({"sp_size_candidates": 2}, "at least one SP size"),
        ({"sp_size_candidates": [8]}, r"8 is not one of the SP sizes .*\[1, 2, 3, 4\]"),
        ({"sp_size_candidates": [True]}, "True is not one of"),
        ({"sp_size_candidates": [2, 2]}, "repeats an SP size"),
        ({"improvement_rate_update_period": 0}, "greater than 0"),
        ({"improvement_rate_update_period": None}, "give a finite number"),
    ],
)
def test_a_bad_update_changes_nothing(update: object, message: str) -> None:
    r = regulator()
    before = r.snapshot(0.0)
    with pytest.raises(UpdateError, match=message):
        r.update(update)  # type: ignore[arg-type]
    if isinstance(update, dict) and update:
        # Nor does its good part: all or nothing.
        with pytest.raises(UpdateError, match=message):
            r.update({"improvement_rate_update_period": 7.0, **update})
        with pytest.raises(UpdateError, match=message):
            r.update({"sp_size_candidates": [1], **update})
    assert r.snapshot(0.0) == before


def test_a_regulator_needs_a_table() -> None:
    with pytest.raises(UpdateError, match="at least one mapping entry"):
        Regulator(Regulation((), (1,)))


def test_a_pool_without_a_table_has_one_rate_at_every_load() -> None:
    r = make_regulator((1, 2), 0.25)
    feed(r, 0.0, 60.0, 0.1)
    assert r.refresh(60.0) == 0.25
    assert make_regulator((1, 2), 0.25, {"0.5": 0.05, "4": 0.6}).rate == 0.05
    with pytest.raises(UpdateError, match="must map arrival rates"):
        make_regulator((1, 2), 0.25, [0.5])  # type: ignore[arg-type]


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_table_is_read_bare_or_as_an_update(tmp_path: Path, wrapped: bool) -> None:
    path, table = tmp_path / "rates.json", {"0.5": 0.1, "2": 0.4}
    path.write_text(json.dumps({"improvement_rate_mapping": table} if wrapped else table))
    assert read_rates(path, "--flag") == table


def test_a_file_that_is_no_table_is_named_with_its_flag(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text("{")
    with pytest.raises(OptionError, match=r"^--flag .*rates\.json: not JSON"):
        read_rates(path, "--flag")
    with pytest.raises(OptionError, match=r"^--flag .*: Is a directory"):
        read_rates(tmp_path, "--flag")
