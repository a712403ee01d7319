"""What starts and ends the processes of a seat, as an interface.

Nothing here says where the processes are: another implementation may reach those of other machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sglang_cdsp.controller.seats.states import Cause


@dataclass(frozen=True)
class Started:
    """Every rank of a life has said that it is ready.

    Attributes:
        facts: what the leading rank said of itself, as SGLang's schedulers do.
    """

    seat: int
    incarnation: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failing:
    """A life is not whole any more: a rank has ended, or complained. Others of it may still run.

    Attributes:
        words: what is known of it.
        left: what the rank left to say, which is in ``words``, too; "" for nothing.
    """

    seat: int
    incarnation: int
    cause: Cause
    words: str
    left: str = ""


@dataclass(frozen=True)
class Ended:
    """The kernel has confirmed the end of every process of a life: none of it writes any more."""

    seat: int
    incarnation: int


LifeEvent = Started | Failing | Ended


@dataclass(frozen=True)
class Vitals:
    """What can be seen of a life from outside.

    Attributes:
        beats: a counter for each rank, which a thread of its own raises while the rank runs.
        stopped: ids of its processes that somebody has stopped (SIGSTOP).
    """

    beats: tuple[int, ...]
    stopped: tuple[int, ...] = ()


class Launcher(Protocol):
    """Starts and ends the lives of all seats. Nothing waits. Used by one thread."""

    def start(self, seat: int, incarnation: int, slots: int | None) -> None:
        """Start the processes of a seat's next life; the seat must be empty.

        Args:
            slots: KV slots that it shall have, in tokens; None for as many as fit.
        """

    def end(self, seat: int) -> None:
        """Kill every process of the seat's life; ``Ended`` follows. Safe to call twice."""

    def poll(self) -> list[LifeEvent]:
        """What has happened since; of a life ``Ended`` comes last, and once."""

    def vitals(self, seat: int) -> Vitals | None:
        """How the seat's life looks; None while none runs."""
