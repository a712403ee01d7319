"""`python -m sglang_cdsp plan`: text, JSON, one-line errors."""

import json
from pathlib import Path

import pytest

from tests.cli.calls import call

BUSY = (
    *("plan", "--tokens", "131072", "--queue", "0*8,0.31*8", "--instances-per-node", "16"),
    *("--policy", "cdsp", "--improvement-rate", "0"),
)


def test_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, *BUSY, "--json", "--policy", "cdsp-paper")
    assert (status, err) == (0, "")
    plan = json.loads(out)
    assert list(plan) == [
        "policy",
        "ttft_s",
        "single_chunk_ttft_s",
        "reused",
        "choice",
        "chunks",
        "planning_us",
        "considered",
    ]
    assert plan["policy"] == "cdsp-paper"
    assert plan["ttft_s"] == pytest.approx(2.4993, abs=1e-3)
    assert plan["single_chunk_ttft_s"] == pytest.approx(2.5558, abs=1e-3)
    assert [list(chunk) for chunk in plan["chunks"]] == [
        ["tokens", "sp_size", "instances", "start_s", "end_s"]
    ] * 2
    assert [chunk["sp_size"] for chunk in plan["chunks"]] == [8, 16]
    assert sum(chunk["tokens"] for chunk in plan["chunks"]) == 131072
    assert plan["planning_us"] > 0
    assert sum(candidate["chosen"] for candidate in plan["considered"]) == 1
    assert all(candidate["reason"] for candidate in plan["considered"])


def test_the_text_shows_chunks_gantt_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, *BUSY)
    assert status == 0
    assert "TTFT 2.499 s (2.556 s as one chunk)" in out
    assert "    1     14848    8     0.000     0.310   0-7" in out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line[:8].strip()}
    assert set(rows["0"]) == {"1", "2"}  # idle: takes part in both chunks
    assert set(rows["15"]) == {"#", "2"}  # busy first, then the second chunk
    assert "14848@8 116224@16: chosen" in out
    assert "131072@16: 0.056 s slower than the chosen plan" in out


def test_every_flag_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from sglang_cdsp.planner import builtin_model

    builtin_model().save(tmp_path / "m.json")
    status, out, _ = call(
        capsys,
        *("plan", "--latency-model", str(tmp_path / "m.json"), "--tokens", "9000"),
        *("--queue", "0,0,0.31,0", "--history", "4096", "--history-instances", "3,1"),
        *("--sp-sizes", "1,2,3", "--instances-per-node", "2", "--free-tokens", "5000,9000*3"),
        *("--improvement-rate", "0.2", "--min-chunk", "128", "--page-size", "64"),
        *("--policy", "cdsp", "--spread-cost", "0.1", "--down", "0", "--json"),
    )
    assert status == 0
    plan = json.loads(out)
    assert plan["chunks"][0]["instances"][:2] == [3, 1]
    assert all(0 not in chunk["instances"] for chunk in plan["chunks"])


def test_a_prompt_that_must_wait(capsys: pytest.CaptureFixture[str]) -> None:
    waits = ("plan", "--tokens", "5000", "--queue", "0,0", "--free-tokens", "100")
    status, out, _ = call(capsys, *waits)
    assert status == 1
    assert "must wait" in out
    assert "can hold the KV" in out
    status, out, _ = call(capsys, *waits, "--json")
    assert status == 1
    assert json.loads(out)["ttft_s"] is None
    assert json.loads(out)["chunks"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--queue", "0"), "required: --tokens"),
        (("--tokens", "5"), "required: --queue"),
        (("--tokens", "x", "--queue", "0"), "--tokens: invalid int value: 'x'"),
        (("--tokens", "0", "--queue", "0"), "--tokens is 0"),
        (("--tokens", "5", "--queue", "0,,1"), "--queue: item 1 is ''"),
        (("--tokens", "5", "--queue", "0,nan"), "--queue: item 1 is 'nan'"),
        (("--tokens", "5", "--queue", "0,-1"), "--queue: -1 is negative"),
        (("--tokens", "5", "--queue", "0*0"), "--queue: item 0 is '0*0'"),
        (("--tokens", "5", "--queue", "0*999999999"), "--queue: more than 65536"),
        (("--tokens", "5", "--queue", "0", "--sp-sizes", "1.5"), "--sp-sizes: item 0 is 1.5"),
        (("--tokens", "5", "--queue", "0", "--sp-sizes", "2"), "--sp-sizes: [2] do not fit"),
        (("--tokens", "5", "--queue", "0", "--free-tokens", "1,2"), "--free-tokens: give one"),
        (("--tokens", "5", "--queue", "0", "--policy", "magic"), "unknown policy 'magic'"),
        (("--tokens", "5", "--queue", "0", "--improvement-rate", "1"), "improvement rate is 1.0"),
        (("--tokens", "5", "--queue", "0", "--page-size", "0"), "page size is 0"),
        (("--tokens", "5", "--queue", "0", "--min-chunk", "0"), "minimum chunk is 0"),
        (("--tokens", "5", "--queue", "0", "--instances-per-node", "0"), "instances_per_node is 0"),
        (("--tokens", "5", "--queue", "0", "--history", "7"), "disagree; give both or neither"),
        (("--tokens", "5", "--queue", "0", "--history-instances", "1"), "--history-instances: 1"),
        (("--tokens", "5", "--queue", "0", "--down", "2"), "--down: 2 is not one of the 1"),
        (("--tokens", "5", "--queue", "0", "--down", "0", "--policy", "data-parallel"), None),
        (("--tokens", "5", "--queue", "0", "--latency-model", "none.json"), "none.json: No such"),
        (("--tokens", "5", "--queue", "0", "--bogus"), "unrecognized arguments: --bogus"),
    ],
)
def test_errors_are_one_line_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str | None
) -> None:
    status, out, err = call(capsys, "plan", *arguments)
    if message is None:  # no error: there is just nowhere to run
        assert status == 1
        return
    assert (status, out) == (2, "")
    assert err.startswith("python -m sglang_cdsp plan: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_malformed_model_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    path.write_text('{"sp": {"1": {"a": 0.1}}}')
    status, _, err = call(
        capsys, "plan", "--tokens", "5", "--queue", "0", "--latency-model", str(path)
    )
    assert status == 2
    assert err.count("\n") == 1
    assert f"{path}: SP 1: coefficient b is None" in err


CACHED = ("plan", "--tokens", "40000", "--queue", "0,0,0.05,0", "--policy", "cdsp")


def test_a_plan_may_start_from_what_is_cached(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, *CACHED, "--cached", "2:32000,0:16000")
    assert status == 0
    assert "32000 cached tokens on instance 2; " in out
    assert "(32000 cached) " in out
    status, out, _ = call(capsys, *CACHED, "--cached", "2:32000", "--json")
    plan = json.loads(out)
    assert plan["reused"] == 32_000
    assert plan["chunks"][0]["instances"][0] == 2


@pytest.mark.parametrize(
    ("cached", "error"),
    [
        ("2", "'2' is no cached prefix"),
        ("9:100", "--cached: 9 is not one of the 4 instances"),
        ("2:40000", "leave at least one token"),
    ],
)
def test_cached_prefixes_that_are_none(
    capsys: pytest.CaptureFixture[str], cached: str, error: str
) -> None:
    status, _, err = call(capsys, *CACHED, "--cached", cached)
    assert status == 2
    assert error in err
