"""The simulator's plain data. Times are seconds since the run's start; lengths are tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from sglang_cdsp.planner.types import PlannedChunk


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload."""

    rid: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a request; times are None when it did not get that far.

    chunks: as they ran, absolute times. bound_s: when it got its plan. first_token_s: home sampled
    the first token. transferred_s: all its KV is at decode. decode_s: it joined decode's batch.
    token_gaps_s: every gap between two of its output tokens. error: why it failed, "" if not.
    """

    request: Request
    bound_s: float | None = None
    chunks: tuple[PlannedChunk, ...] = ()
    first_token_s: float | None = None
    transferred_s: float | None = None
    decode_instance: int | None = None
    decode_s: float | None = None
    end_s: float | None = None
    token_gaps_s: tuple[float, ...] = field(default=(), repr=False)
    error: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, None if it never came."""
        if self.first_token_s is None:
            return None
        return self.first_token_s - self.request.arrival_s
