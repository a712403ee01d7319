"""A move of a request from its home to another instance: how far it is, and what may move."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.protocol.messages import MovedOut


class Step(Enum):
    """How far a move is."""

    READYING = "the target gets ready"
    LEAVING = "the source is to take the request out"
    TRAVELLING = "output and KV are on their way"
    ARRIVED = "the target goes on with it"
    OFF = "it does not come about"


@dataclass(eq=False)
class Move:
    """A move under way.

    Attributes:
        inside: instances that may still have something of it, the lane among it.
        asked_s, left_s: when the target was asked, when the source had taken it out; monotonic.
        ahead: rows of KV that are to go ahead, or need not.
        held: of these, the first ones, which the target has cached.
        rows: of its KV in all.
        left: the source has taken the request out.
        waits: what it has said of that, while other members still hold KV of the request.
        lost: why its source was lost on the way, "" while it was not.
    """

    request: PoolRequest
    seq: int
    source: int
    target: int
    lane: int
    serial: int
    asked_s: float
    step: Step = Step.READYING
    left_s: float = 0.0
    ahead: int = 0
    held: int = 0
    rows: int = 0
    left: bool = False
    waits: MovedOut | None = None
    lost: str = ""
    inside: set[int] = field(default_factory=set)

    @property
    def outdated(self) -> bool:
        """Whether its request has ended where it was, or is to be computed anew."""
        request = self.request
        return request.phase is Phase.ENDED or request.seq != self.seq or request.output.complete


def runs(request: PoolRequest) -> bool:
    """Whether its home alone has a request, which has its first token."""
    if request.phase is Phase.STOCK:
        return request.first_token_s is not None
    return request.phase is Phase.DECODING


def ends_its_plan(request: PoolRequest) -> bool:
    """Whether the last chunk of a request's plan has started, or is over."""
    if request.phase not in (Phase.RUNNING, Phase.DRAINING, Phase.RELEASING):
        return False
    assert request.plan is not None
    return request.next_chunk >= len(request.plan.chunks) - 1


def rows_ahead(request: PoolRequest, page_size: int) -> int:
    """KV rows that can go ahead of a request that moves now, in whole pages.

    All that its last chunk leaves, or that home has as far as is known from what its client has
    seen. Whatever becomes of it, it has as many when it leaves.
    """
    seen = request.prompt_tokens + len(request.output.tokens) - 1
    return max(request.tokens, seen) // page_size * page_size
