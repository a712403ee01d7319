"""Figures of runs as PNG files. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sglang_cdsp.simulator.colours import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


class PlotsError(RuntimeError):
    """matplotlib is not installed; names the remedy."""


def figure(columns: int, rows: int = 1) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes, shape (rows, columns).

    Raises:
        PlotsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsError("figures need matplotlib: pip install 'sglang-cdsp[plots]'") from None
    drawn = Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")
    axes: np.ndarray = drawn.subplots(rows, columns, squeeze=False)
    return drawn, axes


def save(drawn: Figure, path: Path) -> None:
    """Writes a PNG without a time stamp: the same run gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=80, metadata={"Software": None})


def cdf(axes: Axes, ttfts_s: Mapping[str, np.ndarray], title: str) -> None:
    """One curve a policy: the share of requests with at most that TTFT, on a log axis."""
    drawn = looks(ttfts_s)
    for name, values in ttfts_s.items():
        if len(values):
            shares = np.arange(1, len(values) + 1) / len(values)
            axes.step(
                np.sort(values),
                shares,
                label=name,
                linewidth=1.2,
                where="post",
                color=drawn[name].colour,
                linestyle=drawn[name].line,
            )
    axes.set(title=title, xlabel="TTFT (s)", ylabel="share of requests (0 to 1)", xscale="log")
    _label(axes.xaxis)
    axes.grid(alpha=0.3)


def curves(
    axes: Axes, xs: Sequence[float], ys: Mapping[str, Sequence[float]], title: str, ylabel: str
) -> None:
    """One curve a policy over arrival rates, on a log axis."""
    drawn = looks(ys)
    for name, values in ys.items():
        look = drawn[name]
        axes.plot(
            xs,
            values,
            marker=".",
            label=name,
            linewidth=1.2,
            color=look.colour,
            linestyle=look.line,
        )
    axes.set(title=title, xlabel="requests/s", ylabel=ylabel, yscale="log")
    _label(axes.yaxis)
    axes.grid(alpha=0.3)


def _label(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of every decade of a log axis."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def run_plots(
    ttfts_s: Mapping[str, np.ndarray],
    lengths: Mapping[str, np.ndarray],
    histograms: Mapping[str, Mapping[int, int]],
    path: Path,
) -> None:
    """One run's figure: TTFT CDF, TTFT over prompt length, chunks by SP size."""
    drawn, grid = figure(3)
    distribution, scatter, sizes = grid[0]
    cdf(distribution, ttfts_s, "TTFT, all requests")
    distribution.legend(fontsize="small")
    colours = {name: look.colour for name, look in looks(ttfts_s).items()}
    for name, values in ttfts_s.items():
        scatter.scatter(
            lengths[name] / 1024, values, s=4, alpha=0.5, label=name, color=colours[name]
        )
    scatter.set(
        title="TTFT by prompt length",
        xlabel="prompt length (1024 tokens)",
        ylabel="TTFT (s)",
        yscale="log",
    )
    _label(scatter.yaxis)
    scatter.grid(alpha=0.3)
    present = sorted({size for histogram in histograms.values() for size in histogram})
    width = 0.8 / max(1, len(histograms))
    for index, (name, histogram) in enumerate(histograms.items()):
        places = np.arange(len(present)) + index * width
        heights = [histogram.get(s, 0) for s in present]
        sizes.bar(places, heights, width, label=name, color=colours.get(name))
    sizes.set_xticks(np.arange(len(present)) + 0.4 - width / 2, [str(size) for size in present])
    sizes.set(title="Chunks by SP size", xlabel="SP size (instances)", ylabel="chunks (number)")
    save(drawn, path)
