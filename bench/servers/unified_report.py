"""Tables from the runs of `bench.servers.unified`: the pool over stock, in the same turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.servers.ab_report import BUCKETS
from bench.servers.mix import is_long

Figure = Callable[[np.ndarray], float]
MEASURES = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("end to end", "end_s"))
FIGURES: tuple[tuple[str, Figure], ...] = (
    ("mean", lambda values: float(values.mean())),
    ("P99", lambda values: float(np.percentile(values, 99))),
)
ALL = "all"
SIDES = ("pool", "single")
"""This package, then stock; the names of their servers."""


@dataclass(frozen=True)
class Ratio:
    """A figure of the pool and of stock over all turns, and the ratios of the single turns."""

    pool: float
    stock: float
    by_turn: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return self.pool / self.stock

    def __str__(self) -> str:
        spread = f"{min(self.by_turn):.2f} to {max(self.by_turn):.2f}"
        return f"{self.pool:.3g} / {self.stock:.3g} = {self.ratio:.2f} ({spread})"


def values(line: dict[str, Any], measure: str, bucket: str) -> np.ndarray:
    """A measure of the requests of a bucket that were answered, seconds; shape (n,)."""
    rows = zip(line["tokens"], line[measure], line["errors"], line["ttft_s"], strict=True)
    return np.array(
        [
            value
            for tokens, value, error, ttft in rows
            if not error and ttft > 0 and bucket in (ALL, "long" if is_long(tokens) else "short")
        ]
    )


def ratio(
    lines: Sequence[dict[str, Any]], rate: float, measure: str, bucket: str, figure: Figure
) -> Ratio | None:
    """The pool over stock at one rate; None where a side has no such request in a turn."""
    sides = {
        side: {x["turn"]: values(x, measure, bucket) for x in lines if _is(x, side, rate)}
        for side in SIDES
    }
    pool, stock = sides["pool"], sides["single"]
    turns = sorted(pool.keys() & stock.keys())
    if not turns or not all(len(pool[turn]) and len(stock[turn]) for turn in turns):
        return None
    mine, other = (figure(np.concatenate([side[t] for t in turns])) for side in (pool, stock))
    return Ratio(mine, other, tuple(figure(pool[t]) / figure(stock[t]) for t in turns))


def throughput(lines: Sequence[dict[str, Any]]) -> Ratio | None:
    """Requests a second where all came at once, of the pool and of stock; None without such."""
    rates = {
        side: {
            x["turn"]: len(values(x, "ttft_s", ALL)) / x["duration_s"]
            for x in lines
            if _is(x, side, math.inf)
        }
        for side in SIDES
    }
    pool, stock = rates["pool"], rates["single"]
    turns = sorted(pool.keys() & stock.keys())
    if not turns:
        return None
    mine, other = (float(np.mean([side[turn] for turn in turns])) for side in (pool, stock))
    return Ratio(mine, other, tuple(pool[turn] / stock[turn] for turn in turns))


def report(lines: Iterable[dict[str, Any]]) -> str:
    """The Markdown table, and what it says of the three aims."""
    known = list(lines)
    rates = sorted({line["rate"] for line in known})
    turns = len({line["turn"] for line in known})
    heads = ["requests/s", "prompts", *(f"{m} {f}" for m, _ in MEASURES for f, _ in FIGURES)]
    out = [
        f"Pool / stock in seconds, and their ratio (least to most of {turns} turns).",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for rate in rates:
        for bucket in (*BUCKETS, ALL):
            cells = [
                str(ratio(known, rate, measure, bucket, figure) or "-")
                for _, measure in MEASURES
                for _, figure in FIGURES
            ]
            name = "all at once" if rate == math.inf else f"{rate:g}"
            out.append(f"| {name} | {bucket} | " + " | ".join(cells) + " |")
    failed = ", ".join(
        f"{side} {sum(_failed(x) for x in known if x['side'] == side)}" for side in SIDES
    )
    out += ["", *_aims(known, rates), f"Failed: {failed}."]
    return "\n".join(out)


def _failed(line: dict[str, Any]) -> int:
    return len(line["errors"]) - len(values(line, "ttft_s", ALL))


def _aims(lines: Sequence[dict[str, Any]], rates: Sequence[float]) -> list[str]:
    (_, mean), (_, p99) = FIGURES
    ends = ratio(lines, rates[0], "end_s", ALL, mean)
    said = [f"Mean end to end at the lowest rate, at most 1: {ends or '-'}."]
    for rate in rates:
        if rate != math.inf:
            short = ratio(lines, rate, "ttft_s", "short", p99)
            said.append(f"P99 TTFT of short prompts at {rate:g}/s, at most 0.5: {short or '-'}.")
    most = throughput(lines)
    return [*said, f"Requests a second at saturation, at least 0.97: {most or '-'}."]


def _is(line: dict[str, Any], side: str, rate: float) -> bool:
    return bool(line["side"] == side and line["rate"] == rate)
