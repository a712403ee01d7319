"""A run as a picture: where chunks lie in their rows, and that a file comes of it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.timeline.picture import ENDS, HEIGHT, NAMED, Bar, draw, in_row
from sglang_cdsp.timeline.read import read_run
from tests.timeline.logs import request, seat, widening, write

BARS = st.lists(
    st.builds(
        lambda number, start, length, passes: Bar(number, start, start + length, "1@1", passes),
        st.integers(0, 30),
        st.integers(0, 40),
        st.integers(1, 20),
        st.booleans(),
    ),
    max_size=15,
)


@given(BARS)
def test_each_bar_lies_in_its_row_and_over_none_but_what_it_passes(bars: list[Bar]) -> None:
    placed = in_row(bars)
    assert sorted(map(repr, (p.bar for p in placed))) == sorted(map(repr, bars))
    for one in placed:
        assert abs(one.middle) + one.height / 2 <= HEIGHT / 2 + 1e-9
    for one, other in combinations([p for p in placed if not p.bar.passes], 2):
        first_s = max(one.bar.start_s, other.bar.start_s)
        last_s = min(one.bar.end_s, other.bar.end_s)
        shorter_s = min(p.bar.end_s - p.bar.start_s for p in (one, other))
        at_once = last_s - first_s > ENDS * shorter_s
        apart = abs(one.middle - other.middle) >= (one.height + other.height) / 2 - 1e-9
        assert not at_once or apart


def test_a_chunk_that_runs_alone_has_its_whole_row() -> None:
    bars = [Bar(0, 0.0, 1.0, "1@1", False), Bar(1, 1.0, 2.0, "1@1", False)]
    assert {(p.middle, p.height) for p in in_row(bars)} == {(0.0, HEIGHT)}


def test_ends_may_lie_over_each_other() -> None:
    bars = [Bar(0, 0.0, 1.05, "1@2", False), Bar(1, 1.0, 2.0, "1@1", False)]
    assert {(p.middle, p.height) for p in in_row(bars)} == {(0.0, HEIGHT)}


def test_pictures_of_few_and_of_many_requests(tmp_path: Path) -> None:
    few = [widening(), seat(1.0, 1, "ending", "killed"), seat(2.0, 1, "up", life=2)]
    many = [
        request(f"r{n}", n / 10, (100, [n % 3], 0.0, 0.5), ttft_s=0.5) for n in range(NAMED + 1)
    ]
    for name, lines in (("few", few), ("many", many)):
        run = read_run(write(tmp_path / name, lines))
        draw(run, 0.0, run.end_s, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_moment_without_requests_can_be_drawn(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "log", [request("never ran", 0.0, outcome="failed")]))
    draw(run, 0.0, run.end_s, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()
