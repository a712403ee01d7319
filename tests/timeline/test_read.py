"""Plan logs as they are read for a timeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_cdsp.controller.plan_log import record
from sglang_cdsp.timeline.read import TimelineError, read_run
from sglang_cdsp.timeline.types import absences
from tests.controller.ended import finished
from tests.timeline.logs import UNIX_S, request, seat, widening, write


def test_times_count_from_the_first_moment(tmp_path: Path) -> None:
    late = request("late", 3.0, (100, [2], 0.5, 1.0), ttft_s=1.0)
    run = read_run(write(tmp_path / "log", [late, widening(), seat(1.0, 3, "ending", "killed")]))
    assert [r.rid for r in run.requests] == ["wide", "late"]
    wide, late_one = run.requests
    assert [(c.tokens, c.instances, c.start_s, c.end_s) for c in wide.chunks] == [
        (600, (0,), 0.0, 2.0),
        (900, (0, 1), 2.0, 4.0),
    ]
    assert (late_one.waited_s, late_one.ttft_s) == (0.5, 1.0)
    assert wide.changes[0].before == ((900, 1),)
    assert wide.changes[0].after == ((900, 2),)
    assert (run.instances, run.end_s, run.unix_s) == (4, 4.0, UNIX_S)


def test_what_the_server_writes_is_read(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "log", [record(finished(), unix_offset_s=1e9)]))
    (read,) = run.requests
    assert (read.tokens, read.ttft_s, read.outcome) == (100, 4.5, "finished")
    assert read.waited_s == 1.5


def test_rotated_files_are_read_too(tmp_path: Path) -> None:
    first, second, third = (
        request(rid, at, (10, [0], 0.0, 0.5)) for rid, at in zip("abc", (0, 1, 2), strict=False)
    )
    log = write(tmp_path / "log", [third])
    write(tmp_path / "log.1", [second])
    write(tmp_path / "log.2", [first])
    (tmp_path / "log.old").write_text("not of it")
    assert [r.rid for r in read_run(log).requests] == ["a", "b", "c"]
    assert [r.rid for r in read_run(tmp_path / "log.1").requests] == ["b"]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / "log", [widening()])
    log.write_text(log.read_text() + json.dumps(widening())[:50])
    assert len(read_run(log).requests) == 1


def test_runs_of_several_starts_of_a_machine_follow_each_other(tmp_path: Path) -> None:
    before = request("before", 0.0, (10, [0], 0.0, 1.0))
    after = request("after", 100.0, (10, [0], 0.0, 1.0))
    after["arrival_s"] = 3.0
    run = read_run(write(tmp_path / "log", [after, before]))
    assert [(r.rid, r.arrival_s) for r in run.requests] == [("before", 0.0), ("after", 100.0)]


def test_absences(tmp_path: Path) -> None:
    lines = [
        seat(1.0, 0, "ending"),
        seat(1.5, 0, "down"),
        seat(2.0, 0, "starting", life=2),
        seat(4.0, 0, "up", life=2),
        seat(5.0, 0, "draining", life=2),
        seat(6.0, 0, "ending", life=2),
        request("of a server that was started anew", 8.0, (10, [0], 0.0, 1.0)),
    ]
    run = read_run(write(tmp_path / "log", lines))
    assert absences(run, 0, 8.0) == [(0.0, 3.0), (5.0, 7.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no request has ended yet"),
        ("hello\nworld\n", "line 1"),
        ('{"a": 1}\n', "no 'arrival_s'"),
        ("[1]\n", "not an object"),
        (json.dumps({**widening(), "arrival_s": "x"}) + "\n", "seconds"),
        (json.dumps(request("r", 0.0, (1, [-4], 0.0, 1.0))) + "\n", "instance"),
        (json.dumps(request("r", 0.0, (1, [], 0.0, 1.0))) + "\n", "without instances"),
    ],
)
def test_what_is_no_plan_log_is_told(tmp_path: Path, text: str, says: str) -> None:
    log = tmp_path / "log"
    log.write_text(text, encoding="utf-8")
    with pytest.raises(TimelineError) as told:
        read_run(log)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\n")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "binary"):
        with pytest.raises(TimelineError, match="--cdsp-plan-log"):
            read_run(path)
