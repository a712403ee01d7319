"""`python -m sglang_cdsp tune` through the real command line."""

import json
import re
from pathlib import Path

import pytest

from sglang_cdsp.planner.regulator import Regulation, Regulator, read_rates
from tests.cli.calls import FEW, call, simulated


def test_a_tuned_table_serves_the_servers_regulator(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    rates = ("--from", "1", "--to", "2", "--improvement-rates", "0.1,0.6")
    flags = ("tune", *rates, "--requests", "80", "--seeds", "1", "--policy", "cdsp-paper")
    status, out, err = call(capsys, *flags, "--out", str(path))
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 5
    assert f"wrote {path}" in out
    update = json.loads(path.read_text())
    assert list(update["improvement_rate_mapping"]) == ["1", "1.5", "2"]
    regulator = Regulator(Regulation(((0.0, 0.0),), (1, 2, 4)))
    regulator.update(update)
    expected = {float(k): v for k, v in read_rates(path, "--improvement-rate").items()}
    # The least of the two means that the printed table marks.
    for line in out.splitlines()[1:4]:
        rate, low, high = re.findall(r"[\d.]+", line)
        best = 0.1 if float(low) <= float(high) else 0.6
        assert expected[float(rate)] == best
        assert f"{low if best == 0.1 else high}*" in line
    assert regulator.rate == expected[1.0]
    # Without --out the table goes to stdout; `simulate` reads it, and the lowest entry rules first.
    assert json.loads(call(capsys, *flags)[1]) == update
    few = (*FEW, "--policy", "cdsp")
    by_table = simulated(capsys, *few, "--improvement-rate", str(path))["policies"]
    by_rate = simulated(capsys, *few, "--improvement-rate", str(expected[1.0]))["policies"]
    assert by_table["cdsp"]["completed"] == by_rate["cdsp"]["completed"] == 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--policy", "loongserve"), "has no improvement rate"),
        (("--from", "3", "--to", "2"), "give 0 < from <= to"),
        (("--step", "1e-300"), "give a larger one"),
        (("--to", "1e300"), "give a larger one"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--improvement-rates", "0.1,1"), "1 is not in [0, 1)"),
        (("--policy", "cdsp-best"), "unknown policy"),
    ],
)
def test_tune_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    status, out, err = call(capsys, "tune", *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
