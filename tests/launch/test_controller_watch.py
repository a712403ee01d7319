"""Dead, stuck and stopped on purpose are told apart; times are a fake clock's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.entrypoints import http_server
from sglang.srt.utils.watchdog import SubprocessWatchdog

from sglang_cdsp.args import CdspConfigError
from sglang_cdsp.launch.controller_watch import (
    LIMIT_S,
    LIMIT_VAR,
    LOOK_EVERY_S,
    MOST_A_LOOK_S,
    ControllerWatch,
    Silence,
    how_ended,
    is_stopped,
    kill_all,
    limit_s,
    problems,
    shutting_down,
)
from sglang_cdsp.protocol.heartbeat import Heartbeat


class Controller:
    """A controller whose turns, end and stops a test decides; it beats as this process."""

    def __init__(self, limit_s: float = 10.0) -> None:
        self.now_s = time.monotonic()
        self.heartbeat = Heartbeat.create()
        self.end = ""
        self.stopped = False
        self._watch = ControllerWatch(
            self.heartbeat,
            limit_s,
            clock=lambda: self.now_s,
            ended=lambda pid: self.end if pid == os.getpid() else "is somebody else",
            stopped=lambda pid: self.stopped,
        )

    def look(self, after_s: float = LOOK_EVERY_S) -> str:
        self.now_s += after_s
        return self._watch.look()

    def silence(self, seconds: float) -> list[str]:
        """What the watch says at its looks meanwhile."""
        return [self.look() for _ in range(round(seconds / LOOK_EVERY_S))]


def test_a_pool_that_starts_may_take_its_time() -> None:
    controller = Controller()
    controller.end = "was killed by signal 9"
    assert not any(controller.silence(600.0))


def test_a_loop_that_comes_round_is_left_alone() -> None:
    controller = Controller()
    for _ in range(100):
        controller.heartbeat.beat()
        assert not any(controller.silence(9.0))


@pytest.mark.parametrize(("stopped", "state"), [(True, "it is stopped"), (False, "its loop hangs")])
def test_a_loop_that_stands_still_ends_the_server(stopped: bool, state: str) -> None:
    controller = Controller()
    controller.stopped = stopped
    controller.heartbeat.beat()
    controller.look()
    said = controller.silence(20.0)
    first = next(index for index, text in enumerate(said) if text)
    assert first * LOOK_EVERY_S == pytest.approx(10.0, abs=2 * LOOK_EVERY_S)
    assert f"(pid {os.getpid()}) has stood still for 10 s, {state}" in said[first]
    assert "/cdsp/announce_stop" in said[first], "the remedy"
    assert "\n" not in said[first]


def test_a_dead_controller_ends_the_server_at_once() -> None:
    controller = Controller()
    controller.heartbeat.beat()
    assert controller.look() == ""
    controller.heartbeat.excuse(100.0)
    controller.end = "was killed by signal 9"
    assert "was killed by signal 9; the server ends with it" in controller.look()


def test_an_announced_stop_does_not_count() -> None:
    controller = Controller()
    controller.heartbeat.beat()
    controller.heartbeat.excuse(60.0)
    assert not any(controller.silence(59.0))
    assert not any(controller.silence(9.0)), "it has the whole limit after the announced time"
    assert any(controller.silence(3.0))


def test_the_announced_end_of_a_stop_counts() -> None:
    controller = Controller()
    controller.heartbeat.beat()
    controller.heartbeat.excuse(3600.0)
    assert not any(controller.silence(60.0))
    controller.heartbeat.excuse(0.0)
    assert not any(controller.silence(9.0))
    assert any(controller.silence(3.0))


def test_time_in_which_the_launching_process_was_stopped_does_not_count() -> None:
    controller = Controller()
    controller.heartbeat.beat()
    controller.look()
    assert controller.look(after_s=3600.0) == ""
    assert not any(controller.silence(9.0))
    assert any(controller.silence(2.0))


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 1000.0)), max_size=50))
def test_silence_is_never_longer_than_what_was_watched(looks: list[tuple[bool, float]]) -> None:
    now_s, beats = 0.0, 0
    since_beat: list[float] = []
    silence = Silence(lambda: now_s)
    for beat, after_s in looks:
        now_s += after_s
        beats += beat
        since_beat = [] if beat else [*since_beat, after_s]
        silent_s = silence.read(beats, excused_until_s=-1.0)
        assert silent_s == pytest.approx(sum(min(s, MOST_A_LOOK_S) for s in since_beat))


# -- real processes -----------------------------------------------------------------------


def test_how_a_child_ended_is_read_without_taking_it_away() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input(); raise SystemExit(3)"], stdin=-1)
    assert how_ended(child.pid) == ""
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert is_stopped(child.pid)
    assert how_ended(child.pid) == ""
    child.send_signal(signal.SIGCONT)
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert how_ended(child.pid) == "ended with exit code 3"
    assert child.wait() == 3, "its parent still learns of it"
    assert how_ended(child.pid) == "has ended"
    assert not is_stopped(child.pid)
    child.stdin.close()


def test_a_killed_child_is_told_from_one_that_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert how_ended(child.pid) == "was killed by signal 9"
    child.communicate()


# -- an orderly end -----------------------------------------------------------------------


class Loop:
    def __init__(self, running: bool) -> None:
        self.is_running = lambda: running


def test_processes_that_end_with_the_first_one_killed_do_not_stop_the_killing() -> None:
    """The scheduler's parent-death signal may be faster than the loop."""
    processes = [subprocess.Popen([sys.executable, "-c", "input()"]) for _ in range(2)]
    found = [psutil.Process(process.pid) for process in processes]
    processes[0].kill()
    processes[0].wait()
    kill_all(found)
    assert processes[1].wait(timeout=60) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("told_to_stop", "loop", "orderly"),
    [
        (False, Loop(running=True), False),
        (False, None, False),  # no request has come yet
        (True, Loop(running=True), True),
        (False, Loop(running=False), True),
    ],
)
def test_an_orderly_end_is_no_fault(
    told_to_stop: bool, loop: Loop | None, orderly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = SubprocessWatchdog([])
    if told_to_stop:
        watchdog.stop()
    manager = SimpleNamespace(_subprocess_watchdog=watchdog, event_loop=loop)
    state = SimpleNamespace(tokenizer_manager=manager)
    monkeypatch.setattr(http_server, "get_global_state", lambda: state)
    assert shutting_down() is orderly


def test_a_server_that_starts_is_not_ending() -> None:
    assert http_server.get_global_state() is None
    assert shutting_down() is False


# -- the variable -------------------------------------------------------------------------


def test_the_limit_is_ten_seconds_or_what_the_variable_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LIMIT_VAR, raising=False)
    assert limit_s() == LIMIT_S == 10.0
    monkeypatch.setenv(LIMIT_VAR, "2.5")
    assert limit_s() == 2.5
    assert problems() == []


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_another_limit_is_refused_before_the_start(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VAR, text)
    with pytest.raises(CdspConfigError):
        limit_s()
    (line,) = problems()
    assert LIMIT_VAR in line
    assert "give one above 0" in line
