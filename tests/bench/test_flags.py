"""Benchmarks with bad input: one line with the remedy and status 2, and nothing is started."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from sglang_cdsp.stack import processes

MODEL = str(Path(__file__).parents[2] / "bench" / "results" / "profile-cpu.json")
FIDELITY = ("--latency-model", MODEL)
CASES = [
    ("simulated.late", ("--workload", "huge"), "not one of short"),
    ("simulated.late", ("--rates", "fast"), "item 0 is 'fast'"),
    ("simulated.late", ("--rates", "0"), "above 0"),
    ("simulated.late", ("--speeds", "-1"), "above 0"),
    ("simulated.late", ("--trace", "none.jsonl"), "No such file"),
    ("simulated.late", ("--requests", "0"), "not from 1"),
    ("simulated.planner_load", ("--policy", "best"), "unknown policy 'best'"),
    ("simulated.planner_load", ("--improvement-rates", "0.5,1"), "item 1 is 1"),
    ("simulated.planner_load", ("--seeds", "0"), "not from 1"),
    ("simulated.planner_load", ("--instances-per-node", "0"), "not from 1"),
    ("simulated.preempt", ("--preempt-budget", "-1"), "not from 0"),
    ("simulated.preempt", ("--traces", "none"), "No such file"),
    ("simulated.preempt", ("--out", "/proc/none/out"), "--out /proc/none/out"),
    ("micro.planner", ("--pools", "8,x"), "item 1 is 'x'"),
    ("micro.planner", ("--states", "0"), "not from 1"),
    ("micro.planner", ("--repeats", "0"), "not from 1"),
    ("micro.planner", ("--improvement-rate", "1"), "not from 0"),
    ("micro.plan_quality", ("--lengths", "0"), "at least 1"),
    ("micro.plan_quality", ("--policy", "cdsp,"), "unknown policy ''"),
    ("micro.plan_quality", ("--spread-cost", "nan"), "not from 0"),
    ("servers.ab", ("--policies", "best"), "unknown policy 'best'"),
    ("servers.ab", ("--rates", "0"), "above 0"),
    ("servers.ab", ("--slo", "1,2"), "give three"),
    ("servers.ab", ("--latency-model", "none.json"), "No such file"),
    ("servers.ab", ("--latency-model", __file__), "not JSON"),
    ("servers.ab", ("--out", "/proc/none/out"), "--out /proc/none/out"),
    ("servers.ab", ("--log-directory", __file__), "--log-directory"),
    ("servers.ab", ("--read", __file__), "give what --out wrote"),
    ("servers.ab", ("--read", "none.jsonl"), "give what --out wrote"),
    ("servers.fidelity", (), "required: --latency-model"),
    ("servers.fidelity", (*FIDELITY, "--policy", "best"), "unknown policy"),
    ("servers.fidelity", (*FIDELITY, "--plan-log", "/proc/none/log"), "--plan-log"),
    ("servers.fidelity", (*FIDELITY, "--rate", "0"), "not from 0.001"),
    ("servers.ttft", ("--out", "/proc/none/out"), "--out"),
    ("servers.ttft", ("--tokens", "1000000"), "not from 2"),
    ("servers.ttft", ("--family", "gpt-5"), "invalid choice"),
    ("servers.trees", (), "--other"),
    ("servers.trees", ("--other", "/proc/none"), "no folder sglang_cdsp"),
    ("servers.trees", ("--other", ".", "--sizes", "90000"), "at most 40000"),
    ("servers.storm", ("--abort", "1.5"), "not from 0 to 1"),
    ("servers.storm", ("--at-once", "0"), "not from 1"),
    ("servers.storm", ("--form", "one-server", "--slots", "100"), "not from 512"),
    ("servers.storm", ("--turn-roles", "5"), "give --form one-server too"),
    ("servers.storm", ("--longest", "9000"), "not from 1 to 8000"),
]


@pytest.mark.parametrize(("program", "flags", "says"), CASES)
def test_bad_flags_are_one_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    program: str,
    flags: tuple[str, ...],
    says: str,
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(processes.ServerGroup, "__init__", started)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"bench.{program}")
    with pytest.raises(SystemExit) as stop:
        module.main(flags)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert says in err
    assert err.startswith(f"python -m bench.{program}: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
