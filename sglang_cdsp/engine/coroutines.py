"""Forwards that give way: each runs in a greenlet and hands the loop back at its layer boundaries.

A scheduler's loop stays SGLang's. Once a turn it lets these coroutines go on for a bounded stretch
of time; in between it reads messages and runs stock batches. Nothing here knows what a coroutine
computes.

The tensor-parallel ranks of an instance have the same coroutines in the same order and switch
alike: before each switch they agree on what is ready everywhere, and what rests on a clock is the
leader's word. So no rank waits inside a collective for one that runs another coroutine.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

from sglang_cdsp.engine.meters import HostMeter, Meter

logger = logging.getLogger(__name__)

Ready = Callable[[], bool]
"""Whether what a coroutine waits for is there. An exception fails the coroutine."""

SHORTEST_SLEEP_S, LONGEST_SLEEP_S = 0.00005, 0.0005
"""Pauses between two looks at what others send, while nothing here can go on."""

LONGEST_WAIT_S = 0.005
"""After this time without anything to run the loop gets its turn."""

PRESSED_S = 0.1
"""From this length on a stretch ends where more than decode waits for the loop: orders for a short
prompt that passes, say, which a stretch that decode allows must not keep for a second."""

LONG_PIECE_S = 0.1
"""Pieces from this length on are not begun while something else is about to go on."""

PIECES = 64
"""So many of the last pieces are looked at."""

_FAILED, _WAITS, _READY = 0, 1, 2

_OVER, _URGENT, _ALL = 0, 1, 2
"""Who may still go on in a stretch: nobody, who is more urgent than usual, everybody."""

USUAL = 0.0
"""First number of the order of what is not urgent."""


class StoppedError(RuntimeError):
    """Thrown into a coroutine that is not to go on; its text says why."""


class Surroundings(Protocol):
    """Process-wide state that a forward sets and reads: every coroutine has its own."""

    def take(self) -> Any:
        """Return the state as it is now."""

    def put(self, state: Any, /) -> None:
        """Make a state that ``take`` returned the present one."""


class Ranks(Protocol):
    """The agreement of an instance's tensor-parallel ranks."""

    size: int

    def least(self, numbers: Sequence[int], /) -> list[int]:
        """Return the least of each number over all ranks, which all call it."""


@dataclass(eq=False)
class Coroutine:
    """A suspended or running piece of work.

    Attributes:
        name: what it is, for logs and status.
        order: its place, the least goes first; alike at all ranks of the instance and at all
            members of its group. While one with a smaller first number lives, others stand still.
        ready: what it waits for; None when it only gave way.
        failure: why it cannot go on, "" while it can.
        since_s: when it gave way last, monotonic seconds.
        passed_s: seconds since its start in which something else was computed here.
        gave_way: how often something else was computed here before it went on.
        aside: it goes on whenever it can, in short pieces, and nobody stands still for it: it
            waits most of the time, for others that would wait for it in turn.
    """

    name: str
    order: tuple[float, ...]
    state: Any
    body: greenlet = field(repr=False)
    ready: Ready | None = None
    failure: str = ""
    since_s: float = 0.0
    passed_s: float = 0.0
    gave_way: int = 0
    aside: bool = False


