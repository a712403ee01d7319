"""The latency model: prefill time of one chunk, per SP size (Tetris, Equation 1).

    T_s(C, L) = a_s + b_s L + c_s C L + d_s L^2 + e_s C

of C history tokens and L chunk tokens, in seconds. The last term is ours: with latent attention
every member expands the history's rows, however short the chunk is; it is 0 for other models.

SP sizes between two fitted ones are interpolated: b, c and d are shares of work that shrink like
1/s, so they are linear in 1/s between neighbours; a and e are costs of every member, linear in s.
Sizes outside the fitted range are an error, because a wrong guess there would steer every plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from sglang_cdsp.planner.errors import LatencyModelError

MOST_INSTANCES = 65536
"""Of a pool, and so of an SP group."""

MEASURED_KEY = "max_tokens"
"""Of a model file's `fit`: the longest prompt that was measured, in tokens."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One row of Equation 1: a in s, b and e in s/token, c and d in s/token^2; none negative."""

    a: float
    b: float
    c: float
    d: float
    e: float = 0.0

    def __post_init__(self) -> None:
        for name in ("a", "b", "c", "d", "e"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise LatencyModelError(
                    f"coefficient {name} is {value}; refit the model with finite values >= 0"
                )
        if self.b + self.d <= 0:
            raise LatencyModelError("b and d are both 0, so time would not grow with tokens; refit")

    def predict(self, history: int, tokens: int) -> float:
        """Seconds for a chunk of `tokens` after `history` tokens."""
        per_token = self.b + self.c * history + self.d * tokens
        return self.a + self.e * history + tokens * per_token

    def fill(self, history: int, budget_s: float) -> float:
        """The chunk length (real-valued tokens) that takes exactly `budget_s`; 0 if none does.

        The root of Equation 1 in L, in the form that does not cancel, so the paper's Newton
        iteration is not needed.
        """
        spare = budget_s - (self.a + self.e * history)
        if spare <= 0:
            return 0.0
        slope = self.b + self.c * history
        return 2 * spare / (slope + math.sqrt(slope * slope + 4 * self.d * spare))

    def scaled(self, factor: float) -> Coefficients:
        return Coefficients(*(number * factor for number in astuple(self)))


@dataclass(frozen=True)
class LatencyModel:
    """Equation 1 for every profiled SP size, ascending, with where it came from."""

    rows: tuple[tuple[int, Coefficients], ...]
    model: str = "unknown"
    device: str = "unknown"
    tp_size: int = 1
    fit: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        sizes = [sp for sp, _ in self.rows]
        if not sizes:
            raise LatencyModelError("the latency model has no SP size; profile at least SP 1")
        if sizes != sorted(set(sizes)) or sizes[0] < 1:
            raise LatencyModelError(f"SP sizes {sizes} must be positive, unique and ascending")

    @property
    def measured_tokens(self) -> int | None:
        """The longest prompt, history and chunk, that was measured; None if the file is silent."""
        tokens = self.fit.get(MEASURED_KEY)
        known = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0
        return tokens if known else None

    @property
    def sp_sizes(self) -> tuple[int, ...]:
        """The SP sizes that were fitted (others in between are interpolated)."""
        return tuple(sp for sp, _ in self.rows)

    def coefficients(self, sp: int) -> Coefficients:
        """The row of `sp`, interpolated if it lies between two fitted sizes."""
        below: tuple[int, Coefficients] | None = None
        for size, row in self.rows:
            if size == sp:
                return row
            if size > sp:
                if below is None:
                    break
                return _between(below, (size, row), sp)
            below = (size, row)
        raise LatencyModelError(
            f"SP size {sp} lies outside the profiled sizes {list(self.sp_sizes)}; "
            f"profile it, or leave it out of the SP sizes"
        )

    def predict(self, sp: int, history: int, tokens: int) -> float:
        """Seconds to prefill `tokens` after `history` tokens on a group of `sp` instances."""
        return self.coefficients(sp).predict(history, tokens)

    def with_factors(self, factors: Mapping[int, float]) -> LatencyModel:
        """The same model with the rows of some SP sizes multiplied by a factor."""
        rows = tuple((sp, row.scaled(factors.get(sp, 1.0))) for sp, row in self.rows)
        return LatencyModel(rows, self.model, self.device, self.tp_size, self.fit)

    def to_json(self) -> dict[str, Any]:
        """The object of the latency model file (docs/planner.md)."""
        return {
            "model": self.model,
            "device": self.device,
            "tp_size": self.tp_size,
            "sp": {str(size): _named(row) for size, row in self.rows},
            "fit": dict(self.fit),
        }

    @classmethod
    def from_json(cls, data: Any) -> LatencyModel:
        """Reads the file's object; LatencyModelError says which key is wrong."""
        if not isinstance(data, Mapping) or not isinstance(data.get("sp"), Mapping):
            raise LatencyModelError(
                'a latency model is an object with a key "sp" that maps SP sizes to coefficients'
            )
        rows = sorted((_row(key, value) for key, value in data["sp"].items()), key=lambda r: r[0])
        tp_size = data.get("tp_size", 1)
        if not isinstance(tp_size, int) or isinstance(tp_size, bool) or tp_size < 1:
            raise LatencyModelError(f"tp_size is {tp_size!r}; it must be a positive integer")
        fit = data.get("fit", {})
        if not isinstance(fit, Mapping):
            raise LatencyModelError('"fit" must be an object')
        return cls(
            tuple(rows),
            str(data.get("model", "unknown")),
            str(data.get("device", "unknown")),
            tp_size,
            dict(fit),
        )

    def save(self, path: str | Path) -> None:
        """Writes the file that `load` reads."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LatencyModel:
        """Reads a file; LatencyModelError names the file and what is wrong in it."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise LatencyModelError(
                f"{path}: {error.strerror or error}; give a file that `profile` wrote"
            ) from error
        except UnicodeDecodeError as error:
            raise LatencyModelError(f"{path}: not UTF-8 text") from error
        except json.JSONDecodeError as error:
            raise LatencyModelError(
                f"{path}: line {error.lineno}: not JSON: {error.msg}"
            ) from error
        except LatencyModelError as error:
            raise LatencyModelError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:  # numbers or nesting beyond Python's limits
            raise LatencyModelError(f"{path}: not JSON: {error}") from error


