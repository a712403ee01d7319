"""SGLang's control messages on their way through the controller."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    FlushCacheReqOutput,
    PauseGenerationReqInput,
    ProfileReq,
    ProfileReqType,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightFromDiskReqOutput,
)

from sglang_cdsp.controller.answers import Answers
from sglang_cdsp.controller.quiet import Control, Needs, QuietGate
from sglang_cdsp.controller.standing import ALL_MEMORY, LASTING, Standing
from sglang_cdsp.protocol.messages import Answered

PAUSED = frozenset({"paused"})
BUSY = "requests are in the pool: wait until they have ended, or give a timeout"
LATE = "timed out: there are still requests in the pool"
SETTLE_S = 0.25
"""What a flush waits at least: a client has its answer a moment before the instance has freed what
the request held, and the controller has heard so."""
STANDS = (
    "requests that are paused hold KV, which the update is to flush: call /continue_generation "
    'first, pause with mode "abort", or send "flush_cache": false'
)


class Pool(Protocol):
    """What is asked of the pool's requests."""

    @property
    def requests(self) -> tuple[Any, ...]:
        """Requests that are not over."""

    @property
    def chunk_running(self) -> bool:
        """Whether a chunk is inside a forward."""

    @property
    def holding(self) -> bool:
        """Whether an instance holds KV of a request."""

    @property
    def needs_start(self) -> bool:
        """Whether a request that holds KV ends only after something else was started for it."""


def control_of(message: Any) -> Control[Any]:
    """What a message of SGLang's waits for, and whether the pool starts anything after it."""
    match message:
        case PauseGenerationReqInput():
            return Control(message, Needs.NO_CHUNK, closes=PAUSED)
        case ContinueGenerationReqInput():
            return Control(message, opens=PAUSED)
        case ReleaseMemoryOccupationReqInput():
            return Control(message, Needs.EMPTY, closes=frozenset(message.tags or ALL_MEMORY))
        case ResumeMemoryOccupationReqInput():
            return Control(message, Needs.NO_CHUNK, opens=frozenset(message.tags or ALL_MEMORY))
        case UpdateWeightFromDiskReqInput():
            # Stock asserts that the flush works, and an instance whose assertion fails ends.
            return Control(message, Needs.EMPTY if message.flush_cache else Needs.NO_CHUNK)
    return Control(message)


