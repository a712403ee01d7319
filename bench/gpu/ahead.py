"""Work that a later step would have to wait for, done beside the steps before it.

``python -m bench.gpu.ahead attention|paged|checkpoint FOLDER [--dry-run]`` does one such work.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from bench.gpu.steps import ROOT, Step
from sglang_cdsp.stack import reaper

WAIT_S = 60.0
"""For work that is not done when its step's turn comes; after that the step does it itself."""


class Ahead:
    """The works of the chosen steps, each in a background process that ends with the block."""

    def __init__(self, steps: Sequence[Step], folder: Path, dry_run: bool) -> None:
        self._steps = [step for step in steps if step.ahead]
        self._folder, self._dry_run = folder, dry_run
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Ahead:
        for step in self._steps:
            command = [sys.executable, "-m", "bench.gpu.ahead", step.ahead]
            command += [str(self._folder.resolve()), *["--dry-run"] * self._dry_run]
            with (self._folder / f"ahead-{step.ahead}.log").open("wb") as log:
                self._processes[step.number] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    start_new_session=True,
                )
        return self

    def ready_for(self, step: Step) -> None:
        """Wait for the work of ``step``, unless the step itself can wait for it better."""
        process = self._processes.get(step.number)
        if process is None or not step.ahead_ends_first:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=WAIT_S)
        self._end(process)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            reaper.kill_sessions({process.pid})
        process.wait()


def attention(folder: Path, dry_run: bool) -> None:
    """Have FlashInfer compile its kernels where they are not compiled ahead.

    A step that needs one meanwhile waits at FlashInfer's own lock.
    """
    from bench.gpu.attention import attention_cases, check_attention, usable
    from bench.gpu.target import target_for

    target = target_for(dry_run)
    for head_dim in (64, 128, 256):
        case = next(case for case in attention_cases(True) if case.head_dim == head_dim)
        for one in usable(target, head_dim):
            check_attention(target, one, case)


def paged(folder: Path, dry_run: bool) -> None:
    """The same for the kernels that read the KV pool, which servers use too."""
    from bench.gpu.paged import check_paged, kernels
    from bench.gpu.target import target_for

    target = target_for(dry_run)
    for kernel in kernels(target):
        check_paged(target, kernel, 64, 1)


def checkpoint(folder: Path, dry_run: bool) -> None:
    """Write the model that steps 7 and 8 serve."""
    from bench.gpu.serving import CHECKPOINT, IN_DRY_RUN, ON_GPU, written

    written(folder / CHECKPOINT, IN_DRY_RUN if dry_run else ON_GPU)


WORKS: dict[str, Callable[[Path, bool], None]] = {
    "attention": attention,
    "paged": paged,
    "checkpoint": checkpoint,
}


def main() -> None:
    """Do the work that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    os.nice(10)
    WORKS[options.work](options.folder, options.dry_run)


if __name__ == "__main__":
    main()
