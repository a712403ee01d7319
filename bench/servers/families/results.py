"""What became of each cell, kept from run to run, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HELD, NOTHING_THERE = "ok", "-"
"""What becomes of a feature; anything else is the first line of what went wrong."""


@dataclass(frozen=True)
class Row:
    """A family in one form of the pool.

    Attributes:
        features: what became of each that was tried.
        worst: largest gap between a log-probability and stock's.
        notes: further figures: ``tokens`` compared with stock's, prompts with drawn ``plans``,
            ``transformers``: largest gap to those; ``seed``, ``sglang``, ``at``.
    """

    features: Mapping[str, str] = field(default_factory=dict)
    worst: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, features: Collection[str]) -> bool:
        """Whether all of these were tried, and none went wrong."""
        return all(self.features.get(name) in (HELD, NOTHING_THERE) for name in features)

    def having(self, name: str, became: str, worst: float, notes: Mapping[str, Any]) -> Row:
        """This row with one more feature."""
        return Row({**self.features, name: became}, worst, {**self.notes, **notes})


@dataclass(frozen=True)
class Results:
    """Rows by name: ``family/form`` or ``family/form, TP n``."""

    rows: Mapping[str, Row] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """A row, empty where nothing was tried."""
        return self.rows.get(name, Row())

    def having(self, name: str, row: Row) -> Results:
        """These with one row in place of what there was."""
        return replace(self, rows={**self.rows, name: row})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote; none where there is no file."""
        if not path.exists():
            return cls()
        entries = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {
                name: Row(entry.pop("features"), entry.pop("worst"), entry)
                for name, entry in entries.items()
            }
        )

    def save(self, path: Path, features: Sequence[str]) -> None:
        """Write JSON, a row a line, and the table beside it."""
        lines = [
            f"{json.dumps(name)}: "
            + json.dumps({"features": dict(row.features), "worst": row.worst, **row.notes})
            for name, row in sorted(self.rows.items())
        ]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        path.with_suffix(".md").write_text(markdown(self, features), encoding="utf-8")


def markdown(results: Results, features: Sequence[str]) -> str:
    """The rows as a table.

    Args:
        features: the columns.
    """
    lines = [
        "# Families by forms by features",
        "",
        "Small random checkpoints on real servers on the CPU, in float32; the pool is shaken (its",
        "chunks switch wherever they may). Answers are compared token by token with those of a",
        "stock server with the same checkpoint, and those by drawn plans with transformers' own",
        "model too. A gap is the largest one of a log-probability among the best candidates. Made",
        "by `python -m bench.servers.families`.",
        "",
        f"| family | form | {' | '.join(features)} | plans | tokens | gap to stock "
        "| gap to transformers |",
        f"|{'---|' * (len(features) + 6)}",
    ]
    for name, row in sorted(results.rows.items()):
        family, form = name.split("/")
        became = [row.features.get(feature, "") for feature in features]
        cells = [text if text in (HELD, NOTHING_THERE, "") else "**no**" for text in became]
        figures = [str(row.notes.get(figure, "")) for figure in ("plans", "tokens")]
        gaps = [_gap(row.worst), _gap(row.notes.get("transformers"))]
        lines.append(f"| {' | '.join([family, form, *cells, *figures, *gaps])} |")
    wrong = [
        f"- {name}, {feature}: {became}"
        for name, row in sorted(results.rows.items())
        for feature, became in row.features.items()
        if became not in (HELD, NOTHING_THERE)
    ]
    return "\n".join([*lines, *([""] if wrong else []), *wrong]) + "\n"


def _gap(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"
