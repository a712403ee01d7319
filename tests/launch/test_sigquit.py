"""What is started with SIGQUIT blocked has it blocked from the start; who starts it has not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from sglang_cdsp.launch.sigquit import with_sigquit_blocked

SCRIPT = "import signal; print(signal.SIGQUIT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"


def blocked_here() -> bool:
    return signal.SIGQUIT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_that_is_launched_inherits_it() -> None:
    before = blocked_here()

    def launch(kind: str, *, script: str) -> str:
        assert kind == "controller"
        command = [sys.executable, "-c", script]
        # As multiprocessing starts processes: the mask stays as it is.
        return subprocess.run(
            command, capture_output=True, text=True, check=True, restore_signals=False
        ).stdout

    assert with_sigquit_blocked(launch, "controller", script=SCRIPT) == "True\n"
    assert blocked_here() is before


def test_a_launch_that_fails_leaves_it_as_it_was() -> None:
    before = blocked_here()

    def launch() -> None:
        raise RuntimeError("for a test")

    with pytest.raises(RuntimeError, match="for a test"):
        with_sigquit_blocked(launch)
    assert blocked_here() is before
