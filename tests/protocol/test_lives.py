"""Which processes belong to a life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from sglang_cdsp.protocol import lives
from sglang_cdsp.protocol.lives import Life, this_life

LIFE = Life("a-test", 3, 2, 1000)
LIMIT_S = 60.0


def test_a_scheduler_knows_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lives.ENV_VAR, LIFE.mark)
    assert this_life() == LIFE
    monkeypatch.delenv(lives.ENV_VAR)
    with pytest.raises(RuntimeError, match="--cdsp --dp-size"):
        this_life()


def test_members_are_found_by_their_mark_while_they_can_run() -> None:
    command = [sys.executable, "-c", "input()"]
    environment = {**os.environ, lives.ENV_VAR: LIFE.mark}
    other = {**os.environ, lives.ENV_VAR: Life("a-test", 3, 20, 1000).mark}
    member, stranger = (
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, start_new_session=True)
        for env in (environment, other)
    )
    try:
        assert lives.members(LIFE) == [member.pid]
        member.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + LIMIT_S
        while not lives.stopped(member.pid):
            assert time.monotonic() < deadline
        member.kill()
        os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)
        assert lives.members(LIFE) == [], "a zombie writes nothing"
        assert not lives.stopped(member.pid)
    finally:
        for process in (member, stranger):
            process.kill()
            process.communicate()
    assert not lives.stopped(member.pid)
