"""What a run gave."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.types import Record


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    records: in arrival order. end_s: when the last request ended. busy_s: per prefill instance,
    seconds of chunks. peak_slots: per prefill instance, most KV slots promised at once.
    decode_busy_s, decode_peak_slots: per decode instance; in the unified form decode_busy_s is per
    instance of the pool and decode_peak_slots is empty; so in one server. events: how many were
    simulated. moved_tokens: prompt tokens whose KV went to a home outside the group that prefilled
    it (one server). reused_tokens: prompt tokens that were cached and not computed. cached_tokens:
    those that some instance had when their request was bound. evicted_blocks: of the caches.
    copied_tokens: whose KV was copied from one cache to another. hot_copies: copies of what was
    asked for often.
    """

    setup: Setup
    records: tuple[Record, ...]
    end_s: float
    busy_s: tuple[float, ...]
    peak_slots: tuple[int, ...]
    decode_busy_s: tuple[float, ...]
    decode_peak_slots: tuple[int, ...]
    events: int
    moved_tokens: int = 0
    reused_tokens: int = 0
    cached_tokens: int = 0
    evicted_blocks: int = 0
    copied_tokens: int = 0
    hot_copies: int = 0

    @property
    def idle_fraction(self) -> float:
        """Mean over the prefill instances of the fraction of the run spent without a chunk."""
        if self.end_s <= 0:
            return 1.0
        return 1 - sum(self.busy_s) / (len(self.busy_s) * self.end_s)
