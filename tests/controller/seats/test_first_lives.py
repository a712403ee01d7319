"""All seats come up together, or the start fails with the reason."""

from __future__ import annotations

import itertools
import time

import pytest

from sglang_cdsp.controller.seats import first_lives
from sglang_cdsp.controller.seats.first_lives import StartFailedError, start_all
from sglang_cdsp.controller.seats.launcher import Failing, LifeEvent, Started, Vitals
from sglang_cdsp.controller.seats.states import Cause
from tests.controller.seats.fake_seats import FakeLauncher


class Coming(FakeLauncher):
    """Lives that say something at each look."""

    def __init__(self, *looks: list[LifeEvent]) -> None:
        super().__init__()
        self.looks = list(looks)

    def poll(self) -> list[LifeEvent]:
        return self.looks.pop(0)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_lives, "POLL_S", 0.0)


def test_all_come_up() -> None:
    launcher = Coming([], [Started(1, 1, {"slots": 7})], [], [Started(0, 1, {"slots": 6})])
    assert start_all(launcher, 2) == {0: {"slots": 6}, 1: {"slots": 7}}
    assert launcher.started == [(0, 1, None), (1, 1, None)]


def test_what_a_scheduler_left_to_say_is_the_reason() -> None:
    failing = Failing(1, 1, Cause.ENDED, "process 5 ended with exit code 1: no KV", "no KV")
    with pytest.raises(StartFailedError) as failure:
        start_all(Coming([Started(0, 1)], [failing]), 2)
    assert str(failure.value) == "no KV"


def test_without_words_it_is_how_it_ended() -> None:
    failing = Failing(1, 1, Cause.ENDED, "process 5 was killed by SIGKILL")
    with pytest.raises(StartFailedError, match=r"instance 1 failed .* was killed by SIGKILL; its"):
        start_all(Coming([failing]), 2)


def test_a_stopped_process_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither greets nor ends; the start would wait for it for ever."""
    clock = itertools.count(0.0, 0.4)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    launcher = Coming([Started(0, 1)], *([] for _ in range(20)))
    launcher.stopped = {1}
    with pytest.raises(StartFailedError, match=r"instance 1 failed .* process 1001 was stopped"):
        start_all(launcher, 2)


def test_a_process_that_was_stopped_for_an_instant_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(0.0, 0.4)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    launcher = Coming([], [], [], [Started(0, 1)])
    looks = itertools.count()
    monkeypatch.setattr(
        launcher, "vitals", lambda seat: Vitals((0,), (77,) if next(looks) == 1 else ())
    )
    assert start_all(launcher, 1) == {0: {}}
