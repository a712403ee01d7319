"""The cells of the matrix, way to die by moment by ranks, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

WAYS = {
    "kill": "kill -9",
    "stop": "SIGSTOP for good",
    "pause": "SIGSTOP, SIGCONT after 0.5 s",
    "exception": "exception in the loop",
    "cuda": "CUDA error",
    "watchdog": "watchdog's SIGQUIT",
}

MOMENTS = {
    "idle": "idle",
    "between": "between chunks",
    "layer": "inside a layer",
    "transfer": "during a transfer",
    "start": "during the first start",
    "restart": "during the restart",
}

SIZES = (1, 2)


@dataclass(frozen=True)
class Cell:
    """A way to die at a moment, of instances of ``tp`` ranks."""

    way: str
    moment: str
    tp: int


@dataclass(frozen=True)
class Told:
    """What a client got.

    Attributes:
        part: where its request was: "home", "member", "elsewhere".
        how: "right", "wrong" or "error".
        after_s: seconds from the fault to its end.
        status, words: of an error.
    """

    part: str
    how: str
    after_s: float
    status: int = 0
    words: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a cell.

    Attributes:
        cell: which.
        clients: what each got.
        error_s: from the fault to the last error, None without one.
        noticed_s: from the fault to the server's notice, None if it took none.
        cause: the server's words for the death.
        back_s: from the fault to the seat's next life taking part, None if the life went on.
        slots: whether all slots were free afterwards.
        wrong: what should not be, a line each.
        said: of a server that ended: its last line.
    """

    cell: Cell
    clients: tuple[Told, ...] = ()
    error_s: float | None = None
    noticed_s: float | None = None
    cause: str = ""
    back_s: float | None = None
    slots: bool = True
    wrong: tuple[str, ...] = ()
    said: str = ""


@dataclass(frozen=True)
class Results:
    """Results by cell; a cell that is run again takes its old result's place."""

    by_cell: dict[Cell, Result] = field(default_factory=dict)

    def having(self, result: Result) -> Results:
        """These and one more."""
        return replace(self, by_cell={**self.by_cell, result.cell: result})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote; none where there is no file."""
        if not path.exists():
            return cls()
        entries = json.loads(path.read_text(encoding="utf-8"))
        return cls({result.cell: result for result in map(_read, entries)})

    def save(self, path: Path) -> None:
        """Write JSON, one result a line."""
        lines = [json.dumps(asdict(result)) for result in self.ordered()]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")

    def ordered(self) -> list[Result]:
        """By ranks, moment and way."""
        ways, moments = list(WAYS), list(MOMENTS)
        return sorted(
            self.by_cell.values(),
            key=lambda r: (r.cell.tp, moments.index(r.cell.moment), ways.index(r.cell.way)),
        )


def _read(entry: dict[str, Any]) -> Result:
    return Result(
        **{
            **entry,
            "cell": Cell(**entry["cell"]),
            "clients": tuple(Told(**told) for told in entry["clients"]),
            "wrong": tuple(entry["wrong"]),
        }
    )


def cells(ways: Iterable[str], moments: Iterable[str], sizes: Iterable[int]) -> list[Cell]:
    """All cells, those on one set of servers together."""
    ways, moments = tuple(ways), tuple(moments)
    return [Cell(way, moment, tp) for tp in sizes for moment in moments for way in ways]


def markdown(results: Sequence[Result]) -> str:
    """The table."""
    lines = [
        "| TP | moment | way to die | clients | error after | noticed after | back after | slots "
        "| holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cell = result.cell
        lines.append(
            f"| {cell.tp} | {MOMENTS[cell.moment]} | {WAYS[cell.way]} | {_clients(result)} "
            f"| {_seconds(result.error_s)} | {_seconds(result.noticed_s)} "
            f"| {_seconds(result.back_s)} | {'free' if result.slots else '**held**'} "
            f"| {'yes' if not result.wrong else '**no**'} |"
        )
    wrong = [(r.cell, line) for r in results for line in r.wrong]
    if wrong:
        lines.append("")
        lines += [f"- TP {c.tp}, {MOMENTS[c.moment]}, {WAYS[c.way]}: {line}" for c, line in wrong]
    return "\n".join(lines)


def _clients(result: Result) -> str:
    if not result.clients:
        return result.said or "-"
    parts = []
    for part in dict.fromkeys(told.part for told in result.clients):
        got = [t for t in result.clients if t.part == part]
        ends = ", ".join(t.how if t.how != "error" else f"{t.status or 'no answer'}" for t in got)
        parts.append(f"{part}: {ends}")
    return "; ".join(parts)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
