"""Which improvement rate applies now: from a table by arrival rate (Tetris's regulation).

The arrival rate is counted over a sliding window; every `period_s` seconds the entry with the
nearest arrival rate is looked up. Refreshing happens inside the planning call, so no timer runs.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang_cdsp.planner.errors import OptionError, UpdateError

MAPPING_KEY = "improvement_rate_mapping"
SIZES_KEY = "sp_size_candidates"
PERIOD_KEY = "improvement_rate_update_period"

LEAST_SPAN_S = 1.0
"""Over less time than this no arrival rate is reckoned."""


@dataclass(frozen=True, slots=True)
class Regulation:
    """The settings of the regulation, all of which an update may change.

    mapping: (arrival rate in requests/s, improvement rate in [0, 1)), ascending by arrival rate.
    sp_sizes: candidate SP sizes, ascending. period_s: seconds between look-ups.
    """

    mapping: tuple[tuple[float, float], ...]
    sp_sizes: tuple[int, ...]
    period_s: float = 30.0

    def nearest(self, arrival_rate: float) -> float:
        """The improvement rate of the nearest entry; a tie goes to the lower arrival rate."""
        return min(self.mapping, key=lambda entry: (abs(entry[0] - arrival_rate), entry[0]))[1]


def parse_regulation(
    update: Mapping[str, Any], current: Regulation, allowed_sizes: Iterable[int]
) -> Regulation:
    """`current` with the update's keys replaced; UpdateError names the first bad key or value."""
    if not isinstance(update, Mapping):
        raise UpdateError("an update is an object; give at least one of the known keys")
    known = (MAPPING_KEY, SIZES_KEY, PERIOD_KEY)
    for key in update:
        if key not in known:
            raise UpdateError(f"unknown key {key!r}; known keys are {', '.join(known)}")
    if not update:
        raise UpdateError(f"the update is empty; give at least one of {', '.join(known)}")
    result = current
    if MAPPING_KEY in update:
        result = replace(result, mapping=_mapping(update[MAPPING_KEY]))
    if SIZES_KEY in update:
        result = replace(result, sp_sizes=_sizes(update[SIZES_KEY], frozenset(allowed_sizes)))
    if PERIOD_KEY in update:
        period = _number(update[PERIOD_KEY], PERIOD_KEY)
        if period <= 0:
            raise UpdateError(f"{PERIOD_KEY} is {period}; give seconds greater than 0")
        result = replace(result, period_s=period)
    return result


class Regulator:
    """The regulation in force, the arrivals seen, and the improvement rate now."""

    def __init__(
        self,
        regulation: Regulation,
        *,
        allowed_sizes: Iterable[int] | None = None,
        initial_rate: float | None = None,
        window_s: float | None = None,
    ) -> None:
        """`initial_rate` holds until the first look-up (default: the lowest arrival rate's).

        `allowed_sizes` are the SP sizes that updates may choose from (default: the ones given).
        `window_s` is the length of the sliding window (default: the update period).
        """
        if not regulation.mapping or not regulation.sp_sizes:
            raise UpdateError("a regulation needs at least one mapping entry and one SP size")
        self._regulation = regulation
        self._allowed = frozenset(allowed_sizes or regulation.sp_sizes)
        self._rate = regulation.mapping[0][1] if initial_rate is None else initial_rate
        self._window_s = window_s
        self._arrivals: deque[float] = deque()
        self._started_s: float | None = None
        self._refreshed_s: float | None = None
        self._arrival_rate = 0.0
        self._updates = 0

    @property
    def sp_sizes(self) -> tuple[int, ...]:
        """The candidate SP sizes in force."""
        return self._regulation.sp_sizes

    @property
    def window_s(self) -> float:
        """Length of the sliding window in seconds."""
        return self._window_s or self._regulation.period_s

    def observe_arrival(self, now_s: float) -> None:
        """Counts one request; times must not go backwards."""
        if self._started_s is None:
            self._started_s = now_s
        self._arrivals.append(now_s)
        self._forget(now_s)

    @property
    def rate(self) -> float:
        """The improvement rate in force, as of the last refresh."""
        return self._rate

    def refresh(self, now_s: float) -> float:
        """The rate to plan with; looks it up again when the period has passed."""
        if self._started_s is None:
            self._started_s = now_s
        since = self._started_s if self._refreshed_s is None else self._refreshed_s
        if now_s - since >= self._regulation.period_s:
            self._refreshed_s = now_s
            self._arrival_rate = self.arrival_rate(now_s)
            self._rate = self._regulation.nearest(self._arrival_rate)
        return self._rate

    def arrival_rate(self, now_s: float) -> float:
        """Requests per second over the window, or over the time since the start if shorter.

        But over ``LEAST_SPAN_S``: a first request is no load of hundreds a second.
        """
        self._forget(now_s)
        started = now_s if self._started_s is None else self._started_s
        span = min(self.window_s, max(now_s - started, LEAST_SPAN_S))
        return len(self._arrivals) / span

    def update(self, update: Mapping[str, Any]) -> None:
        """Applies an update whole, or raises UpdateError and changes nothing."""
        self._regulation = parse_regulation(update, self._regulation, self._allowed)
        self._updates += 1
        if MAPPING_KEY in update:
            self._rate = self._regulation.nearest(self._arrival_rate)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """The state for status pages, in JSON types."""
        return {
            "improvement_rate": self._rate,
            "arrival_rate": self.arrival_rate(now_s),
            "arrival_rate_at_refresh": self._arrival_rate,
            "arrivals_in_window": len(self._arrivals),
            "window_s": self.window_s,
            "last_refresh_s": self._refreshed_s,
            "updates": self._updates,
            MAPPING_KEY: {str(arrival): rate for arrival, rate in self._regulation.mapping},
            SIZES_KEY: list(self._regulation.sp_sizes),
            PERIOD_KEY: self._regulation.period_s,
        }

    def _forget(self, now_s: float) -> None:
        edge = now_s - self.window_s
        while self._arrivals and self._arrivals[0] <= edge:
            self._arrivals.popleft()


