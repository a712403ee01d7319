"""Where a seat is, and how lives on it end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SeatState(Enum):
    """Where a seat is between two lives."""

    STARTING = "starting"
    """Its processes come up."""
    JOINING = "joining"
    """They have greeted; links are made, and probes run."""
    UP = "up"
    DRAINING = "draining"
    """It takes no new work and finishes what it has."""
    ENDING = "ending"
    """Its processes are killed; the kernel has not confirmed their end yet."""
    DOWN = "down"


class Cause(Enum):
    """Why a life was given up."""

    ENDED = "ended"
    STOPPED = "stopped"
    SILENT = "silent"
    COMPLAINED = "complained"
    """It sent SIGQUIT: an exception in its loop, or its own watchdog."""
    UNFIT = "unfit"
    """It came up and cannot take part."""


LIVING = frozenset({SeatState.STARTING, SeatState.JOINING, SeatState.UP, SeatState.DRAINING})
PRESENT = frozenset({SeatState.JOINING, SeatState.UP, SeatState.DRAINING})
"""States in which a seat hears orders."""


@dataclass(frozen=True)
class Death:
    """A life that was given up.

    Attributes:
        at_s: when.
        incarnation: which life of the seat.
        cause: how it was told.
        words: what is known of it.
    """

    at_s: float
    incarnation: int
    cause: Cause
    words: str
