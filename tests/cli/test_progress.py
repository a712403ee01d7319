"""Progress off a terminal: now and then a line, none for what is quick."""

import io

from sglang_cdsp.cli.progress import LINE_EVERY_S, Progress, over


class Terminal(io.StringIO):
    """Takes what is written, and is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that the test decides."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_every_so_often_with_what_is_left() -> None:
    clock, log = Clock(), io.StringIO()
    with Progress("runs", 40, file=log, clock=clock) as progress:
        for _ in range(10):
            clock.now_s += LINE_EVERY_S / 4
            progress.update()
        assert progress.done == 10
    lines = log.getvalue().splitlines()
    assert lines == [
        "runs: 4 of 40 done in 20 s, about 180 s left",
        "runs: 8 of 40 done in 40 s, about 160 s left",
    ]


def test_without_a_total_it_counts() -> None:
    clock, log = Clock(), io.StringIO()
    progress = Progress("bisecting", file=log, clock=clock)
    clock.now_s += LINE_EVERY_S
    progress.update(3)
    assert log.getvalue() == "bisecting: 3 done in 20 s\n"


def test_what_is_quick_says_nothing(capsys: object) -> None:
    log = io.StringIO()
    with Progress("runs", 2, file=log) as progress:
        progress.update()
    assert log.getvalue() == ""
    assert list(over(iter("abc"), "letters", 3)) == ["a", "b", "c"]


def test_on_a_terminal_it_is_a_bar_that_vanishes() -> None:
    terminal = Terminal()
    with Progress("runs [of all]", 3, file=terminal) as progress:
        progress.update(2)
    shown = terminal.getvalue()
    assert "runs [of all]" in shown
    assert "2/3" in shown
    assert shown.endswith("\x1b[2K"), "the bar's line is erased at its end"


def test_a_bar_without_a_total_counts() -> None:
    terminal = Terminal()
    assert list(over(iter("abc"), "letters")) == ["a", "b", "c"]
    with Progress("letters", file=terminal) as progress:
        progress.update(3)
    assert "3/?" in terminal.getvalue()
