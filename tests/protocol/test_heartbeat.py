"""One process beats, another one counts."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from sglang_cdsp.protocol.heartbeat import ENV_VAR, LONGEST_STOP_S, Heartbeat


def beat_in_another_process(times: int) -> None:
    heartbeat = Heartbeat.opened()
    for _ in range(times):
        heartbeat.beat()


def test_another_process_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat.create()
    monkeypatch.setenv(ENV_VAR, "")  # so that it is taken back
    heartbeat.publish()
    assert (heartbeat.pid, heartbeat.beats) == (0, 0)
    process = multiprocessing.get_context("spawn").Process(
        target=beat_in_another_process, args=(1000,)
    )
    process.start()
    pid = process.pid
    process.join()
    assert process.exitcode == 0
    assert (heartbeat.pid, heartbeat.beats) == (pid, 1000)


def test_without_a_launching_process_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_VAR, raising=False)
    with pytest.raises(RuntimeError, match="start a server with --cdsp"):
        Heartbeat.opened()


def test_a_stop_is_announced_and_taken_back() -> None:
    heartbeat = Heartbeat.create()
    assert heartbeat.excused_until_s < time.monotonic()
    before_s = time.monotonic()
    heartbeat.excuse(60.0)
    assert before_s + 60.0 <= heartbeat.excused_until_s <= time.monotonic() + 60.0
    assert (heartbeat.pid, heartbeat.beats) == (0, 0)
    heartbeat.excuse(0)
    assert heartbeat.excused_until_s < time.monotonic()
    heartbeat.beat()
    assert heartbeat.pid == os.getpid()


@pytest.mark.parametrize("seconds", [-1.0, LONGEST_STOP_S + 1, float("nan"), float("inf")])
def test_no_stop_lasts_for_ever(seconds: float) -> None:
    with pytest.raises(ValueError, match="0 to 86400 seconds"):
        Heartbeat.create().excuse(seconds)
