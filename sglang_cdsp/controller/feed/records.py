"""A request as the page at ``/cdsp`` shows it, in JSON types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_log import LONGEST_RID, LONGEST_WORDS, shown
from sglang_cdsp.planner.explanation import short

MOST_REPLANS = 8
"""So many changes of a plan are shown, the last ones."""
MOST_MOVES = 8
"""So many ways from one home to another are shown, the last ones."""

STATES = {
    Phase.ARRIVED: "waits for decode",
    Phase.WAITING: "waits for a plan",
    Phase.BOUND: "queued",
    Phase.RUNNING: "computing",
    Phase.STOCK: "batched",
    Phase.DRAINING: "ending",
    Phase.RELEASING: "ending",
    Phase.DECODING: "decoding",
}
"""What is said of a request that has not ended, by phase."""


@dataclass(frozen=True)
class Started:
    """A chunk that was ordered to start.

    Attributes:
        seq, chunk: of its plan, and its place in that.
        at_s: when, monotonic seconds.
    """

    seq: int
    chunk: int
    at_s: float

    def of(self, request: PoolRequest, chunk: int) -> bool:
        """Whether it is that chunk of a request's present plan."""
        return (self.seq, self.chunk) == (request.seq, chunk)


def state_of(request: PoolRequest, *, ended: bool = False) -> str:
    """Where a request is, in a word or two; of one that has ended, its outcome."""
    if ended:
        return request.outcome
    if request.phase is Phase.STOCK and request.first_token_s is not None:
        return "decoding"
    return STATES.get(request.phase, "ending")


def waiting_record(request: PoolRequest, number: int) -> dict[str, Any]:
    """A request without a plan; times in monotonic seconds."""
    return {
        "n": number,
        "rid": shown(request.rid, LONGEST_RID),
        "tokens": request.prompt_tokens,
        "arrival_s": round(request.arrival_s, 4),
        "state": state_of(request),
    }


def record(
    request: PoolRequest,
    number: int,
    *,
    why: dict[str, Any] | None = None,
    started: Started | None = None,
    ended_s: float | None = None,
) -> dict[str, Any]:
    """A request with what is known of its plan; times in monotonic seconds, None for none yet.

    Args:
        number: tells it from others, which may have had its id.
        why: it got its plan, see ``Reasons``.
        started: its last chunk that was ordered to start, of which members may not have told yet.
        ended_s: when it ended.
    """
    return {
        **waiting_record(request, number),
        "state": state_of(request, ended=ended_s is not None),
        "policy": request.policy,
        "bound_s": _rounded(request.bound_s if request.plan else None),
        "home": request.home if request.plan else None,
        "passes": request.plan.passes if request.plan else False,
        "one_instance": request.one_instance,
        "reused": request.plan.reused if request.plan else 0,
        "chunk": request.next_chunk,
        "chunks": _chunks(request, started),
        "due_s": _rounded(request.bound_s + request.plan.ttft_s if request.plan else None),
        "first_token_s": _rounded(request.first_token_s),
        "decodes": request.decodes,
        "output_tokens": len(request.output.tokens) if request.decodes else None,
        "last_token_s": _rounded(request.last_token_s),
        "ended_s": _rounded(ended_s),
        "recalls": request.recalls,
        "moved": len(request.moves),
        "moves": _moves(request),
        "replans": [
            {
                "at_s": _rounded(change.at_s),
                "reason": shown(change.reason, LONGEST_WORDS),
                "before": short(change.before),
                "after": short(change.after),
            }
            for change in request.replans[-MOST_REPLANS:]
        ],
        "error": shown(request.error, LONGEST_WORDS),
        "why": why,
    }


def _chunks(request: PoolRequest, started: Started | None) -> list[dict[str, Any]]:
    chunks: list[dict[str, Any]] = []
    for index, chunk in enumerate(request.plan.chunks if request.plan else ()):
        times = request.times[index] if index < len(request.times) else None
        runs = request.phase is Phase.RUNNING and index == request.next_chunk
        start_s, end_s = (times.start_s, times.end_s) if times else (None, None)
        if start_s is None and started is not None and started.of(request, index):
            start_s = started.at_s
        chunks.append(
            {
                "tokens": chunk.tokens,
                "instances": list(chunk.instances),
                "planned": [
                    _rounded(request.bound_s + chunk.start_s),
                    _rounded(request.bound_s + chunk.end_s),
                ],
                # Members tell one by one: while one still runs, so does the chunk.
                "ran": [
                    _rounded(start_s),
                    None if runs else _rounded(end_s),
                ],
                "passed_s": _rounded(times.passed_s) if times else 0.0,
            }
        )
    return chunks


def _moves(request: PoolRequest) -> list[dict[str, Any]]:
    """The last ways of a running request to another home; those of former plans, too."""
    return [
        {
            "from": move.source,
            "to": move.target,
            "tokens": move.rows,
            "asked_s": _rounded(move.asked_s),
            "left_s": _rounded(move.left_s),
            "arrived_s": _rounded(move.arrived_s),
        }
        for move in request.moves[-MOST_MOVES:]
    ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
