"""The line of a log that says why its server ended."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.controller.request_log import start_line
from sglang_cdsp.serve.reason import LONGEST, how_ended, reason_in

STAMP = "[2026-11-26 22:51:14 DP0 TP0] "
TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 3, in run
    raise RuntimeError("an error stands here")
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("\n \n", ""),
        ("one\ntwo\n\n", "two"),
        (
            f"{STAMP}begin\n{TRACEBACK}{STAMP}Received sigquit from a child process. It failed.\n",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (f"{STAMP}sglang-cdsp: the controller ended\n{TRACEBACK}Killed\n", "the controller ended"),
        ("sglang-cdsp: --port 7: the port is in use\nsglang-cdsp: the second\n", "the second"),
        (
            f"sglang-cdsp: the kept latency model x is ignored: damaged\n{TRACEBACK}",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (
            "error while attempting to bind on address\nINFO: Waiting for shutdown\nbye\n",
            "error while attempting to bind on address",
        ),
    ],
)
def test_the_reason_is_found_among_complaints(log: str, reason: str) -> None:
    assert reason_in(log) == reason


def test_the_line_on_what_runs_is_no_reason() -> None:
    said = start_line(
        instances=2,
        tp_size=1,
        policy="cdsp-late",
        sp_sizes=(1, 2),
        improvement_rate=0.1,
        latency_model="measured at this start",
        links="shared-memory",
        transfer=None,
        capacity_tokens=4096,
    )
    assert reason_in(f"{STAMP}{said}\n{TRACEBACK}").startswith("torch.OutOfMemoryError")


@given(st.lists(st.sampled_from(["x", "", "Error", "sglang-cdsp: ", "sglang-cdsp: y", "E: z"])))
def test_there_is_a_reason_where_there_is_a_line(lines: list[str]) -> None:
    found = reason_in("\n".join(lines))
    assert bool(found) == any(line.strip() for line in lines)
    assert not found or any(found in line for line in lines)


@given(st.text())
def test_any_log_has_one_short_line(log: str) -> None:
    found = reason_in(log)
    assert len(found) <= LONGEST
    assert len(found.splitlines()) <= 1


def test_how_it_ended() -> None:
    assert how_ended(3) == "ended with exit status 3"
    assert how_ended(-signal.SIGTERM) == "was killed by SIGTERM"
    assert how_ended(-signal.SIGKILL).startswith("was killed by SIGKILL; ")
    assert how_ended(-200) == "was killed by signal 200"
