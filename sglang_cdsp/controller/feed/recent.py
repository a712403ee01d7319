"""What happened to the pool's requests and seats lately, kept in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.feed.records import Started, record
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_log import LONGEST_WORDS, shown
from sglang_cdsp.planner.roles import Roles

MOST_ENDED = 400
"""Ended requests that are kept."""
MOST_SEAT_CHANGES = 100
MOST_ROLE_CHANGES = 200
"""Seats that got another role and are remembered."""


@dataclass
class _Kept:
    """What is kept of a request beside itself.

    Attributes:
        number: tells it from all others.
        why: it got its plan, in JSON types.
        started: its last chunk that was ordered to start.
        seen: what was last seen of it, to tell whether it has changed.
        version: of that.
    """

    number: int
    why: dict[str, Any] | None = None
    started: Started | None = None
    seen: tuple[Any, ...] = ()
    version: int = 0


@dataclass(frozen=True)
class Versioned:
    """Something in JSON types, and when it became so among all that is shown."""

    version: int
    body: dict[str, Any]


class Recent(Observer):
    """Remembers ended requests and changes of seats and roles, and numbers requests.

    Each change gets the next version, so that whoever has seen all up to one version is told only
    what came later. Requests that have not ended are looked at only when somebody asks.
    """

    def __init__(
        self,
        explain: Callable[[PoolRequest], dict[str, Any] | None],
        clock: Callable[[], float],
        *,
        most_ended: int = MOST_ENDED,
    ) -> None:
        """Start with nothing.

        Args:
            explain: says why a request got its plan, in JSON types.
            clock: monotonic seconds.
            most_ended: so many ended requests are kept.
        """
        self._explain = explain
        self._clock = clock
        self._kept: WeakKeyDictionary[PoolRequest, _Kept] = WeakKeyDictionary()
        self._numbers = 0
        self._version = 0
        self._ended: deque[Versioned] = deque(maxlen=most_ended)
        self._seats: deque[Versioned] = deque(maxlen=MOST_SEAT_CHANGES)
        self._turned: deque[Versioned] = deque(maxlen=MOST_ROLE_CHANGES)
        self._roles: Roles | None = None
        self._computed_tokens = 0
        self._ends = 0

    # -- told by the life cycle -----------------------------------------------------------

    def bound(self, request: PoolRequest) -> None:
        """A request got its plan."""
        if not request.probe:
            self._of(request).why = self._explain(request)

    def chunk_started(self, request: PoolRequest) -> None:
        """The request's next chunk was ordered to start."""
        if not request.probe:
            chunk = Started(request.seq, request.next_chunk, self._clock())
            self._of(request).started = chunk

    def ended(self, request: PoolRequest) -> None:
        """A request is over."""
        if request.probe:
            return
        kept = self._of(request)
        body = record(
            request, kept.number, why=kept.why, started=kept.started, ended_s=self._clock()
        )
        self._ended.append(Versioned(self.next_version(), body))
        self._computed_tokens += computed_tokens(request)
        self._ends += 1

    def seat_changed(self, seat: int, incarnation: int, state: str, why: str) -> None:
        """A seat is in another state now."""
        body = {
            "seat": seat,
            "at_s": round(self._clock(), 4),
            "state": state,
            "why": shown(why, LONGEST_WORDS),
        }
        self._seats.append(Versioned(self.next_version(), body))

    def has_roles(self, roles: Roles) -> None:
        """The seats have these roles to begin with, which is no change."""
        self._roles = roles

    def roles_changed(self, roles: Roles, why: str) -> None:
        """The seats have other roles: those that turned are remembered, one by one."""
        before, self._roles = self._roles, roles
        if before is None:
            return
        at_s, words = round(self._clock(), 4), shown(why, LONGEST_WORDS)
        for seat, (was, role) in enumerate(zip(before.seats, roles.seats, strict=True)):
            if was is role:
                continue
            body = {
                "seat": seat,
                "at_s": at_s,
                "before": was.value,
                "role": role.value,
                "why": words,
            }
            self._turned.append(Versioned(self.next_version(), body))

    # -- asked by the feed ----------------------------------------------------------------

    @property
    def version(self) -> int:
        """Of the last change."""
        return self._version

    def next_version(self) -> int:
        """The version of a change that happens now."""
        self._version += 1
        return self._version

    @property
    def ends(self) -> int:
        """Requests that have ended so far."""
        return self._ends

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that were computed of ended requests."""
        return self._computed_tokens

    def number(self, request: PoolRequest) -> int:
        """What tells a request from all others, its id's later users among them."""
        return self._of(request).number

    def changed(self, request: PoolRequest) -> int:
        """The version of the last change that anybody saw of a request with a plan."""
        kept = self._of(request)
        seen = (
            request.phase,
            request.seq,
            request.revision,
            request.next_chunk,
            request.first_token_s,
            len(request.output.tokens),
            len(request.moves),
            request.error,
        )
        if seen != kept.seen:
            kept.seen, kept.version = seen, self.next_version()
        return kept.version

    def live(self, request: PoolRequest) -> dict[str, Any]:
        """A request that has a plan."""
        kept = self._of(request)
        return record(request, kept.number, why=kept.why, started=kept.started)

    def ended_since(self, version: int) -> Iterator[Versioned]:
        """Requests that have ended after a version, oldest first."""
        return (ended for ended in self._ended if ended.version > version)

    def seats_since(self, version: int) -> Iterator[Versioned]:
        """Changes of seats after a version, oldest first."""
        return (change for change in self._seats if change.version > version)

    def turned_since(self, version: int) -> Iterator[Versioned]:
        """Seats that got another role after a version, oldest first."""
        return (change for change in self._turned if change.version > version)

    def _of(self, request: PoolRequest) -> _Kept:
        kept = self._kept.get(request)
        if kept is None:
            self._numbers += 1
            kept = self._kept[request] = _Kept(self._numbers)
        return kept


def computed_tokens(request: PoolRequest) -> int:
    """Prompt tokens of a request that were computed, none from a cache, as far as is known."""
    if request.plan is None:
        return 0
    if request.one_instance:
        return request.plan.tokens if request.first_token_s is not None else 0
    return sum(chunk.tokens for chunk in request.plan.chunks[: request.next_chunk])
