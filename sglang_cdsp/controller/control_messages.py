"""SGLang's control messages on their way through the controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sglang.srt.constants import GPU_MEMORY_ALL_TYPES
from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    FlushCacheReqOutput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightFromDiskReqOutput,
)

from sglang_cdsp.controller.quiet import Control, Needs, QuietGate

ALL_MEMORY = frozenset(GPU_MEMORY_ALL_TYPES)
PAUSED = frozenset({"paused"})
BUSY = "requests are in the pool: wait until they have ended, or give a timeout"
LATE = "timed out: there are still requests in the pool"
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
    what the first one did.
    """

    def __init__(
        self,
        *,
        forward: Callable[[Any], None],
        answer: Callable[[Any], None],
        clock: Callable[[], float],
    ) -> None:
        """Stand between the tokenizer manager and the instances.

        Args:
            forward: sends a message to every instance.
            answer: sends an answer to the tokenizer manager in every instance's name.
            clock: monotonic seconds.
        """
        self.gate: QuietGate[Any] = QuietGate()
        self._forward = forward
        self._answer = answer
        self._clock = clock
        self._flush: tuple[FlushCacheReqInput, float] | None = None

    def on(self, message: Any, pool: Pool) -> None:
        """A control message from the tokenizer manager."""
        if isinstance(message, FlushCacheReqInput) and pool.requests:
            self._keep_flush(message)
        else:
            self.gate.submit(control_of(message))
        self.serve(pool)

    def _keep_flush(self, message: FlushCacheReqInput) -> None:
        timeout_s = float(message.timeout_s or 0.0)
        if timeout_s <= 0.0 or self._flush is not None:
            self._answer(FlushCacheReqOutput(success=False, message=BUSY))
        else:
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
        # A request whose slots are being freed is none by its id any more, and still holds KV.
        if not pool.requests and not pool.holding:
            self._flush = None
            self._forward(message)
        elif self._clock() >= deadline_s:
            self._flush = None
            self._answer(FlushCacheReqOutput(success=False, message=LATE))

    def _refuse(self) -> bool:
        """Answer an update that could wait for ever; whether there was one."""
        message = self.gate.withdraw(UpdateWeightFromDiskReqInput)
        if message is not None:
            self._answer(UpdateWeightFromDiskReqOutput(success=False, message=STANDS))
        return message is not None
