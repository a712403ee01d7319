"""Steps that end in every way, for the runner's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu.record import CheckFailed, Recorder, Skipped
from bench.gpu.target import Target

WAY = "CDSP_TEST_STEP"


def run(target: Target, recorder: Recorder) -> None:
    """Do what the environment asks for."""
    recorder.check("first", lambda: {"device": str(target.device)})
    way = os.environ[WAY]
    if way == "fails":
        recorder.check("second", wrong)
        recorder.check("third", dict)
    elif way == "raises":
        raise RuntimeError("outside of a check")
    elif way == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "skips":
        raise Skipped("there is only one\nof them")
    elif way == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (recorder.folder / "child").write_text(str(child.pid))
        time.sleep(600)


def wrong() -> None:
    """A check that does not hold."""
    raise CheckFailed("3 is not 4")


def alive(pid_file: Path) -> bool:
    """Whether the process that a file names still runs; one that nobody has reaped does not."""
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
