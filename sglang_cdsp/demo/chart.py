"""The run of a burst as a chart on the terminal, a picture and a trace."""

import json
import shutil
from pathlib import Path

from sglang_cdsp.simulator.plots import PlotsError
from sglang_cdsp.timeline.gantt import text
from sglang_cdsp.timeline.picture import draw
from sglang_cdsp.timeline.read import read_run
from sglang_cdsp.timeline.trace import trace
from sglang_cdsp.timeline.types import Run

BESIDE = 12
"""Characters beside an instance's line."""
LEAST_WIDTH, MOST_WIDTH = 40, 120


def show_chart(plan_log: Path, directory: Path, prefix: str) -> list[str]:
    """Draw the requests whose id begins with ``prefix``.

    Args:
        plan_log: of the run.
        directory: where ``timeline.png`` and ``timeline.json`` go.

    Returns:
        Lines to print: the chart, and where the files are.
    """
    run = read_run(plan_log)
    mine = [request for request in run.requests if request.rid.startswith(prefix)]
    start_s = min(request.arrival_s for request in mine)
    part = run.between(start_s, run.end_s)
    width = min(max(shutil.get_terminal_size().columns - BESIDE, LEAST_WIDTH), MOST_WIDTH)
    written = directory / "timeline.json"
    written.write_text(json.dumps(trace(part)), encoding="utf-8")
    return [
        text(run, start_s, run.end_s, width),
        "",
        f"trace: {written} (open it at https://ui.perfetto.dev)",
        *_picture(run, start_s, directory / "timeline.png"),
    ]


def _picture(run: Run, start_s: float, path: Path) -> list[str]:
    """Draw it where matplotlib is installed."""
    try:
        draw(run, start_s, run.end_s, path)
    except PlotsError as error:
        return [f"no picture: {error}"]
    return [f"picture: {path}"]
