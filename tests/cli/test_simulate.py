"""`python -m sglang_cdsp simulate` through the real command line."""

import argparse
import importlib
import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.simulator import plots
from sglang_cdsp.simulator.setup import Setup
from tests.cli.calls import FEW, call, simulated


def test_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["cdsp", "fixed-sp:8", "loongserve", "loongserve-unified"]
    shown = simulated(capsys, *FEW, "--policy", ",".join(names), "--workload", "medium")
    assert list(shown) == ["policies", "setup"]
    assert list(shown["policies"]) == names
    for figures in shown["policies"].values():
        for spread in (figures["ttft_s"], figures["tbt_s"]):
            assert list(spread) == ["mean", "p50", "p90", "p99"]
            assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"]
        assert figures["completed"] == 60
        assert figures["failed"] == 0
        assert 0 < figures["idle_fraction"] < 1
        assert 0 < figures["throughput_rps"] < 4
        assert figures["longest_wait_s"] >= 0
    assert shown["policies"]["fixed-sp:8"]["sp_histogram"] == {"8": 60}
    assert shown["setup"]["instances"] == 16
    assert (shown["setup"]["source"], shown["setup"]["rate"]) == ("medium", 2.0)


def test_one_server(capsys: pytest.CaptureFixture[str]) -> None:
    form = ("--one-server", "--roles", "8p4d", "--decode-share", "0.3")
    shown = simulated(capsys, *FEW, *form, "--policy", "cdsp,loongserve-unified")
    assert shown["setup"]["decode_instances"] == 0
    assert shown["setup"]["one_server"]["decode_share"] == 0.3
    assert Counter(shown["setup"]["one_server"]["roles"]) == {"prefill": 8, "decode": 4, "both": 4}
    for figures in shown["policies"].values():
        assert (figures["completed"], figures["failed"]) == (60, 0)
        assert figures["tbt_s"]["p50"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--roles", "2p"), "--roles: only in one server"),
        (("--one-server", "--roles", "20p"), "write how many prefill and how many decode"),
        (("--one-server", "--roles", "16d"), "all 16 instances do the same"),
        (("--one-server", "--decode-share", "0.9"), "--decode-share"),
        (("--one-server", "--decode-model", "1,2"), "give three numbers of seconds"),
    ],
)
def test_forms_that_are_none(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    status, out, err = call(capsys, "simulate", *FEW, *flags)
    assert (status, out) == (2, "")
    assert said in err


def test_a_seed_fixes_every_byte(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [call(capsys, "simulate", *FEW, "--json", "--seed", s)[1] for s in ("3", "3", "4")]
    assert runs[0] == runs[1] != runs[2]


def test_the_table_has_a_line_a_policy(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "simulate", *FEW, "--policy", "cdsp,fixed-sp:16")
    assert (status, err) == (0, "")
    heads, units, cdsp, fixed = out.splitlines()
    assert heads.split()[0] == "TTFT"
    assert units.split()[:7] == ["s"] * 6 + ["req/s"]
    assert cdsp.startswith("cdsp ")
    assert fixed.startswith("fixed-sp:16 ")
    assert fixed.endswith("SP 16:60")


def test_requests_that_can_never_fit_are_counted_and_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ("simulate", *FEW, "--instances", "4", "--policy", "fixed-sp:8")
    status, out, err = call(capsys, *flags, "--json")
    figures = json.loads(out)["policies"]["fixed-sp:8"]
    assert status == 0
    assert (figures["completed"], figures["failed"]) == (0, 60)
    assert figures["ttft_s"]["p50"] is None
    assert "60 failed, the first" in err
    assert call(capsys, *flags)[0] == 0


def test_a_trace_is_replayed_at_its_speed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    trace.write_text("timestamp_s,input_tokens,output_tokens\n0,8192,1\n1000,8192,1\n2000,8192,1\n")
    flags = ("--trace", str(trace), "--policy", "fixed-sp:8")
    once = simulated(capsys, *flags)
    assert once["setup"]["rate"] == pytest.approx(1e-3)
    assert once["policies"]["fixed-sp:8"]["throughput_rps"] == pytest.approx(3 / 2000, rel=1e-3)
    fast = simulated(capsys, *flags, "--speed", "10")
    assert fast["policies"]["fixed-sp:8"]["throughput_rps"] == pytest.approx(3 / 200, rel=1e-2)
    assert simulated(capsys, *flags, "--rate", "0.01") == fast
    assert fast["policies"]["fixed-sp:8"]["tbt_s"]["p50"] is None  # one token each


def test_the_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = (*FEW, "--policy", "cdsp,fixed-sp:8", "--out", str(out), "--token-times")
    shown = simulated(capsys, *flags)
    assert sorted(path.name for path in out.iterdir()) == [
        "bench_serving.jsonl",
        "requests-cdsp.jsonl",
        "requests-fixed-sp-8.jsonl",
        "trace-cdsp.json",
        "trace-fixed-sp-8.json",
        "ttft.png",
    ]
    assert (out / "ttft.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (out / "requests-cdsp.jsonl").open()]
    report = json.loads((out / "bench_serving.jsonl").read_text().splitlines()[0])
    assert report["tag"] == "cdsp"
    assert report["input_lens"] == [line["prompt_len"] for line in lines]
    assert report["output_lens"] == [line["output_len"] for line in lines]
    assert report["ttfts"] == [line["ttft"] for line in lines]
    assert report["itls"] == [line["itl"] for line in lines]
    for line in lines:
        assert line["success"]
        assert len(line["itl"]) == line["output_len"] - 1
        assert line["latency"] == pytest.approx(line["ttft"] + sum(line["itl"]))
        assert sum(chunk["tokens"] for chunk in line["chunks"]) == line["prompt_len"]
    figures = shown["policies"]["cdsp"]
    assert report["median_ttft_ms"] == pytest.approx(figures["ttft_s"]["p50"] * 1000)
    assert report["p99_itl_ms"] == pytest.approx(figures["tbt_s"]["p99"] * 1000)
    assert report["request_throughput"] == pytest.approx(figures["throughput_rps"])


def test_without_token_times_the_files_are_small_and_say_as_much(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short, full = tmp_path / "short", tmp_path / "full"
    flags = ("--requests", "200", "--rate", "2", "--policy", "cdsp")
    simulated(capsys, *flags, "--out", str(short))
    simulated(capsys, *flags, "--out", str(full), "--token-times")
    name = "requests-cdsp.jsonl"
    assert (full / name).stat().st_size > 5 * (short / name).stat().st_size
    (summary,) = map(json.loads, (short / "bench_serving.jsonl").open())
    (details,) = map(json.loads, (full / "bench_serving.jsonl").open())
    lists = {"input_lens", "output_lens", "ttfts", "itls", "errors"}
    assert {**summary, **{key: details[key] for key in lists}} == details
    for few, all_gaps in zip((short / name).open(), (full / name).open(), strict=True):
        line = json.loads(all_gaps)
        itl = line.pop("itl")
        assert json.loads(few) == line
        if itl:
            assert line["tbt_mean"] == pytest.approx(sum(itl) / len(itl))
            assert line["tbt_max"] == max(itl)
        else:
            assert line["tbt_mean"] is line["tbt_max"] is None


def test_what_was_written_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("simulate", *FEW, "--out", str(tmp_path), "--policy", "cdsp,fixed-sp:8")
    status, out, err = call(capsys, *flags)
    assert (status, err) == (0, "")
    said = [line.split(" ", 1)[1].split(": ")[0] for line in out.splitlines()[4:]]
    assert sorted(said) == sorted(str(path) for path in tmp_path.iterdir())
    files = json.loads(call(capsys, *flags, "--json")[1])["files"]
    assert sorted(files) == sorted(said)


def test_without_matplotlib_only_the_figure_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = call(capsys, "simulate", *FEW, "--policy", "cdsp", "--out", str(tmp_path))
    assert status == 0
    assert "no ttft.png: figures need matplotlib: pip install 'sglang-cdsp[plots]'" in err
    assert err.count("\n") == 1
    assert out.splitlines()[2].startswith("cdsp ")
    assert "ttft.png" not in out
    assert len(list(tmp_path.iterdir())) == 3


def test_a_disk_that_fills_up_costs_the_files_and_not_the_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bench_serving.jsonl").symlink_to("/dev/full")
    status, out, err = call(capsys, "simulate", *FEW, "--policy", "cdsp", "--out", str(tmp_path))
    assert status == 1
    assert out.splitlines()[2].startswith("cdsp ")
    assert "No space left on device" in err
    assert err.count("\n") == 1


def test_figures_have_units(tmp_path: Path) -> None:
    drawn = []

    def keep(figure: Any, path: Path) -> None:
        drawn.append(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", keep)
        plots.run_plots(
            {"cdsp": np.array([1.0, 2.0])},
            {"cdsp": np.array([1000, 2000])},
            {"cdsp": {1: 2}},
            tmp_path / "f.png",
        )
    labels = [label for axes in drawn[0].axes for label in (axes.get_xlabel(), axes.get_ylabel())]
    assert len(labels) == 6
    assert all(re.search(r"\(.+\)$", label) for label in labels), labels


@pytest.mark.parametrize("command", ["plan", "simulate", "tune"])
def test_policy_and_improvement_rate_default_to_the_servers(command: str) -> None:
    server = CdspArgs()
    parser = argparse.ArgumentParser()
    importlib.import_module(f"sglang_cdsp.cli.{command}").add_arguments(parser)
    assert parser.get_default("policy") == server.policy == Setup().policy
    if command != "tune":
        assert float(parser.get_default("improvement_rate")) == server.improvement_rate
    if command == "plan":
        assert parser.get_default("min_chunk") == server.min_chunk == Setup().min_chunk


def test_the_chrome_trace_shows_every_chunk_and_no_instance_twice_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--requests", "200", "--rate", "4", "--policy", "cdsp")
    simulated(capsys, *flags, "--out", str(tmp_path))
    events = json.loads((tmp_path / "trace-cdsp.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "b", "e"}
    tracks: dict[int, list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["pid"] == event["tid"] // 8
            tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    assert sorted(tracks) == list(range(16))
    for spans in tracks.values():
        assert all(a[1] <= b[0] + 1e-3 for a, b in pairwise(sorted(spans)))
    lines = [json.loads(line) for line in (tmp_path / "requests-cdsp.jsonl").open()]
    chunks = sum(len(chunk["instances"]) for line in lines for chunk in line["chunks"])
    assert sum(map(len, tracks.values())) == chunks
    # Wait and prefill; transfer and decode for those with more than the first token.
    phases = sum(4 if line["output_len"] > 1 else 2 for line in lines)
    assert [sum(event["ph"] == ph for event in events) for ph in "be"] == [phases, phases]


def test_the_highest_rate_of_one_group(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # Eleven equal prompts of t seconds, one each gap, on one instance: request i = 0 ... 10 waits
    # i (t - gap). P99 lies 0.9 of the way from request 9 to request 10 and decides.
    trace = tmp_path / "trace"
    lines = [f"{i},32768,1" for i in range(11)]
    trace.write_text("\n".join(["timestamp_s,input_tokens,output_tokens", *lines]) + "\n")
    flags = ("--trace", str(trace), "--instances", "1", "--policy", "data-parallel")
    alone = simulated(capsys, *flags, "--speed", "0.001")["policies"]["data-parallel"]
    t = alone["ttft_s"]["p50"]
    found = simulated(capsys, *flags, "--find-max-rate", "--slo", "2x")["policies"]
    gap = t - t / 9.9  # 9.9 (t - gap) + t = 2 t
    assert found["data-parallel"]["max_rate_rps"] == pytest.approx(1 / gap, rel=0.02)
    assert found["data-parallel"]["ttft_s"]["p99"] <= 2 * t
    status, out, _ = call(capsys, "simulate", *flags, "--find-max-rate", "--slo", "2")
    assert status == 0
    assert f"{found['data-parallel']['max_rate_rps']:.3f}" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--policy", "cdsp,best"), "unknown policy 'best'"),
        (("--rate", "0"), "--rate is 0"),
        (("--speed", "2"), "--speed goes with --trace"),
        (("--requests", "0"), "--requests is 0"),
        (("--improvement-rate", "1.5"), "improvement rate is 1.5"),
        (("--improvement-rate", "none.json"), "none.json: neither a number"),
        (("--slo", "fast"), "'fast' is not a factor"),
        (("--instances", "0"), "instances is 0"),
        (("--sp-sizes", "32"), "need more than the 16 instances"),
        (("--find-max-rate", "--out", "x"), "--out goes without --find-max-rate"),
        (("--noise", "1e9"), "'1e9' is not from 0 to 10"),
        (("--requests", "1" * 30), "is not from"),
        (("--trace", "none.jsonl"), "none.jsonl: No such file"),
        (("--workload", "huge"), "invalid choice: 'huge'"),
        (("--latency-model", "none.json"), "none.json"),
        (("--find-max-rate", "--requests", "1"), "simulate more requests"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, "simulate", *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_auto_is_no_worse_than_a_rate_out_of_place(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--requests", "150", "--rate", "4", "--policy", "cdsp")
    auto = simulated(capsys, *flags, "--improvement-rate", "auto")["policies"]["cdsp"]
    greedy = simulated(capsys, *flags, "--improvement-rate", "0.05")["policies"]["cdsp"]
    assert auto["ttft_s"]["mean"] < greedy["ttft_s"]["mean"]
