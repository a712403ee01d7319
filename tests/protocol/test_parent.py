"""No process outlives the one that started it, even when that one is gone before it asks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

STARTS_A_CHILD = """
import multiprocessing, pathlib, sys, time
from sglang_cdsp.protocol.parent import end_with_parent

def child(ready, asks_after):
    pathlib.Path(ready).touch()
    while asks_after and not pathlib.Path(asks_after).exists():
        time.sleep(0.02)
    end_with_parent()
    pathlib.Path(ready + ".asked").touch()
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child, args=sys.argv[1:3])
    process.start()
    print(process.pid, flush=True)
    time.sleep(600)
"""


def eventually(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def ended(process: psutil.Process) -> bool:
    """Whether a process ends; an orphan is nobody's here to be waited for."""
    deadline = time.monotonic() + 30
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            process.kill()
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("too_late", [False, True])
def test_a_child_ends_with_its_parent(tmp_path: Path, too_late: bool) -> None:
    program, ready, go = tmp_path / "parent.py", tmp_path / "ready", tmp_path / "go"
    program.write_text(STARTS_A_CHILD)
    command = [sys.executable, str(program), str(ready), str(go) if too_late else ""]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    eventually(ready if too_late else Path(f"{ready}.asked"))
    parent.kill()
    parent.wait()  # the child holds the other end of its output
    parent.stdout.close()
    go.touch()
    assert ended(child)
