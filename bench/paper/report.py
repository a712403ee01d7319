"""The comparison as Markdown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from bench.paper.cases import PREEMPT_BUDGET
from bench.paper.curves import (
    Point,
    Read,
    Study,
    critical_is_known,
    mean_ttft,
    p50,
    p99,
    ratio,
    tbt_p50,
    tbt_p99,
    throughput,
)
from bench.paper.text import CRITICAL, DRAWN, FIXED, MAX_LOAD, NOT_TOLD, SHOWN, TRACES, WHY
from sglang_cdsp.planner.policies.options import DEFAULT_PREEMPT_BUDGET
from sglang_cdsp.simulator.sweep import UNIFIED, is_regulated

UNKNOWN = "-"
"""Where the sweep does not tell: runs too short for a queue to grow, or no such request."""

RIVALS = ("fixed-sp:8", "loongserve", "single-chunk")
OURS = ("cdsp-paper", "cdsp", "cdsp-late")


def paper_report(studies: Sequence[Study], requests: int) -> str:
    """`paper-8b.md`."""
    loads = [side_by_side(studies), MAX_LOAD, max_loads(studies)]
    if any(f" {UNKNOWN} " in block for block in loads):
        loads.append(NOT_TOLD)
    budget, default = PREEMPT_BUDGET, DEFAULT_PREEMPT_BUDGET
    blocks = [DRAWN.format(requests=requests, budget=budget, default=default), *loads]
    blocks += [CRITICAL, *(b for s in studies for b in critical(s))]
    blocks += [FIXED, fixed_rates(studies)]
    blocks += ["## All rates", *(sweep(s, "req/s") for s in studies), WHY]
    return "\n\n".join(blocks) + "\n"


def trace_report(studies: Sequence[Study]) -> str:
    """`paper-traces.md`."""
    blocks = [TRACES.format(budget=PREEMPT_BUDGET)]
    for study in studies:
        rows = [
            [f"{rate:g}", f"`{rival}`", *(_ratios(study, rate, rival, own) for own in _ours(study))]
            for rate in study.load.rates
            for rival in (*RIVALS, "cdsp-paper")
        ]
        heads = ["speed", "against", *(f"`{name}` P50, P99" for name in _ours(study))]
        blocks += [f"## {study.load.name}", sweep(study, "speed"), table(heads, rows)]
    return "\n\n".join([*blocks, SHOWN]) + "\n"


SIDE_BY_SIDE: tuple[tuple[str, str, Read, str, float], ...] = (
    ("P50 TTFT, `{}` over ours", "fixed-sp:8", p50, "1.64 to 2.78", 1),
    ("P99 TTFT, `{}` over ours", "fixed-sp:8", p99, "1.52 to 3.13", 1),
    ("P50 TTFT, `{}` over ours", "single-chunk", p50, "up to 2.33 to 4.17", 1),
    ("P99 TTFT, `{}` over ours", "single-chunk", p99, "2.64 to 3.58", 1),
    ("P50 TBT, `{}` over ours", UNIFIED, tbt_p50, "1.55 to 1.67", 1),
    ("P99 TBT, `{}` over ours", UNIFIED, tbt_p99, "comparable", 1),
    ("throughput, ours over `{}`", "fixed-sp:16", throughput, "1.24 to 3.38", -1),
    ("throughput, ours over `{}`", "fixed-sp:8", throughput, "", -1),
)
"""What is compared at fixed-sp:8's critical rate, with whom, the paper's figure, the exponent."""


def side_by_side(studies: Sequence[Study]) -> str:
    """The paper's figures beside ours, one a workload, each the mean over the seeds."""
    own = _ours(studies[0])

    def cells(read: Callable[[Study, str], float]) -> list[str]:
        values = [[read(study, name) for study in studies] for name in own]
        return [
            " / ".join(f"{v:.2f}" if math.isfinite(v) else UNKNOWN for v in row) for row in values
        ]

    def at_critical(study: Study, name: str, rival: str, read: Read, exponent: float) -> float:
        rate = study.critical["fixed-sp:8"]
        return float(ratio(study.best(rival, rate), study.best(name, rate), read)[0] ** exponent)

    loads = cells(lambda s, name: _load_ratio(s, name, "fixed-sp:8"))
    rows = [["maximum load over that of `fixed-sp:8`", "1.20 to 1.45", *loads]]
    for what, rival, read, paper, exponent in SIDE_BY_SIDE:
        ratios = cells(partial(at_critical, rival=rival, read=read, exponent=exponent))
        rows.append([what.format(rival), paper, *ratios])
    return table(["", "the paper", *(f"`{name}`" for name in own)], rows)


