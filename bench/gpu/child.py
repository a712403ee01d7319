"""Runs one step in this process: ``python -m bench.gpu.child MODULE RESULT [--dry-run]``.

Exit status 0 if all checks held, 1 if not, 3 if the step cannot run here (its reason is then the
only line of ``RESULT.skipped``).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

from bench.gpu.record import Recorder, Skipped

SKIPPED = 3


def skip_file(result: Path) -> Path:
    """Where the reason of a skipped step goes."""
    return result.with_suffix(".skipped")


def main() -> int:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("result", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()

    from bench.gpu.target import target_for  # imports torch: its failure is the step's

    target = target_for(options.dry_run)
    if not target.cuda:
        import torch

        torch.set_num_threads(max(1, min(4, os.cpu_count() or 1)))
    recorder = Recorder(options.result, lambda line: print(line, flush=True))
    try:
        importlib.import_module(options.module).run(target, recorder)
    except Skipped as reason:
        skip_file(options.result).write_text(" ".join(str(reason).split()) + "\n")
        return SKIPPED
    return 0 if recorder.checks and all(check.ok for check in recorder.checks) else 1


if __name__ == "__main__":
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # some libraries hang or crash when they are taken down
