"""A pool without processes that gets control messages, and what its instances make of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    GetInternalStateReq,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
)

from sglang_cdsp.controller.control_messages import ControlMessages
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.protocol.answers import ANSWERS
from sglang_cdsp.protocol.messages import Answered, AnyReport
from tests.controller.fake_instance import FakeInstance
from tests.controller.fake_pool import FakePool

NEW_WEIGHTS = UpdateWeightFromDiskReqInput(model_path="new")
NEW_WEIGHTS_OLD_CACHE = UpdateWeightFromDiskReqInput(model_path="new", flush_cache=False)
PAUSE = PauseGenerationReqInput(mode="in_place")
CONTINUE = ContinueGenerationReqInput()
RELEASE = ReleaseMemoryOccupationReqInput()
RESUME = ResumeMemoryOccupationReqInput()
FLUSH = FlushCacheReqInput()
QUESTION = GetInternalStateReq()
QUIET = (
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
)


class ControlledPool(FakePool):
    """A pool of fake instances with control messages.

    It checks that all members of a chunk run it on the same weights and memory, and that what
    needs an empty instance finds it empty.

    Attributes:
        forwarded: the messages that went out to the instances.
        refused: the answers that the controller gave itself.
        replies: by type, how many answers SGLang has had to what was forwarded.
        asked: by the type of their answers, how many it waits for in all.
        weights: by instance, which folder it has its weights from, "" for that of the start.
        released: instances whose memory is released.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.forwarded: list[Any] = []
        self.refused: list[Any] = []
        self.replies: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.weights: defaultdict[int, str] = defaultdict(str)
        self.released: set[int] = set()
        self._sets: dict[tuple[int, int], set[str]] = {}
        self._filling: int | None = None
        self.control = ControlMessages(
            forward=self._forward,
            answer=self.refused.append,
            stand_in=lambda answer: self._hear_answer(type(answer).__name__),
            pass_on=lambda payload: self._hear_answer(payload.decode()),
            clock=lambda: self.now_s,
            seats=kwargs.get("size", 4),
        )
        super().__init__(gate=self.control.gate, **kwargs)

    def _hear_answer(self, kind: str) -> None:
        self.replies[kind] += 1
        assert self.replies[kind] <= self.asked[kind], "an answer that nobody waits for"

    def lose(self, seat: int, why: str = "killed by a test") -> None:
        """The process of a seat is given up: it hears nothing more, and is asked nothing."""
        super().lose(seat, why)
        self.control.seat_lost(seat)

    def confirm(self, seat: int) -> None:
        """The kernel says that a seat's process has ended; one that drained is gone with it."""
        self.control.seat_lost(seat)
        super().confirm(seat)

    def fill(self, seat: int) -> None:
        """A new process takes a seat, is told what stands, and takes part when it has done it."""
        self.instances[seat] = FakeInstance(seat, self)
        self.weights[seat], self._filling = "", seat
        self.released.discard(seat)
        self.control.seat_started(seat)
        for _ in range(1000):
            if self.control.seat_told(seat) == "":
                break
            next(move for move in self.moves() if not move.fault).do()
        assert self.control.seat_told(seat) == ""
        self._filling = None
        self.lifecycle.on_seat_up(seat)

    def turn(self) -> None:
        """The controller's loop comes round."""
        self.control.serve(self.lifecycle)
        super().turn()

    def send(self, message: Any) -> None:
        """A control message reaches the controller."""
        self.control.on(message, self.lifecycle)

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """One decision for all members of a chunk, each of which looks at its weights first."""
        members = tuple(instances)
        sets = self._sets.setdefault((request.seq, request.next_chunk), set())
        for me in members:
            self.instances[me].order(partial(self._look, me, sets))
        super().go(request, members)

    def _look(self, me: int, sets: set[str]) -> None:
        sets.add(self.weights[me])
        assert len(sets) == 1, "the members of a chunk have different weights"
        assert me not in self.released, "a chunk starts in released memory"

    def _forward(self, message: Any, seats: Collection[int]) -> None:
        quiet = not self.lifecycle.chunk_running or not isinstance(message, QUIET)
        joins = tuple(seats) == (self._filling,)
        assert quiet or joins, "a message that waits for quiet goes out while a chunk runs"
        if not joins:
            self.forwarded.append(message)
            kind = ANSWERS.get(type(message).__name__)
            if kind is not None:
                self.asked[kind] += len(self.instances)
        for seat in seats:
            instance = self.instances[seat]
            instance.order(partial(self._take, instance, message))

    def _take(self, instance: FakeInstance, message: Any) -> None:
        match message:
            case PauseGenerationReqInput():
                instance.paused = True
            case ContinueGenerationReqInput():
                instance.paused = False
            case ReleaseMemoryOccupationReqInput():
                _assert_empty(instance)
                assert instance.me not in self.released, "stock ends where memory is released twice"
                self.released.add(instance.me)
            case ResumeMemoryOccupationReqInput():
                assert instance.me in self.released, "stock ends where no memory was released"
                self.released.discard(instance.me)
            case FlushCacheReqInput():
                _assert_empty(instance)
            case UpdateWeightFromDiskReqInput():
                if message.flush_cache:
                    _assert_empty(instance)
                self.weights[instance.me] = message.model_path
        self._say(instance, message)

    def _say(self, instance: FakeInstance, message: Any) -> None:
        """An instance answers: the controller hears it later."""
        kind = ANSWERS.get(type(message).__name__)
        if kind is not None:
            answer = Answered(
                instance=instance.me, tp_rank=0, at_s=self.now_s, kind=kind, payload=kind.encode()
            )
            self.channels[(instance.me, 0)].append(answer)

    def hear(self, report: AnyReport) -> None:
        """A report reaches the controller."""
        if isinstance(report, Answered):
            self.control.on_answer(report)
        else:
            super().hear(report)


def _assert_empty(instance: FakeInstance) -> None:
    assert not instance.tasks, "an instance is flushed that holds KV"
    assert not instance.stock_requests
    assert not instance.used
