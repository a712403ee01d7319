"""A run as a PNG file. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_cdsp.simulator.plots import figure, save
from sglang_cdsp.timeline.types import Chunk, Request, Run, absences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES_WIDE, INCHES_A_ROW, INCHES_A_LINE = 12.0, 0.45, 0.2
NAMED, NAMES_A_LINE = 20, 4
"""So many requests at most are named in the legend; matplotlib's `tab20` has as many colours."""
WIDE_ENOUGH = 0.03
"""Share of the width from which on a chunk has an edge, and its tokens written on it."""
PASSING_HEIGHT, HEIGHT = 0.4, 0.8
SHORTEST_S = 1e-3
"""A single moment is drawn as wide as this."""
ENDS = 0.1
"""Share of the shorter of two chunks that may lie under the other."""
DARK = 0.5
"""Luminance below which what is written on a colour is white."""
KEY = (
    "time (s); chunks as tokens@SP size; hatched: absent, dotted: planned anew, "
    "red: an instance was lost, green: it is back"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A chunk on one instance's row.

    Attributes:
        request: its number among those that ran.
        start_s, end_s: when it ran.
        words: its tokens and SP size.
        passes: it ran between the layers of another one.
    """

    request: int
    start_s: float
    end_s: float
    words: str
    passes: bool


@dataclass(frozen=True, slots=True)
class Placed:
    """A bar with its place in the row: middle and height, the row being from -0.5 to 0.5."""

    bar: Bar
    middle: float
    height: float


def draw(run: Run, start_s: float, end_s: float, path: Path) -> None:
    """One row an instance, chunks coloured by request; changes of plans and of seats as lines.

    Raises:
        PlotsError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    part = run.between(start_s, end_s)
    drawn, grid = figure(1)
    axes: Axes = grid[0][0]
    ran = [request for request in part.requests if request.waited_s is not None]
    named = len(ran) <= NAMED
    names = INCHES_A_LINE * -(-len(ran) // NAMES_A_LINE) if named else 0.0
    drawn.set_size_inches(INCHES_WIDE, 1.4 + names + INCHES_A_ROW * max(part.instances, 2))
    span_s = max(end_s - start_s, SHORTEST_S)
    for instance in range(part.instances):
        for placed in in_row(list(_bars(ran, instance))):
            _draw_bar(axes, instance, placed, span_s)
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
        xlim=(start_s, start_s + span_s),
        ylim=(part.instances - 0.4, -0.6),
        yticks=range(part.instances),
        xlabel=KEY,
        ylabel="instance",
    )
    axes.grid(axis="x", alpha=0.3)
    if ran and named:
        _name(axes, ran)
    save(drawn, path)


def _bars(ran: Sequence[Request], instance: int) -> Iterator[Bar]:
    for number, request in enumerate(ran):
        for chunk in request.chunks:
            if chunk.start_s is None or chunk.end_s is None or instance not in chunk.instances:
                continue
            yield Bar(number, chunk.start_s, chunk.end_s, _words(chunk), request.passes)


def _words(chunk: Chunk) -> str:
    return f"{chunk.tokens}@{chunk.sp_size}"


def in_row(bars: Sequence[Bar]) -> list[Placed]:
    """Bars of one instance: those that run at once share the row's height.

    What passes lies, lower, on what it passes.
    """
    placed: list[Placed] = []
    together: list[tuple[Bar, int]] = []
    last: list[Bar] = []
    for bar in sorted((bar for bar in bars if not bar.passes), key=lambda bar: bar.start_s):
        free = [lane for lane, before in enumerate(last) if not _at_once(before, bar)]
        if len(free) == len(last):
            placed += _shared(together, len(last))
            together, last, free = [], [], []
        lane = free[0] if free else len(last)
        last[lane : lane + 1] = [bar]
        together.append((bar, lane))
    placed += _shared(together, len(last))
    return placed + [Placed(bar, 0.0, PASSING_HEIGHT) for bar in bars if bar.passes]


def _at_once(before: Bar, bar: Bar) -> bool:
    """Whether two bars share more than ends that lie over each other.

    A chunk has the times of its slowest member, at which an instance may have gone on.
    """
    shared_s = min(before.end_s, bar.end_s) - bar.start_s
    return shared_s > ENDS * min(before.end_s - before.start_s, bar.end_s - bar.start_s)


def _shared(together: Sequence[tuple[Bar, int]], lanes: int) -> list[Placed]:
    height = HEIGHT / max(lanes, 1)
    return [Placed(bar, (lane + 0.5) * height - HEIGHT / 2, height) for bar, lane in together]


def _draw_bar(axes: Axes, instance: int, placed: Placed, span_s: float) -> None:
    bar = placed.bar
    seconds, colour = bar.end_s - bar.start_s, _colour(bar.request)
    wide = seconds > WIDE_ENOUGH * span_s
    axes.barh(
        instance + placed.middle,
        seconds,
        left=bar.start_s,
        height=placed.height,
        color=colour,
        # An edge would leave nothing of a narrow one; it is as wide as a line at least.
        edgecolor="white" if wide else colour,
        linewidth=0.5,
        zorder=3 if bar.passes else 2,
    )
    if wide:
        red, green, blue = colour
        axes.annotate(
            bar.words,
            (bar.start_s + seconds / 2, instance + placed.middle),
            ha="center",
            va="center",
            fontsize="x-small",
            color="white" if 0.3 * red + 0.59 * green + 0.11 * blue < DARK else "black",
            zorder=4,
            clip_on=True,
        )


def _name(axes: Axes, ran: Sequence[Request]) -> None:
    """A legend that says which colour is which request."""
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(color=_colour(number), label=f"{request.rid[:20]} ({request.tokens} tokens)")
            for number, request in enumerate(ran)
        ],
        fontsize="x-small",
        ncols=NAMES_A_LINE,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.01),
    )


def _colour(number: int) -> tuple[float, float, float]:
    """Of `tab20`: its ten strong colours, then their ten light ones, then it begins again."""
    from matplotlib import colormaps

    place = number % NAMED
    red, green, blue, _ = colormaps["tab20"](place * 2 % NAMED + place // (NAMED // 2))
    return red, green, blue