class ControlMessages:
    """Forwards control messages to all instances when their time has come, or answers them.

    A flush is one decision for the whole pool: stock would flush the idle instances and report
    what the first one did. Absent instances get no messages; the pool answers in their names, and
    a new process is told what stands before it takes part.
    """

    def __init__(
        self,
        *,
        forward: Callable[[Any, Collection[int]], None],
        answer: Callable[[Any], None],
        stand_in: Callable[[Any], None],
        pass_on: Callable[[bytes], None],
        clock: Callable[[], float],
        seats: int,
    ) -> None:
        """Stand between the tokenizer manager and the instances, which are all there.

        Args:
            forward: sends a message to some instances.
            answer: sends an answer to the tokenizer manager in every instance's name.
            stand_in: sends one in one instance's name.
            pass_on: sends on an answer as it came from an instance.
            clock: monotonic seconds.
            seats: of the pool.
        """
        self.gate: QuietGate[Any] = QuietGate()
        self._forward_to = forward
        self._answer = answer
        self._clock = clock
        self._flush: tuple[FlushCacheReqInput, float] | None = None
        self._present = set(range(seats))
        self._standing = Standing()
        self._answers = Answers(seats=seats, pass_on=pass_on, answer=stand_in, done=self._all_did)
        self._started: set[int] = set()  # are to be told what stands
        self._owes: dict[int, int] = {}  # answers to it that are still to come
        self._failures: dict[int, str] = {}
        self._profiled: set[int] = set()

    # -- seats ----------------------------------------------------------------------------

    def seat_lost(self, seat: int) -> None:
        """A seat's process was given up: it is asked nothing more, and owes nothing."""
        self._present.discard(seat)
        self._profiled.discard(seat)
        self._started.discard(seat)
        self._owes.pop(seat, None)
        self._failures.pop(seat, None)
        self._answers.gone(seat)

    def seat_started(self, seat: int) -> None:
        """A new process of a seat takes messages: it is to be told what stands."""
        self._started.add(seat)
        self._tell_started()

    def seat_told(self, seat: int) -> str | None:
        """Whether a new process has done all it was told: None not yet, "" it has, or why not.

        It takes part in control messages as soon as it was told; in chunks it may from now on.
        """
        if seat in self._failures:
            return self._failures[seat]
        return None if seat in self._started or self._owes.get(seat) else ""

    def _tell_started(self) -> None:
        """Tell new processes what stands, unless that is changing: then they wait for the end."""
        if self._answers.under_way(LASTING):
            return
        for seat in sorted(self._started):
            self._started.discard(seat)
            self._present.add(seat)
            for message in self._standing.messages():
                self._forward_to(message, (seat,))
                self._owes[seat] = self._owes.get(seat, 0) + self._answers.told(message, seat)

    @property
    def not_now(self) -> str:
        """Why no process may be started now, "" if one may: it would take memory."""
        if not self._standing.released:
            return ""
        regions = ", ".join(sorted(self._standing.released))
        return f"memory is released ({regions}): call /resume_memory_occupation first"

    def on_answer(self, report: Answered) -> None:
        """An instance answers."""
        self._answers.answered(report)

    def _forward(self, message: Any) -> None:
        """A message's time has come."""
        seats = set(self._present)
        if isinstance(message, ProfileReq):
            seats = self._profiling(message, seats)
        self._forward_to(message, tuple(sorted(seats)))
        self._answers.asked(message, seats)

    def _profiling(self, message: ProfileReq, present: set[int]) -> set[int]:
        """Whom a request about a profile goes to: one is stopped where it was started.

        A new process would answer that it makes none, and that of one instance is the pool's.
        """
        started = self._profiled & present
        if message.req_type is ProfileReqType.START_PROFILE:
            self._profiled = present
            return present
        self._profiled = set()
        return started or present

    def _all_did(self, message: Any, alone: int | None, failure: str) -> None:
        """A message has been answered by everybody that it went to."""
        if alone is None:
            if not failure:
                self._standing.note(message)
            self._tell_started()
        elif alone in self._owes:
            self._owes[alone] -= 1
            if failure:
                self._failures.setdefault(alone, failure)

    # -- messages -------------------------------------------------------------------------

    def on(self, message: Any, pool: Pool) -> None:
        """A control message from the tokenizer manager."""
        if isinstance(message, FlushCacheReqInput) and _in_use(pool):
            self._keep_flush(message)
        else:
            self.gate.submit(control_of(message))
        self.serve(pool)

    def _keep_flush(self, message: FlushCacheReqInput) -> None:
        if self._flush is not None:
            self._answer(FlushCacheReqOutput(success=False, message=BUSY))
            return
        timeout_s = max(SETTLE_S, float(message.timeout_s or 0.0))
        self._flush = (message, self._clock() + timeout_s)

    def serve(self, pool: Pool) -> None:
        """Forward and answer what is due."""
        while True:
            for message in self.gate.due(running=pool.chunk_running, holding=pool.holding):
                self._forward(message)
            if not (pool.needs_start and self._refuse()):
                break
        if self._flush is None:
            return
        message, deadline_s = self._flush
        if not _in_use(pool):
            self._flush = None
            self._forward(message)
        elif self._clock() >= deadline_s:
            self._flush = None
            why = LATE if message.timeout_s else BUSY
            self._answer(FlushCacheReqOutput(success=False, message=why))

    def _refuse(self) -> bool:
        """Answer an update that could wait for ever; whether there was one."""
        message = self.gate.withdraw(UpdateWeightFromDiskReqInput)
        if message is not None:
            self._answer(UpdateWeightFromDiskReqOutput(success=False, message=STANDS))
        return message is not None


def _in_use(pool: Pool) -> bool:
    """Whether a flush has to wait.

    A request whose slots are being freed is none by its id any more, and still holds KV.
    """
    return bool(pool.requests) or pool.holding
