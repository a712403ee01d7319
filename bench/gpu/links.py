"""Step 5: two processes on one device, and which links work between them.

NCCL is expected to refuse two ranks on one device; either way is recorded.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.gpu.environment import nvidia_smi
from bench.gpu.link_ends import ENDS, run_end
from bench.gpu.record import CheckFailed, Recorder, Skipped
from bench.gpu.target import Target
from sglang_cdsp.testing.processes import free_ports

PAIR_LIMIT_S = 30.0


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks.

    Raises:
        Skipped: only one process may use the GPU.
    """
    mode = nvidia_smi().get("compute_mode", "Default") if target.cuda else "Default"
    if mode not in ("Default", "unknown", "[N/A]"):
        raise Skipped(f"the GPU's compute mode is {mode}: two processes cannot share it")
    for name in ENDS:
        judge = nccl if name == "NCCL" else both
        recorder.check(name, lambda name=name, judge=judge: judge(target, pair(target, name)))


def pair(target: Target, name: str, limit_s: float = PAIR_LIMIT_S) -> list[tuple[bool, Any]]:
    """Run both ends of a link in processes of their own.

    Returns:
        Each end's answer: whether it came through, and its figures or its error.
    """
    spawn = multiprocessing.get_context("spawn")
    ends = spawn.Pipe()
    reports = [spawn.Pipe(duplex=False) for _ in range(2)]
    (port,) = free_ports(1)
    processes = [
        spawn.Process(
            target=run_end,
            args=(name, rank, ends[rank], reports[rank][1], port, not target.cuda),
            daemon=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    answers = _answers([reader for reader, _ in reports], limit_s)
    for process in processes:
        process.join(timeout=2)
        process.kill()
        process.join()
    return answers


def _answers(readers: list[Connection], limit_s: float) -> list[tuple[bool, Any]]:
    """What each end reports, or that it did not in time."""
    late = (False, f"no answer within {limit_s:g} s")
    answers: list[tuple[bool, Any]] = [late, late]
    deadline = time.monotonic() + limit_s
    waiting = dict(enumerate(readers))
    while waiting and (left := deadline - time.monotonic()) > 0:
        for reader in wait(list(waiting.values()), timeout=left):
            rank = next(rank for rank, one in waiting.items() if one is reader)
            del waiting[rank]
            try:
                answers[rank] = readers[rank].recv()
            except EOFError:
                answers[rank] = (False, "the process ended without a word")
        if any(not done for done, _ in answers if (done, _) != late):
            deadline = min(deadline, time.monotonic() + 5)  # the other end waits in vain
    return answers


def both(target: Target, answers: list[tuple[bool, Any]]) -> dict[str, Any]:
    """Figures of both ends.

    Raises:
        CheckFailed: an end did not come through.
    """
    wrong = [f"end {rank}: {words}" for rank, (done, words) in enumerate(answers) if not done]
    if wrong:
        raise CheckFailed("\n".join(wrong))
    return {name: value for _, figures in answers for name, value in figures.items()}


def nccl(target: Target, answers: list[tuple[bool, Any]]) -> dict[str, Any]:
    """Whether NCCL took two ranks on one device; a refusal is what is expected.

    Raises:
        CheckFailed: no clear answer.
    """
    if all(done for done, _ in answers):
        return {"two ranks on one device": "accepted", **both(target, answers)}
    words = "; ".join(str(words) for done, words in answers if not done)
    if "no answer" in words or "without a word" in words:
        raise CheckFailed(f"NCCL neither refused nor worked: {words}")
    return {"two ranks on one device": "refused, as expected", "said": words.splitlines()[-1]}


__all__ = ["both", "nccl", "pair", "run"]