def make_regulator(
    sizes: tuple[int, ...], rate: float, table: Mapping[str, Any] | None = None
) -> Regulator:
    """A pool's regulator: by the table of arrival rates, or one improvement rate for every load.

    Raises:
        UpdateError: the table is not one.
    """
    regulation = Regulation(((0.0, rate),), sizes)
    if table is not None:
        regulation = parse_regulation({MAPPING_KEY: table}, regulation, sizes)
    return Regulator(regulation, allowed_sizes=sizes)


def read_rates(path: Path, flag: str) -> Mapping[str, Any]:
    """A table of improvement rates from a file: the mapping itself, or an object that holds one.

    What is in it is checked by whoever applies it (`parse_regulation`).

    Raises:
        OptionError: the file cannot be read or is not JSON; names it after `flag`.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"{flag} {path}: {error.strerror or error}; give a file that `tune` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{flag} {path}: not JSON: {error}") from error
    return data.get(MAPPING_KEY, data) if isinstance(data, dict) else data


def _mapping(value: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, Mapping) or not value:
        raise UpdateError(f"{MAPPING_KEY} must map arrival rates to improvement rates")
    entries: dict[float, float] = {}
    for key, rate in value.items():
        try:
            arrival = float(key)
        except (TypeError, ValueError):
            raise UpdateError(f"{MAPPING_KEY}: arrival rate {key!r} is not a number") from None
        if not math.isfinite(arrival) or arrival < 0:
            raise UpdateError(f"{MAPPING_KEY}: arrival rate {key!r} must be finite and >= 0")
        if arrival in entries:
            raise UpdateError(f"{MAPPING_KEY}: arrival rate {key!r} appears twice")
        number = _number(rate, f"{MAPPING_KEY}[{key!r}]")
        if not 0 <= number < 1:
            raise UpdateError(f"{MAPPING_KEY}[{key!r}] is {number}; it must be in [0, 1)")
        entries[arrival] = number
    return tuple(sorted(entries.items()))


def _sizes(value: Any, allowed: frozenset[int]) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise UpdateError(f"{SIZES_KEY} must be a list of at least one SP size")
    for size in value:
        if not isinstance(size, int) or isinstance(size, bool) or size not in allowed:
            raise UpdateError(
                f"{SIZES_KEY}: {size!r} is not one of the SP sizes this pool can run: "
                f"{sorted(allowed)}"
            )
    if len(set(value)) != len(value):
        raise UpdateError(f"{SIZES_KEY} repeats an SP size")
    return tuple(sorted(value))


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond every float
        pass
    raise UpdateError(f"{name} is {value!r}; give a finite number")
