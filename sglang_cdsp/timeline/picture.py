"""A run as a PNG file. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sglang_cdsp.simulator.plots import figure, save
from sglang_cdsp.timeline.types import Request, Run, absences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES_WIDE, INCHES_A_ROW = 12.0, 0.45
COLOURS = 20
"""Of matplotlib's `tab20`; then they begin again."""
NAMED = 12
"""So many requests at most are named in the legend."""
WIDE_ENOUGH = 0.03
"""Share of the width from which on a chunk has its tokens written on it."""
PASSING_HEIGHT, HEIGHT = 0.4, 0.8


def draw(run: Run, start_s: float, end_s: float, path: Path) -> None:
    """One row an instance, chunks coloured by request; changes of plans and of seats as lines.

    Raises:
        PlotsError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    part = run.between(start_s, end_s)
    drawn, grid = figure(1)
    axes: Axes = grid[0][0]
    drawn.set_size_inches(INCHES_WIDE, 1.8 + INCHES_A_ROW * max(part.instances, 2))
    span_s = max(end_s - start_s, 1e-9)
    ran = [r for r in part.requests if r.waited_s is not None]
    for number, request in enumerate(ran):
        _draw_request(axes, request, number, span_s, named=len(ran) <= NAMED)
    for instance in range(part.instances):
        gone = [(a, b - a) for a, b in absences(part, instance, end_s)]
        axes.broken_barh(
            gone, (instance - 0.4, HEIGHT), facecolor="none", edgecolor="0.6", hatch="////"
        )
    for at_s in (change.at_s for request in part.requests for change in request.changes):
        axes.axvline(at_s, color="0.3", linewidth=0.8, linestyle=":")
    for change in part.seats:
        if change.state in ("ending", "up"):
            colour = "tab:red" if change.state == "ending" else "tab:green"
            axes.axvline(change.at_s, color=colour, linewidth=1.0)
    axes.set(
        xlim=(start_s, end_s),
        ylim=(part.instances - 0.4, -0.6),
        yticks=range(part.instances),
        xlabel="time (s); dotted: planned anew, red: an instance was lost, green: it is back",
        ylabel="instance",
    )
    axes.grid(axis="x", alpha=0.3)
    if ran and len(ran) <= NAMED:
        axes.legend(fontsize="x-small", ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.01))
    save(drawn, path)


def _draw_request(axes: Axes, request: Request, number: int, span_s: float, *, named: bool) -> None:
    label: str | None = f"{request.rid[:20]} ({request.tokens} tokens)" if named else None
    colour = f"C{number % 10}" if named else _colour(number)
    for chunk in request.chunks:
        if chunk.start_s is None or chunk.end_s is None:
            continue
        seconds = chunk.end_s - chunk.start_s
        high = PASSING_HEIGHT if request.passes else HEIGHT
        for instance in chunk.instances:
            axes.barh(
                instance,
                seconds,
                left=chunk.start_s,
                height=high,
                color=colour,
                edgecolor="white",
                linewidth=0.5,
                label=label,
                zorder=3 if request.passes else 2,
            )
            label = None
            if seconds > WIDE_ENOUGH * span_s:
                axes.annotate(
                    f"{chunk.tokens}@{chunk.sp_size}",
                    (chunk.start_s + seconds / 2, instance),
                    ha="center",
                    va="center",
                    fontsize="x-small",
                    zorder=4,
                    clip_on=True,
                )


def _colour(number: int) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["tab20"](number % COLOURS))
