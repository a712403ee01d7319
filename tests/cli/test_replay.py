"""`python -m sglang_cdsp replay` through the real command line."""

import json
from pathlib import Path

import pytest

from sglang_cdsp.__main__ import main
from tests.cli.calls import call
from tests.simulator.plan_logs import line, write
from tests.simulator.small_worlds import LINEAR


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log", [line("a", 0.0, 0.0, 0.8, (1000, [0, 1], 0.0, 0.8))])
    model, out = tmp_path / "model.json", tmp_path / "out"
    LINEAR.save(model)
    command = ["replay", str(log), "--latency-model", str(model)]
    assert main([*command, "--json", "--out", str(out), "--improvement-rate", "0"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["policy"] == "cdsp-paper"
    for way in ("recorded plans", "planned anew"):
        assert said["replays"][way]["request_error"]["mean"] == pytest.approx(0.375)
    assert said["chunk_error"]["worst"] == pytest.approx(0.375)
    assert json.loads(out.read_text())["recorded_plans_s"] == pytest.approx(0.5)
    assert main(command) == 0
    assert "recorded plans" in capsys.readouterr().out


def test_one_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log says that the pool decoded itself: a request alone, 0.1 s between its tokens."""
    said = line("a", 0.0, 0.0, 1.0, (1000, [0], 0.0, 1.0))
    log = write(tmp_path / "log", [{**said, "output_tokens": 11, "end_s": 2.0}])
    model = tmp_path / "model.json"
    LINEAR.save(model)
    command = ["replay", str(log), "--latency-model", str(model), "--instances", "2"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decode_model"] == pytest.approx({"a": 0.1, "b": 0.0, "c": 0.0})
    recorded = found["replays"]["recorded plans"]
    assert recorded["mean_tpot_s"] == pytest.approx(0.1)
    assert recorded["mean_tpot_error"] == pytest.approx(0.0, abs=1e-9)
    assert main([*command, "--decode-model", "0.2,0,0"]) == 0
    assert "mean TPOT off by: recorded plans +100.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ("--instances", "1"),
        ("--kv-tokens", "0"),
        ("--kv-tokens", "10"),
        ("--policy", "nonsense"),
        ("--min-chunk", "1" * 30),
        ("--out", "/proc/nobody/out"),
    ],
)
def test_wrong_flags_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    log = write(tmp_path / "log", [line("a", 0.0, 0.0, 0.8, (1000, [0, 1], 0.0, 0.8))])
    model = tmp_path / "model.json"
    LINEAR.save(model)
    status, out, err = call(capsys, "replay", str(log), "--latency-model", str(model), *flags)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
