"""The plan log, read: what stands in it, and logs that are none."""

import json
from pathlib import Path

import pytest

from sglang_cdsp.simulator.plan_log import (
    PlanLogError,
    instances_named,
    read_lines,
    read_plan_log,
)
from sglang_cdsp.simulator.types import Request
from tests.simulator.plan_logs import line, write


def test_the_log_is_read_by_arrival_from_the_first(tmp_path: Path) -> None:
    log = [
        line("late", 3.0, 0.25, 1.0, (1000, [0], 0.5, 1.0)),
        line("gone", 1.0, 0.0, None, (9, [0], 0.0, 0.1)),
        line("first", 2.0, 0.0, 2.5, (500, [1], 0.0, 0.5), (800, [1, 0], 0.5, 2.0)),
    ]
    first, late = read_plan_log(write(tmp_path / "log", log))
    assert first.request == Request("first", 0.0, 1300, 1)
    assert late.request == Request("late", 1.0, 1000, 1)
    assert (late.bound_s, late.ttft_s, late.chunk_s) == (1.25, 1.0, (0.5,))
    assert first.chunks == ((500, (1,)), (800, (1, 0)))


def test_where_a_request_was_decoded_from_when_to_when(tmp_path: Path) -> None:
    moved = line("moved", 0.0, 0.0, 2.0, (500, [1], 0.0, 2.0))
    moved |= {"output_tokens": 20, "end_s": 9.0}
    moved["moves"] = [{"from": 1, "to": 4, "left_s": 3.0, "arrived_s": 3.5, "tokens": 510}]
    stays = line("stays", 1.0, 0.0, 2.0, (500, [2], 0.0, 2.0))
    stays |= {"output_tokens": 5, "end_s": 4.0, "moves": []}
    first, second = read_plan_log(write(tmp_path / "log", [moved, stays]))
    assert first.decode_spans == ((1, (2.0, 3.0)), (4, (3.5, 9.0)))
    assert second.decode_spans == ((2, (3.0, 5.0)),)
    assert instances_named([first]) == 5


def test_what_was_computed_anew_is_left_out(tmp_path: Path) -> None:
    anew = line("anew", 0.0, 9.0, 2.0, (520, [1], 9.0, 10.0))
    anew |= {"prompt_tokens": 500, "resumed_tokens": 20}
    other = line("other", 1.0, 0.0, 2.0, (500, [2], 0.0, 2.0))
    (read,) = read_plan_log(write(tmp_path / "log", [anew, other]))
    assert read.request.rid == "other"


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"outcome": "aborted"}\n[]'])
def test_a_log_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(PlanLogError, match=str(path)):
        read_plan_log(path)
    with pytest.raises(PlanLogError, match="no-such"):
        read_plan_log(tmp_path / "no-such")


def test_its_lines_are_read_as_they_are(tmp_path: Path) -> None:
    log = [line(rid, 0.0, 0.0, None) for rid in ("b", "a")]
    assert read_lines(write(tmp_path / "log", log)) == log
    assert read_lines(write(tmp_path / "empty", ())) == []


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log", [line("a", 0.0, 0.0, None)])
    good = path.read_text()
    for bad in ("[1]", "{", json.dumps("text")):
        path.write_text(good + bad + "\n")
        with pytest.raises(PlanLogError, match=r"log: line 2: not a line of --cdsp-plan-log"):
            read_lines(path)


@pytest.mark.parametrize("shares", [(0.1, None), (0.1, 0.9), (-0.1, 0.1)])
def test_decode_shares_that_no_server_gave(
    tmp_path: Path, shares: tuple[float | None, ...]
) -> None:
    said = line("a", 0.0, 0.0, 2.0, (500, [1], 0.0, 1.0), (500, [1], 1.0, 2.0))
    for chunk, share in zip(said["chunks"], shares, strict=True):
        if share is not None:
            chunk["decode_share"] = share
    with pytest.raises(PlanLogError, match="share"):
        read_plan_log(write(tmp_path / "log", [said]))
