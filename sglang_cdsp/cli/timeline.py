"""``python -m sglang_cdsp timeline``: draw what a server did, from its plan log.

Rows are instances, chunks are marked or coloured by request. Files that the log was rotated into
are read, too. Where prompts passed others, the times of both overlap.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

from sglang_cdsp.cli.outputs import OutputError, check_file, unwritable
from sglang_cdsp.cli.parser import integer
from sglang_cdsp.simulator.plots import PlotsError
from sglang_cdsp.timeline.gantt import text
from sglang_cdsp.timeline.picture import draw
from sglang_cdsp.timeline.read import TimelineError, read_run
from sglang_cdsp.timeline.trace import trace
from sglang_cdsp.timeline.types import Run

LEAST_WIDTH, MOST_WIDTH = 20, 1000
BESIDE = 12
"""Characters beside an instance's line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("plan_log", type=Path, metavar="PLANLOG", help="what --cdsp-plan-log wrote")
    add("--trace", type=Path, metavar="FILE", help="write a trace for https://ui.perfetto.dev")
    add("--png", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
    add(
        "--from",
        dest="start",
        type=float,
        metavar="S",
        help="draw from this second on; -60: the last minute (default: the log's first moment)",
    )
    add("--to", dest="end", type=float, metavar="S", help="draw up to this second")
    add(
        "--width",
        type=integer(LEAST_WIDTH, MOST_WIDTH),
        metavar="N",
        help="characters of an instance's line (default: what fits the terminal)",
    )


def run(options: argparse.Namespace) -> int:
    """Draws the log; exit status 2 if it or a flag is wrong, 1 if a file cannot be written."""
    try:
        found = read_run(options.plan_log)
        start_s, end_s = _span(options, found)
        check_file(options.trace, "--trace")
        check_file(options.png, "--png")
        if options.png:
            draw(found, start_s, end_s, options.png)
            print(f"wrote {options.png}: a row an instance, chunks by request")
        if options.trace:
            part = found.between(start_s, end_s)
            options.trace.write_text(json.dumps(trace(part)), encoding="utf-8")
            print(f"wrote {options.trace}: open it at https://ui.perfetto.dev")
    except OSError as error:
        flag, path = ("--trace", options.trace) if options.trace else ("--png", options.png)
        _say(unwritable(path, flag, error))
        return 1
    except (TimelineError, OutputError, PlotsError) as error:
        _say(error)
        return 2
    if not options.png and not options.trace:
        width = options.width or max(shutil.get_terminal_size().columns - BESIDE, LEAST_WIDTH)
        print(text(found, start_s, end_s, min(width, MOST_WIDTH)))
    return 0


def _span(options: argparse.Namespace, found: Run) -> tuple[float, float]:
    """What is to be drawn, in seconds; a negative ``--from`` counts from the end."""
    for flag, value in (("--from", options.start), ("--to", options.end)):
        if value is not None and not math.isfinite(value):
            raise TimelineError(f"{flag} is {value:g}; give seconds")
    end_s = found.end_s if options.end is None else min(options.end, found.end_s)
    start_s = 0.0 if options.start is None else options.start
    if start_s < 0:
        start_s = max(end_s + start_s, 0.0)
    if start_s > end_s:
        raise TimelineError(
            f"--from {start_s:g} to {end_s:g} is no span of time; the log has 0 to "
            f"{found.end_s:.3f} s"
        )
    return start_s, end_s


def _say(message: object) -> None:
    print(f"python -m sglang_cdsp timeline: {message}", file=sys.stderr)
