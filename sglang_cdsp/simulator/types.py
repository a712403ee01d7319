"""The simulator's plain data. Times are seconds since the run's start; lengths are tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from sglang_cdsp.planner.types import PlannedChunk

TokenGaps = tuple[tuple[float, int], ...]
"""Runs of (mean gap in seconds, how many gaps), in order."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload; `output_tokens` counts the first token, so it is at least 1.

    `blocks` name its prompt's whole blocks of tokens, and may go on with its answer's. A name
    stands for all tokens up to the block's end: requests that share one share all before it.
    """

    rid: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of a request; times are None when it did not get that far.

    chunks: as they ran, absolute times. bound_s: when it got its plan. first_token_s: home sampled
    the first token. transferred_s: all its KV is at decode. decode_s: it joined decode's batch.
    token_gaps_s: the gaps between its output tokens as runs, read with `gaps`. The first gap
    reaches from home's token to decode's first and so contains the KV transfer. error: why it
    failed, "" if not. passed: it ran between the layers of others. stood_s: seconds that each of
    its chunks stood still for prompts that passed; empty if none did. replanned: how often the
    rest of it got another plan. reused: cached prompt tokens that were not computed. cached: those
    that some instance had when it was bound.
    """

    request: Request
    bound_s: float | None = None
    chunks: tuple[PlannedChunk, ...] = ()
    first_token_s: float | None = None
    transferred_s: float | None = None
    decode_instance: int | None = None
    decode_s: float | None = None
    end_s: float | None = None
    token_gaps_s: TokenGaps = field(default=(), repr=False)
    error: str = ""
    passed: bool = False
    stood_s: tuple[float, ...] = ()
    replanned: int = 0
    reused: int = 0
    cached: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, None if it never came."""
        if self.first_token_s is None:
            return None
        return self.first_token_s - self.request.arrival_s


def gaps(record: Record) -> TokenGaps:
    """The gaps between a request's output tokens: runs of (seconds, count), in order.

    Counts sum to `output_tokens - 1` for a request that ended well, and seconds times count to the
    time from its first token to its end. Within a run the batch is the same and each iteration
    reads a few tokens more than the one before; the run's mean stands for them all, which is off
    by (decode model's c) * batch * count / 2 at most.
    """
    return record.token_gaps_s
