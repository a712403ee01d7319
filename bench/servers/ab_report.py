"""Tables from the runs of `bench.servers.ab`: each side beside stock, in the same rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.servers.mix import is_long

BUCKETS = ("short", "long")


@dataclass(frozen=True)
class Slo:
    """Limits in seconds: time to first token of short and of long prompts, time per token."""

    short: float
    long: float
    tpot: float


@dataclass(frozen=True)
class Run:
    """One side at one rate in one repeat.

    tokens, ttft_s, tpot_s: per answered request, shape (n,). failed: requests without an answer.
    cpu_s: CPU seconds by role during ``wall_s``; see `bench.servers.ab_client.Measured`.
    """

    side: str
    rate: float
    repeat: int
    tokens: np.ndarray
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    failed: int
    duration_s: float
    wall_s: float
    cpu_s: dict[str, float]

    @classmethod
    def of(cls, line: dict[str, Any]) -> Run:
        """From a line that `bench.servers.ab` wrote."""
        rows = zip(line["tokens"], line["ttft_s"], line["tpot_s"], line["errors"], strict=True)
        good = [row for row in rows if not row[3] and row[1] > 0]
        return cls(
            line["side"],
            line["rate"],
            line["repeat"],
            np.array([row[0] for row in good]),
            np.array([row[1] for row in good]),
            np.array([row[2] for row in good]),
            len(line["errors"]) - len(good),
            line["duration_s"],
            line["wall_s"],
            line["cpu_s"],
        )

    def bucket(self, name: str) -> np.ndarray:
        """TTFT of the short or of the long prompts."""
        long = np.array([is_long(int(n)) for n in self.tokens], dtype=bool)
        return self.ttft_s[long if name == "long" else ~long]

    def goodput(self, slo: Slo) -> float:
        """Requests a second that kept to every limit."""
        limit = np.where([is_long(int(n)) for n in self.tokens], slo.long, slo.short)
        return float(((self.ttft_s <= limit) & (self.tpot_s <= slo.tpot)).sum() / self.duration_s)


def report(lines: Iterable[dict[str, Any]], slo: Slo, base: str = "stock") -> str:
    """The Markdown tables, one a rate."""
    runs = [Run.of(line) for line in lines]
    rates = sorted({run.rate for run in runs})
    return "\n\n".join(
        _rate([r for r in runs if r.rate == rate], rate, slo, base) for rate in rates
    )


def _rate(runs: Sequence[Run], rate: float, slo: Slo, base: str) -> str:
    sides = sorted({run.side for run in runs}, key=lambda side: (side != base, side))
    repeats = len({run.repeat for run in runs})
    mine = {side: [run for run in runs if run.side == side] for side in sides}
    first = mine[base][0]
    counts = " and ".join(f"{len(first.bucket(b))} {b}" for b in BUCKETS)
    heads = ["", *(f"{b} P{p}" for b in BUCKETS for p in (50, 99)), "TPOT P50", "goodput", "failed"]
    out = [f"**{rate:g} requests/s**: {repeats} repeats, {counts} prompts in the first one.", ""]
    out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for side in sides:
        cells = [
            _against([run.bucket(b) for run in mine[side]], [r.bucket(b) for r in mine[base]], p)
            for b in BUCKETS
            for p in (50, 99)
        ]
        tpots = [run.tpot_s for run in mine[side]]
        cells.append(_against(tpots, [run.tpot_s for run in mine[base]], 50, unit=1e3))
        good, other = (np.mean([r.goodput(slo) for r in mine[s]]) for s in (side, base))
        cells.append(f"{good:.2f}" + (f" ({good / other:.2f})" if other and side != base else ""))
        cells.append(str(sum(run.failed for run in mine[side])))
        out.append(f"| `{side}` | " + " | ".join(cells) + " |")
    out += ["", "CPU, share of all cores' time in the runs: " + "; ".join(_cpu(mine, sides)) + "."]
    return "\n".join(out)


def _against(
    values: Sequence[np.ndarray], base: Sequence[np.ndarray], percentile: int, unit: float = 1.0
) -> str:
    """A percentile over all repeats, and its ratio to the base's, with the repeats' range."""
    if not sum(map(len, values)) or not sum(map(len, base)):
        return "-"
    both = [float(np.percentile(np.concatenate(v), percentile)) for v in (values, base)]
    if both[0] == both[1]:
        return f"{both[0] * unit:.2f}"
    ratios = [
        float(np.percentile(v, percentile) / np.percentile(b, percentile))
        for v, b in zip(values, base, strict=False)
        if len(v) and len(b) and np.percentile(b, percentile) > 0
    ]
    if not both[1] or not ratios:
        return f"{both[0] * unit:.2f}"
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{both[0] * unit:.2f} ({both[0] / both[1]:.2f}; {spread})"


def _cpu(mine: dict[str, list[Run]], sides: Sequence[str]) -> list[str]:
    shares = []
    for side in sides:
        runs = mine[side]
        cores_s = sum(run.cpu_s["cores"] * run.wall_s for run in runs)
        spent = {role: sum(r.cpu_s[role] for r in runs) / cores_s for role in runs[0].cpu_s}
        known = sum(spent[role] for role in ("prefill", "decode", "router", "client"))
        parts = [f"{role} {spent[role]:.0%}" for role in ("prefill", "decode", "client", "router")]
        shares.append(f"`{side}` {', '.join(parts)}, others {max(0.0, spent['all'] - known):.0%}")
    return shares
