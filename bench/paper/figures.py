"""The comparison's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.paper.curves import Study, p50, p99
from sglang_cdsp.simulator.colours import looks
from sglang_cdsp.simulator.plots import cdf, curves, figure, save


def draw_curves(studies: Sequence[Study], path: Path, unit: str) -> None:
    """P50 (upper row) and P99 TTFT (lower) against the rate, a column a load."""
    drawn, axes = figure(len(studies), 2)
    for column, study in enumerate(studies):
        rates = study.load.rates
        for row, (label, read) in enumerate((("P50 TTFT (s)", p50), ("P99 TTFT (s)", p99))):
            ys = {
                name: [study.best(name, rate).mean(read) for rate in rates]
                for name in study.policies
            }
            curves(axes[row, column], rates, ys, study.load.name, label)
            low, high = study.light(read).mean(), 60 * study.light(read).mean()
            axes[row, column].set(ylim=(0.8 * low, high), xlabel=unit)
    axes[0, 0].legend(fontsize="x-small")
    save(drawn, path)


def draw_cdfs(studies: Sequence[Study], baseline: str, path: Path) -> None:
    """The distribution of TTFT over all seeds at the baseline's critical rate."""
    drawn, axes = figure(len(studies))
    for study, panel in zip(studies, axes[0], strict=True):
        rate = study.critical[baseline]
        ttfts = {
            name: np.concatenate([o.ttfts for o in study.best(name, rate).outcomes])
            for name in study.policies
        }
        cdf(panel, ttfts, f"{study.load.name}, {rate:g} requests/s")
        panel.set(xlim=(0.1, 100))
    axes[0, 0].legend(fontsize="x-small")
    save(drawn, path)


def draw_bars(values: Mapping[str, Mapping[str, float]], path: Path, label: str) -> None:
    """A group of bars a load, a bar a policy; every load has the same policies."""
    drawn, axes = figure(1)
    panel = axes[0, 0]
    names = list(next(iter(values.values())))
    width = 0.8 / len(names)
    places = np.arange(len(values))
    for index, (name, look) in enumerate(looks(names).items()):
        heights = [by_policy[name] for by_policy in values.values()]
        panel.bar(places + index * width, heights, width, label=name, color=look.colour)
    panel.set_xticks(places + 0.4 - width / 2, list(values))
    panel.set(ylabel=label)
    panel.legend(fontsize="x-small")
    save(drawn, path)
