"""The comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.paper.curves import (
    Point,
    Read,
    Study,
    critical_rate,
    mean_ttft,
    p50,
    p99,
    ratio,
    tbt_p50,
    tbt_p99,
)
from bench.paper.text import DRAWN, MAX_LOAD, TRACES, WHY
from sglang_cdsp.simulator.sweep import is_regulated

RIVALS = ("fixed-sp:8", "loongserve", "single-chunk")
OURS = ("cdsp-paper", "cdsp", "cdsp-late")
FIXED = (0.1, 0.3, 0.5, 0.7)


def paper_report(studies: Sequence[Study], requests: int) -> str:
    """`paper-8b.md`."""
    seeds = len(studies[0].seeds)
    blocks = [DRAWN.format(requests=requests, seeds=seeds), MAX_LOAD, max_loads(studies)]
    blocks += ["## At the critical rates", *(b for s in studies for b in critical(s))]
    blocks += ["## Fixed improvement rates", fixed_rates(studies)]
    blocks += ["## All rates", *(sweep(s, "req/s") for s in studies), WHY]
    return "\n\n".join(blocks) + "\n"


def trace_report(studies: Sequence[Study]) -> str:
    """`paper-traces.md`."""
    blocks = [TRACES]
    for study in studies:
        rows = [
            [f"{rate:g}", rival, *(_ratios(study, rate, rival, own) for own in _ours(study))]
            for rate in study.load.rates
            for rival in RIVALS
        ]
        heads = ["speed", "against", *(f"`{name}` P50, P99" for name in _ours(study))]
        blocks += [f"## {study.load.name}", sweep(study, "speed"), table(heads, rows)]
    return "\n\n".join(blocks) + "\n"


def max_loads(studies: Sequence[Study]) -> str:
    """Mean over the seeds of each policy's maximum load, and how much more than fixed-sp:8's."""
    rows = []
    for name in studies[0].policies:
        row = [f"`{name}`"]
        for study in studies:
            loads, rival = study.max_load(name), study.max_load("fixed-sp:8")
            if np.isnan(loads).any():
                row.append(f"outside {study.load.rates[0]:g} to {study.load.rates[-1]:g}")
            else:
                row.append(f"{_spread(loads, 2)} ({(loads / rival).mean() - 1:+.0%})")
        rows.append(row)
    return table(["policy", *(study.load.name.title() for study in studies)], rows)


def critical(study: Study) -> list[str]:
    """All figures at the critical rates of the two best baselines, and the ratios."""
    blocks = []
    by_rate: dict[float, list[str]] = {}
    for name in RIVALS[:2]:
        by_rate.setdefault(critical_rate(study, name), []).append(name)
    for rate, names in by_rate.items():
        whose = "critical rate of " + " and ".join(f"`{name}`" for name in names)
        blocks.append(
            f"### {study.load.name.title()}, {rate:g} req/s: the critical rate of {whose}"
        )
        rows = []
        for name in study.policies:
            rows.append(_row(f"`{name}`", study.best(name, rate), is_regulated(name)))
            if is_regulated(name):
                rows.append(_row("with the regulator", study.regulated(name, rate), False))
        heads = ["policy", "r", "P50 s", "P99 s", "mean s", "longest wait s", "TBT P50 ms"]
        blocks.append(table([*heads, "TBT P99 ms", "done/s", "idle"], rows))
        rows = [
            [f"`{rival}`", *(_ratios(study, rate, rival, own) for own in _ours(study))]
            for rival in (*RIVALS, "cdsp-paper")
        ]
        heads = ["TTFT over that of", *(f"`{name}`: P50, P99" for name in _ours(study))]
        blocks.append(table(heads, rows))
    return blocks


def fixed_rates(studies: Sequence[Study]) -> str:
    """Mean TTFT at fixed improvement rates and at the best one."""
    rows = []
    for study in studies:
        for rate in study.load.rates:
            for name in _ours(study)[:2]:
                tried = {p.improvement_rate: p for p in study.every(name, rate)}
                best = study.best(name, rate)
                cells = [f"{tried[r].mean(mean_ttft):.2f}" for r in FIXED]
                least = f"{best.mean(mean_ttft):.2f} (r = {best.improvement_rate:g})"
                rows.append([study.load.name, f"{rate:g}", f"`{name}`", *cells, least])
    heads = ["workload", "req/s", "policy", *(f"r = {r:g}" for r in FIXED), "best"]
    return "Mean TTFT in seconds.\n\n" + table(heads, rows)


def sweep(study: Study, unit: str) -> str:
    """P50 / P99 TTFT of every policy at every rate."""
    rows = [
        [f"{rate:g}", *(_pair(study.best(name, rate)) for name in study.policies)]
        for rate in study.load.rates
    ]
    heads = [unit, *(f"`{name}`" for name in study.policies)]
    return f"{study.load.name.capitalize()}, P50 / P99 TTFT in seconds:\n\n" + table(heads, rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ours(study: Study) -> list[str]:
    return [name for name in OURS if name in study.policies]


def _row(name: str, point: Point, regulated: bool) -> list[str]:
    return [
        name,
        f"{point.improvement_rate:g}" if regulated else "",
        _spread(point.figures(p50), 2),
        _spread(point.figures(p99), 1),
        f"{point.mean(mean_ttft):.2f}",
        f"{max(point.figures(lambda s: s.longest_wait_s)):.1f}",
        f"{point.mean(tbt_p50) * 1000:.1f}",
        f"{point.mean(tbt_p99) * 1000:.1f}",
        f"{point.mean(lambda s: s.throughput_rps):.2f}",
        f"{point.mean(lambda s: s.idle_fraction):.0%}",
    ]


def _ratios(study: Study, rate: float, rival: str, own: str) -> str:
    if rival == own:
        return "1"
    pair = study.best(rival, rate), study.best(own, rate)
    cells = []
    for read in (p50, p99):
        middle, least, greatest = ratio(*pair, read)
        cells.append(f"{middle:.2f} ({least:.2f} to {greatest:.2f})")
    return ", ".join(cells)


def _pair(point: Point) -> str:
    return f"{_short(point, p50)} / {_short(point, p99)}"


def _short(point: Point, read: Read) -> str:
    return f"{point.mean(read):.3g}"


def _spread(values: np.ndarray, digits: int) -> str:
    low, high = values.min(), values.max()
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
