"""One colour a policy, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COLOURS: Mapping[str, str] = {
    "cdsp-late": "#d55e00",
    "cdsp": "#0072b2",
    "cdsp-paper": "#56b4e9",
    "single-chunk": "#009e73",
    "fixed-sp": "#e69f00",
    "loongserve": "#cc79a7",
    "loongserve-unified": "#999999",
    "threshold": "#8c510a",
    "cache-aware": "#882255",
    "data-parallel": "#000000",
}
"""By name without the argument; most are Okabe and Ito's, made for colour-blind people, too."""

OTHERS = ("#7f3c8d", "#44aa99", "#bbaa22", "#666666")
"""For policies from outside, in the order of the figure."""

LINES = ("-", "--", ":", "-.")
"""For policies of one colour, such as fixed-sp:8 and fixed-sp:16."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a policy is drawn: its colour as #rrggbb, and matplotlib's name of the line's style."""

    colour: str
    line: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How each policy of a figure is drawn; no two look alike, up to four of a colour."""
    found: dict[str, Look] = {}
    seen: dict[str, int] = {}
    others = 0
    for name in names:
        colour = COLOURS.get(name) or COLOURS.get(name.partition(":")[0])
        if colour is None:
            colour, others = OTHERS[others % len(OTHERS)], others + 1
        found[name] = Look(colour, LINES[seen.get(colour, 0) % len(LINES)])
        seen[colour] = seen.get(colour, 0) + 1
    return found