def _load_ratio(study: Study, name: str, rival: str) -> float:
    """Mean over the seeds of a policy's maximum load over a rival's; NaN where one is unknown."""
    mine, other = study.max_load(name), study.max_load(rival)
    known = np.isfinite(mine).all() and np.isfinite(other).all()
    return float((mine / other).mean()) if known else math.nan


def max_loads(studies: Sequence[Study]) -> str:
    """Mean over the seeds of each policy's maximum load, and how much more than fixed-sp:8's."""
    rows = []
    for name in studies[0].policies:
        row = [f"`{name}`"]
        for study in studies:
            loads, more = study.max_load(name), _load_ratio(study, name, "fixed-sp:8") - 1
            if np.isinf(loads).any():
                low, *_, high = study.load.rates
                row.append(f"above {high:g}" if loads.max() > 0 else f"below {low:g}")
            else:
                beside = f" ({more:+.0%})" if math.isfinite(more) else ""
                row.append(f"{_spread(loads, 2)}{beside}")
        rows.append(row)
    return table(["policy", *(study.load.name.title() for study in studies)], rows)


def critical(study: Study) -> list[str]:
    """All figures at the critical rates of the two best baselines, and the ratios."""
    blocks = []
    by_rate: dict[float, list[str]] = {}
    for name, rate in study.critical.items():
        by_rate.setdefault(rate, []).append(name)
    for rate, names in by_rate.items():
        whose = "critical rate of " + " and ".join(f"`{name}`" for name in names)
        if not all(critical_is_known(study, name) for name in names):
            whose += " or beyond it: the sweep does not tell"
        blocks.append(f"### {study.load.name.title()}, {rate:g} req/s, {whose}")
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
    """Mean TTFT at every improvement rate, on the tuning seed; the least in bold."""
    rows, heads = [], []
    for study, name in itertools.product(studies, ("single-chunk", *OURS)):
        for rate in study.load.rates if name in study.policies else ():
            means = study.tuned(name, rate)
            heads = [f"r = {r:g}" for r in means]
            least = min(means.values())
            cells = [f"**{m:.2f}**" if m == least else f"{m:.2f}" for m in means.values()]
            rows.append([study.load.name, f"{rate:g}", f"`{name}`", *cells])
    return table(["workload", "req/s", "policy", *heads], rows)


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
        _number(point.mean(tbt_p50) * 1000, ".1f"),
        _number(point.mean(tbt_p99) * 1000, ".1f"),
        f"{point.mean(lambda s: s.throughput_rps):.2f}",
        f"{point.mean(lambda s: s.idle_fraction):.0%}",
    ]


def _ratios(study: Study, rate: float, rival: str, own: str) -> str:
    if rival == own:
        return "1"
    pair = study.best(rival, rate), study.best(own, rate)
    cells = []
    for read in (p50, p99):
        found = ratio(*pair, read)
        known = all(map(math.isfinite, found))
        cells.append("{:.2f} ({:.2f} to {:.2f})".format(*found) if known else UNKNOWN)
    return ", ".join(cells)


def _pair(point: Point) -> str:
    return f"{_short(point, p50)} / {_short(point, p99)}"


def _short(point: Point, read: Read) -> str:
    return _number(point.mean(read), ".3g")


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else UNKNOWN


def _spread(values: np.ndarray, digits: int) -> str:
    if not np.isfinite(values).all():
        return UNKNOWN
    low, high = values.min(), values.max()
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