class Coroutines:
    """All coroutines of one rank, and which of them goes on."""

    def __init__(
        self,
        *,
        surroundings: Surroundings,
        ranks: Ranks,
        leads: bool,
        stretch_s: float,
        poll: Callable[[], object] = lambda: None,
        interrupted: Callable[[], bool] = lambda: False,
        pressed: Callable[[], bool] = lambda: False,
        expected: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        meter: Meter | None = None,
        shake: random.Random | None = None,
    ) -> None:
        """Start with none.

        Args:
            surroundings: the process-wide state that is exchanged at each switch.
            ranks: of this instance; alone, nothing is exchanged.
            leads: whether this rank's clock counts.
            stretch_s: longest time between two turns of the loop, as far as coroutines give way.
            poll: moves on what others send.
            interrupted: whether the loop has something to do while all coroutines wait.
            pressed: whether more than decode waits for the loop; the leader's answer counts.
            expected: whether something else is about to begin or to end: what is not urgent
                stands still meanwhile, if its pieces are long. The leader's answer counts.
            clock: monotonic seconds.
            meter: what the stretches of coroutines are measured by; the clock by default.
            shake: for tests: switch at every point, to a coroutine drawn from this; seeded alike
                at all ranks.
        """
        self._surroundings = surroundings
        self._ranks = ranks
        self._leads = leads
        self.stretch_s = stretch_s
        """Longest time between two turns of the loop; may be changed between turns."""
        self._poll = poll
        self._interrupted = interrupted
        self._pressed = pressed
        self._expected = expected
        self._clock = clock
        self._meter = meter or HostMeter(clock)
        self._shake = shake
        self._stretches: deque[tuple[tuple[Coroutine, ...], Callable[[], float | None]]] = deque()
        self._pieces: deque[float] = deque(maxlen=PIECES)
        self._live: list[Coroutine] = []
        self._current: Coroutine | None = None
        self._last: Coroutine | None = None
        self._main: greenlet | None = None
        self._end_s = self._pressed_s = 0.0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def computes(self) -> bool:
        """Whether any coroutine is more than aside."""
        return any(not coroutine.aside for coroutine in self._live)

    def start(
        self,
        name: str,
        order: tuple[float, ...],
        work: Callable[[], None],
        *,
        aside: bool = False,
    ) -> Coroutine:
        """Add a coroutine that runs ``work`` from the next turn on.

        ``work`` calls :meth:`give_way` before anything else, and ``StoppedError`` may come out of
        any of these calls. It handles its own errors: what it raises ends the loop.

        ``aside``: as in ``Coroutine``. Such a one comes first whenever it is ready, so its order
        only counts among its like.
        """
        body = greenlet(work)
        # A greenlet begins with an empty context, in which every ContextVar has its default.
        body.gr_context = copy_context()
        coroutine = Coroutine(
            name, order, self._surroundings.take(), body, since_s=self._clock(), aside=aside
        )
        self._live.append(coroutine)
        self._live.sort(key=lambda other: (not other.aside, other.order))
        return coroutine

    def stop(self, coroutine: Coroutine, reason: str) -> None:
        """End a suspended coroutine now, by an exception where it gave way; alike at all ranks."""
        if coroutine in self._live:
            coroutine.failure = coroutine.failure or reason
            self._resume(coroutine)

    # -- from inside a coroutine ----------------------------------------------------------

    def give_way(self, ready: Ready | None = None) -> None:
        """Let others go on; return when it is this coroutine's turn and ``ready()`` is true.

        Outside of a coroutine it polls until ``ready()`` is true.

        Raises:
            StoppedError: the coroutine is not to go on, or ``ready`` raised.
        """
        current = self._current
        if current is None or getcurrent() is not current.body:
            self._wait_in_place(ready)
            return
        if current.failure:
            raise StoppedError(current.failure)
        current.ready, current.since_s = ready, self._clock()
        if not self._may_go_on(current):
            self._switch_out()
        current.ready = None

    def fail(self, failure: str) -> None:
        """Suspend the running coroutine for good: ``StoppedError`` comes out of this, at all ranks.

        A rank that left alone would leave its partners waiting in the model's next collective.
        """
        current = self._current
        if current is None or getcurrent() is not current.body:
            raise StoppedError(failure)
        current.failure = failure
        self._switch_out()

    def _may_go_on(self, current: Coroutine) -> bool:
        """Whether a switch can be saved: never with partners, who switch at the same points."""
        if self._ranks.size > 1 or self._shake is not None or self._is_over():
            return False
        self._poll()
        if self._stands_still(current) or (self._held_back(current) and self._holds()):
            return False
        earlier = self._live[: self._live.index(current)]
        if any(self._standing(other) != _WAITS for other in earlier):
            return False
        return self._standing(current) == _READY

    def _stands_still(self, coroutine: Coroutine) -> bool:
        """Whether it leaves the instance to a more urgent one, even while that one waits.

        That waits for a partner at every layer; a piece of a long chunk in between would delay it
        by as much each time, at every member of its group.
        """
        if self._shake is not None or coroutine.aside:
            return False
        first = next(other for other in self._live if not other.aside)
        return first.order[0] < coroutine.order[0]

    def _held_back(self, coroutine: Coroutine) -> bool:
        """Whether it stands still while something else is expected."""
        return self._shake is None and not coroutine.aside and coroutine.order[0] >= USUAL

    def _holds(self) -> bool:
        """Whether something is expected that a piece of a coroutine here would delay for long."""
        return max(self._pieces, default=0.0) >= LONG_PIECE_S and self._expected()

    def _switch_out(self) -> None:
        assert self._main is not None
        self._main.switch()

    def _wait_in_place(self, ready: Ready | None) -> None:
        pause_s = SHORTEST_SLEEP_S
        while ready is not None and not ready():
            self._poll()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_SLEEP_S)

    # -- from the loop --------------------------------------------------------------------

    def turn(self) -> bool:
        """Let coroutines go on for one stretch; whether any did.

        While all of them wait, it waits for a moment too, unless the loop has something to do.
        """
        if not self._live:
            return False
        begins_s = self._clock()
        self._end_s, self._pressed_s = begins_s + self.stretch_s, begins_s + PRESSED_S
        ran = False
        while self._live:
            self._poll()
            chosen = self._choose(first=not ran)
            if chosen is None:
                break
            self._resume(chosen)
            ran = True
        if not ran:
            self._wait()
        return ran

    def passed(self, seconds: float) -> None:
        """Something else was computed here for so long while all of them stood."""
        for coroutine in self._live:
            coroutine.passed_s += seconds
        self._gives_way()

    def passed_s(self, coroutine: Coroutine) -> float:
        """Seconds since its start in which something else was computed here, as far as known."""
        self._account()
        return coroutine.passed_s

    def _gives_way(self, to: Coroutine | None = None) -> None:
        """Count that who ran last stands aside for another."""
        if self._last is not None and self._last is not to:
            self._last.gave_way += 1
        self._last = to

    def _account(self) -> None:
        """Count the stretches of others whose lengths have become known."""
        while self._stretches and (seconds := self._stretches[0][1]()) is not None:
            others, _ = self._stretches.popleft()
            for other in others:
                other.passed_s += seconds

    def snapshot(self) -> list[dict[str, Any]]:
        """What is under way, JSON-ready: names, and since when each has not run, in seconds."""
        now_s = self._clock()
        return [
            {"name": c.name, "waits": c.ready is not None, "for_s": now_s - c.since_s}
            for c in self._live
        ]

    def _choose(self, *, first: bool) -> Coroutine | None:
        """The coroutine to go on, the same at all ranks; None when the stretch is over."""
        standings = [self._standing(coroutine) for coroutine in self._live]
        who = self._who_may_go_on(first=first)
        if self._ranks.size > 1:
            *standings, who = self._ranks.least([*standings, who])
        able = []
        for coroutine, standing in zip(self._live, standings, strict=True):
            if standing == _FAILED:
                coroutine.failure = coroutine.failure or "another tensor-parallel rank failed"
            if standing == _WAITS or self._stands_still(coroutine):
                continue
            if who == _ALL or not self._held_back(coroutine):
                able.append(coroutine)
        if who == _OVER or not able:
            return None
        if self._shake is not None:
            # None now and then: the loop's own work is one of what may come in between.
            return None if not first and self._shake.random() < 0.3 else self._shake.choice(able)
        return able[0]

    def _who_may_go_on(self, *, first: bool) -> int:
        """What this rank's clock says; the leader's word is the least that any rank says."""
        if not self._leads:
            return _ALL
        if not first and self._is_over():
            return _OVER
        return _URGENT if self._holds() else _ALL

    def _is_over(self) -> bool:
        """Whether the stretch is."""
        now_s = self._clock()
        return now_s >= self._end_s or (now_s >= self._pressed_s and self._pressed())

    def _standing(self, coroutine: Coroutine) -> int:
        if coroutine.failure:
            return _FAILED
        if coroutine.ready is None:
            return _READY
        try:
            return _READY if coroutine.ready() else _WAITS
        except Exception as error:
            coroutine.failure = str(error) or repr(error)
            return _FAILED

    def _resume(self, coroutine: Coroutine) -> None:
        """Run a coroutine to its next switch, in its own surroundings."""
        outside = self._surroundings.take()
        self._surroundings.put(coroutine.state)
        mark = self._meter.begin()
        before, self._current = self._current, coroutine
        self._gives_way(coroutine)
        self._main = getcurrent()
        coroutine.ready = None
        start_s = self._clock()
        try:
            if coroutine.failure and coroutine.body:
                coroutine.body.throw(StoppedError(coroutine.failure))
            else:
                # One that fails before it began gets to know it at its first ``give_way``.
                coroutine.body.switch()
        finally:
            self._pieces.append(self._clock() - start_s)
            others = tuple(other for other in self._live if other is not coroutine)
            self._stretches.append((others, self._meter.end(mark)))
            coroutine.state = self._surroundings.take()
            self._surroundings.put(outside)
            self._current = before
            self._account()
            if coroutine.body.dead:
                self._live.remove(coroutine)
                # Nothing of it is kept, and it stands aside for nobody any more.
                self._last = None

    def _wait(self) -> None:
        """Wait a moment for what others send, without keeping a neighbour from its core."""
        end_s, pause_s = self._clock() + LONGEST_WAIT_S, SHORTEST_SLEEP_S
        while self._clock() < end_s and not self._interrupted():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_SLEEP_S)
            self._poll()
            held = self._holds()
            goes_on = (
                c
                for c in self._live
                if not (self._stands_still(c) or (held and self._held_back(c)))
            )
            if self._ranks.size > 1 or any(self._standing(c) != _WAITS for c in goes_on):
                return
