"""Step 5: two processes on one device, and which links work between them."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from bench.gpu.environment import nvidia_smi
from bench.gpu.link_ends import ENDS, READY, run_end
from bench.gpu.record import CheckFailed, Recorder, Skipped
from bench.gpu.target import Target

READY_S = 90.0
"""For the imports of all processes; the step's own limit on a GPU is shorter."""
PAIR_LIMIT_S = 25.0
"""For one link."""
OTHER_END_S = 10.0
"""How long an end is still waited for when the other one has failed."""


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks.

    Raises:
        Skipped: only one process may use the GPU.
    """
    mode = nvidia_smi().get("compute_mode", "Default") if target.cuda else "Default"
    if mode.startswith(("Exclusive", "Prohibited")):
        raise Skipped(f"the GPU's compute mode is {mode}: two processes cannot share it")
    # All are started at once, since imports take longest; each begins when its turn comes.
    pairs = {name: Pair(name, target) for name in ENDS}
    for name, pair in pairs.items():
        recorder.check(name, partial(judged, pair))


def judged(pair: Pair) -> dict[str, Any]:
    """Run a pair and judge its answers."""
    return both(pair.run())


Answer = tuple[bool, Any]
"""Whether an end came through, and its figures or its error."""


class Pair:
    """Two processes that are to be linked, waiting for their turn."""

    def __init__(self, name: str, target: Target) -> None:
        spawn = multiprocessing.get_context("spawn")
        ends = spawn.Pipe()
        pipes = [spawn.Pipe() for _ in range(2)]
        self._pipes = [mine for mine, _ in pipes]
        self._processes = [
            spawn.Process(
                target=run_end,
                args=(name, rank, ends[rank], pipes[rank][1], not target.cuda),
                daemon=True,
            )
            for rank in range(2)
        ]
        for process in self._processes:
            process.start()
        for pipe in (*ends, *(theirs for _, theirs in pipes)):
            pipe.close()  # so that an end that dies is the end of its pipe

    def run(self, limit_s: float = PAIR_LIMIT_S) -> list[Answer]:
        """Let both begin; return their answers and end them."""
        for pipe in self._pipes:
            # The word stays in the pipe; a dead end shows when it is read.
            with contextlib.suppress(OSError):
                pipe.poll(READY_S)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send("go")
        answers = self._answers(limit_s)
        for process in self._processes:
            process.kill()
            process.join()
        return answers

    def _answers(self, limit_s: float) -> list[Answer]:
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + limit_s
        while len(answers) < 2 and (left := deadline - time.monotonic()) > 0:
            open_pipes = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            for pipe in wait(open_pipes, timeout=left):
                rank = next(rank for rank, one in enumerate(self._pipes) if one is pipe)
                try:
                    said = self._pipes[rank].recv()
                    if said != READY:
                        answers[rank] = said
                except (EOFError, OSError):
                    answers[rank] = (False, CRASHED)
            if any(not done for done, _ in answers.values()):
                deadline = min(deadline, time.monotonic() + OTHER_END_S)
        return [answers.get(rank, (False, SILENT)) for rank in range(2)]


CRASHED = "the process ended without a word"
SILENT = "no answer in time"


def both(answers: list[Answer]) -> dict[str, Any]:
    """Figures of both ends.

    Raises:
        CheckFailed: an end did not come through.
    """
    wrong = [f"end {rank}: {words}" for rank, (done, words) in enumerate(answers) if not done]
    if wrong:
        raise CheckFailed("\n".join(wrong))
    return {name: value for _, figures in answers for name, value in figures.items()}
