"""One copy of a cached prefix from one instance's cache to another's."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from sglang_cdsp.controller.prefixes.hashes import PageHashes


class Reason(Enum):
    """What a prefix is copied for."""

    PLAN = "plan"  # a plan starts from it at its target
    USE = "use"  # it is asked for so often that one more instance should have it


class Step(Enum):
    """How far a copy is."""

    READYING = "the target gets ready"
    TRAVELLING = "its KV is on its way"
    OFF = "it does not come about"


@dataclass(eq=False)
class Copy:
    """A copy that is under way, or over.

    Attributes:
        number: below zero; no task has it.
        pages: of the prefix, and no more.
        tokens: of the prefix, whole pages.
        lane, serial: the buffers of the links that are promised to it.
        asked_s: when the target was asked to get ready, monotonic.
        held: tokens of it that the target had already.
        inside: instances that may still have something of it, the lane among it.
        arrived_s: when it was in the target's cache, monotonic; None before, and if it never was.
        error: why it does not arrive, "" while it may.
    """

    number: int
    reason: Reason
    source: int
    target: int
    pages: PageHashes
    tokens: int
    lane: int
    serial: int
    asked_s: float
    step: Step = Step.READYING
    held: int = 0
    inside: set[int] = field(default_factory=set)
    arrived_s: float | None = None
    error: str = ""

    @property
    def travelling(self) -> int:
        """Tokens whose KV travels, as far as is known."""
        return self.tokens - self.held
