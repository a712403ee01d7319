"""A launching process with a controller and a scheduler, all real processes, without SGLang.

What the watch says is tried in `test_controller_watch.py`; here all of them end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sglang_cdsp.launch.controller_watch import LIMIT_VAR

PROGRAM = """
import logging, multiprocessing, signal, sys, time
from sglang_cdsp.launch import controller_watch
from sglang_cdsp.protocol.heartbeat import Heartbeat
from sglang_cdsp.protocol.parent import end_with_parent

def scheduler(ready):
    end_with_parent()
    ready.set()
    time.sleep(600)

def controller(ready):
    end_with_parent()
    started = context.Event()
    child = context.Process(target=scheduler, args=(started,))
    child.start()
    started.wait()
    heartbeat = Heartbeat.opened()
    heartbeat.beat()
    # Before its first beat a controller is starting, and is not watched.
    print(multiprocessing.current_process().pid, child.pid, flush=True)
    while True:
        heartbeat.beat()
        ready.set()
        time.sleep(0.02)

context = multiprocessing.get_context("spawn")

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    # A shell's background jobs inherit that it is ignored.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if sys.argv[1] == "hangs":
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        controller_watch.KILL_AFTER_S = 0.5
    controller_watch.shutting_down = lambda: False
    heartbeat = Heartbeat.create()
    heartbeat.publish()
    controller_watch.start(heartbeat, controller_watch.limit_s())
    ready = context.Event()
    context.Process(target=controller, args=(ready,)).start()
    ready.wait()
    time.sleep(600)
"""


class Server:
    """The three processes, and what the first one logs."""

    def __init__(self, folder: Path, how: str) -> None:
        program, self._log = folder / "server.py", folder / "log"
        program.write_text(PROGRAM, encoding="utf-8")
        with self._log.open("w") as log:
            self.first = subprocess.Popen(
                [sys.executable, str(program), how],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, LIMIT_VAR: "1"},
                start_new_session=True,
            )
        assert self.first.stdout is not None
        pids = [int(pid) for pid in self.first.stdout.readline().split()]
        self.controller, self.scheduler = (psutil.Process(pid) for pid in pids)

    def close(self) -> None:
        for process in (self.scheduler, self.controller):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.first.kill()
        self.first.wait()
        assert self.first.stdout is not None
        self.first.stdout.close()

    def wait(self) -> str:
        """The one line that says why, once all have ended."""
        self.first.wait(timeout=60)
        psutil.wait_procs([self.controller, self.scheduler], timeout=60)
        for process in (self.controller, self.scheduler):
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        lines = self._log.read_text(encoding="utf-8").splitlines()
        (line,) = [line for line in lines if "sglang-cdsp: " in line]
        return line


Start = Callable[[str], Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def make(how: str) -> Server:
        started.append(Server(tmp_path, how))
        return started[-1]

    yield make
    for server in started:
        server.close()


@pytest.mark.parametrize("how", ["answers", "hangs"])
def test_a_stopped_controller_ends_all(start: Start, how: str) -> None:
    """Also where the launching process does not come to its handler of SIGQUIT."""
    server = start(how)
    server.controller.suspend()
    line = server.wait()
    assert f"the pool controller (pid {server.controller.pid}) has stood still for 1 s" in line
    assert "it is stopped" in line


def test_a_killed_controller_ends_all(start: Start) -> None:
    server = start("answers")
    server.controller.kill()
    line = server.wait()
    assert f"the pool controller (pid {server.controller.pid}) was killed by signal 9" in line
    assert server.first.returncode == -signal.SIGQUIT, "what SGLang's handler would take"


def test_a_killed_launching_process_ends_all(start: Start) -> None:
    server = start("answers")
    server.controller.suspend()
    server.first.kill()
    psutil.wait_procs([server.controller, server.scheduler], timeout=60)
    for process in (server.controller, server.scheduler):
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