def builtin_model(name: str = "llama3-8b-a100") -> LatencyModel:
    """A latency model shipped with the package, by its file name without `.json`."""
    return LatencyModel.load(Path(__file__).parent / "models" / f"{name}.json")


def _row(key: Any, value: Any) -> tuple[int, Coefficients]:
    try:
        sp = int(key)
    except (TypeError, ValueError):
        raise LatencyModelError(f'"sp" has the key {key!r}; SP sizes are integers') from None
    if sp > MOST_INSTANCES:
        raise LatencyModelError(f'"sp" has the key {sp:.0e}; no pool has so many instances')
    if not isinstance(value, Mapping):
        raise LatencyModelError(f"SP {sp}: give an object with a, b, c and d")
    numbers = []
    for name in ("a", "b", "c", "d", "e"):
        number = value.get(name, 0.0 if name == "e" else None)
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise LatencyModelError(f"SP {sp}: coefficient {name} is {number!r}, not a number")
        try:
            numbers.append(float(number))
        except OverflowError:
            raise LatencyModelError(f"SP {sp}: coefficient {name} is too large") from None
    try:
        return sp, Coefficients(*numbers)
    except LatencyModelError as error:
        raise LatencyModelError(f"SP {sp}: {error}") from None


def _named(row: Coefficients) -> dict[str, float]:
    """A row as it stands in a file; e only where there is one."""
    named = {"a": row.a, "b": row.b, "c": row.c, "d": row.d}
    return {**named, "e": row.e} if row.e else named


def _between(
    low: tuple[int, Coefficients], high: tuple[int, Coefficients], sp: int
) -> Coefficients:
    (s0, r0), (s1, r1) = low, high
    step = (sp - s0) / (s1 - s0)
    work = (1 / s0 - 1 / sp) / (1 / s0 - 1 / s1)
    return Coefficients(
        r0.a + step * (r1.a - r0.a),
        r0.b + work * (r1.b - r0.b),
        r0.c + work * (r1.c - r0.c),
        r0.d + work * (r1.d - r0.d),
        r0.e + step * (r1.e - r0.e),
    )
