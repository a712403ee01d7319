"""A scheduler that ends while the pool starts is noticed, and its words are found."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from sglang_cdsp.controller import launch_watch
from sglang_cdsp.controller.launch_watch import LaunchWatch
from sglang_cdsp.protocol import last_words


@dataclass
class Process:
    """A process that may end."""

    pid: int
    exitcode: int | None = None


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_watch, "LOOK_EVERY_S", 0.001)


def test_an_end_is_told_once_though_others_follow() -> None:
    first, second = Process(1), Process(2)
    started = [first]
    ended: list[int] = []
    told = threading.Event()

    def note(process: launch_watch.Started) -> None:
        ended.append(process.pid or 0)
        told.set()

    with LaunchWatch(lambda: started, note):
        started.append(second)
        second.exitcode = 1
        assert told.wait(30)
        first.exitcode = 1
    assert ended == [2]


def test_a_start_that_goes_well_tells_nothing() -> None:
    process = Process(1)
    ended: list[launch_watch.Started] = []
    with LaunchWatch(lambda: [process], ended.append):
        pass
    process.exitcode = 0
    assert ended == []


def test_the_last_words_are_found_once(tmp_path: Path) -> None:
    board = str(tmp_path / "board")
    assert last_words.find(board) == ""
    last_words.leave(board, "first")
    last_words.leave(board, "sglang-cdsp: second")
    assert last_words.find(board) == "sglang-cdsp: second"
    assert last_words.find(board) == ""
    assert list(tmp_path.iterdir()) == []
