"""A run as text and as a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.timeline.gantt import MARKS, text
from sglang_cdsp.timeline.read import read_run
from sglang_cdsp.timeline.trace import INSTANCES, LOAD, trace, track
from sglang_cdsp.timeline.types import Chunk, Request, Run
from tests.timeline.logs import request, seat, widening, write


def drawn(tmp_path: Path, *lines: dict[str, Any], width: int = 20) -> list[str]:
    run = read_run(write(tmp_path / "log", lines))
    return text(run, 0.0, run.end_s, width).splitlines()


def bar(lines: list[str], instance: int) -> str:
    (found,) = [line for line in lines if line.startswith(f"{instance:>8}  ")]
    return found[10:]


def test_the_chart(tmp_path: Path) -> None:
    other = request("other", 0.0, (50, [1], 0.0, 1.0), ttft_s=1.0)
    lines = drawn(tmp_path, widening(), other)
    assert bar(lines, 0) == "2" * 20
    assert bar(lines, 1) == "11111" + "....." + "2" * 10
    flags = lines[lines.index(next(line for line in lines if line[:8] == f"{1:>8}")) + 1]
    assert flags[10:].index("^") == 10
    assert any("planned anew from chunk 2: 900@1 -> 900@2; 0.310 s sooner" in x for x in lines)
    assert any(x.startswith(" 2 wide") and x.endswith("600@1 900@2") for x in lines)


def test_what_passes_is_shown_over_what_it_passes(tmp_path: Path) -> None:
    passing = request("short", 1.0, (9, [0], 0.0, 1.0), ttft_s=1.0, passes=True)
    lines = drawn(tmp_path, request("long", 0.0, (90, [0], 0.0, 4.0), ttft_s=4.0), passing)
    assert bar(lines, 0) == "11111" + "22222" + "1" * 10


def test_losses_are_shown(tmp_path: Path) -> None:
    broken = request(
        "broken",
        0.0,
        (100, [0, 1], None, None),
        outcome="failed",
        error="instance 1 was\nlost",
        lost_instances=[1],
    )
    seats = (seat(1.0, 1, "ending", "killed by SIGKILL"), seat(3.0, 1, "up", life=2))
    lines = drawn(tmp_path, broken, request("r", 0.0, (9, [0], 0.0, 4.0), ttft_s=4.0), *seats)
    assert bar(lines, 1) == "....." + "x" * 10 + "....."
    assert any("instance 1 is ending (life 1): killed by SIGKILL" in line for line in lines)
    assert any("100@2 failed: instance 1 was lost" in line for line in lines)


def made(requests: list[tuple[float, float, float, list[int]]]) -> Run:
    """A run of one-chunk requests: arrival, wait, length, instances."""
    rows = tuple(
        Request(
            rid=str(n),
            tokens=5,
            policy="p",
            arrival_s=at,
            bound_s=at,
            first_token_s=at + wait + long,
            drained_s=at + wait + long,
            planned_s=at,
            chunks=(Chunk(5, tuple(group), at + wait, at + wait + long, (at, at), 0.0),),
            changes=(),
            lost=(),
            passes=False,
            outcome="finished",
            error="",
        )
        for n, (at, wait, long, group) in enumerate(requests)
    )
    return Run(rows, (), 3, 0.0)


SECONDS = st.integers(0, 500).map(lambda tenths: tenths / 10)
RUNS = st.lists(
    st.tuples(
        SECONDS,
        SECONDS,
        st.integers(1, 500).map(lambda tenths: tenths / 10),
        st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
    ),
    min_size=1,
    max_size=12,
).map(made)


@settings(deadline=None)
@given(RUNS, st.integers(1, 60))
def test_every_line_has_its_width_and_every_cell_a_meaning(run: Run, width: int) -> None:
    lines = text(run, 0.0, run.end_s, width).splitlines()
    for instance in range(3):
        cells = bar(lines, instance)
        assert len(cells) == width
        assert set(cells) <= {".", *MARKS[: len(run.requests)]}
    busy = {i for r in run.requests for i in r.chunks[0].instances}
    assert {i for i in range(3) if set(bar(lines, i)) != {"."}} == busy


@settings(deadline=None)
@given(RUNS)
def test_a_trace_has_each_chunk_once_an_instance_and_no_overlap_on_a_track(run: Run) -> None:
    events = trace(run)["traceEvents"]
    chunks = [e for e in events if e.get("cat") == "chunk"]
    assert len(chunks) == sum(len(r.chunks[0].instances) for r in run.requests)
    tracks: dict[int, list[tuple[float, float]]] = {}
    for event in chunks:
        assert event["pid"] == INSTANCES
        assert event["tid"] in {
            track(instance, lane)
            for instance in event["args"]["instances"]
            for lane in range(len(run.requests))
        }
        tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in tracks.values():
        spans.sort()
        ends = [end for _, end in spans]
        assert all(start >= end - 1.0 for end, (start, _) in zip(ends, spans[1:], strict=False))
    named = {e["tid"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert tracks.keys() <= named
    assert all(e["pid"] > 0 and e.get("tid", 1) > 0 for e in events)
    load = [e["args"] for e in events if e["pid"] == LOAD and e["ph"] == "C"]
    assert load[-1] == {"waiting": 0, "running": 0}
    begun = [e["ph"] for e in events if e.get("cat") == "request"]
    assert begun.count("b") == begun.count("e")
