"""`python -m sglang_cdsp timeline` through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.calls import call
from tests.timeline.logs import widening, write


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(write(tmp_path / "plans.jsonl", [widening()]))


def test_a_chart_is_printed(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "timeline", log, "--width", "40")
    assert (status, err) == (0, "")
    assert f"       0  {'1' * 40}" in out
    assert f"       1  {'.' * 20}{'1' * 20}" in out


def test_a_part_is_drawn(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    for span in (("--from", "2", "--to", "3"), ("--from", "-2")):
        _, out, _ = call(capsys, "timeline", log, *span, "--width", "40")
        assert f"       1  {'1' * 40}" in out


def test_a_trace_and_a_picture_are_written(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, picture = tmp_path / "deep" / "trace.json", tmp_path / "picture.png"
    status, out, err = call(capsys, "timeline", log, "--trace", str(trace), "--png", str(picture))
    assert (status, err) == (0, "")
    assert out.count("wrote ") == 2
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"wide", "planned anew"} <= names
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags",
    [
        ("--from", "9"),
        ("--from", "nan"),
        ("--to", "x"),
        ("--width", "0"),
        ("--trace", "/proc/nobody/trace.json"),
        ("--png", "/proc/nobody/picture.png"),
    ],
)
def test_wrong_flags_get_one_line(
    log: str, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    status, out, err = call(capsys, "timeline", log, *flags)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1


def test_what_is_no_plan_log_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("import this\n")
    for path in (file, tmp_path / "nothing", tmp_path):
        status, out, err = call(capsys, "timeline", str(path))
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert "--cdsp-plan-log" in err
