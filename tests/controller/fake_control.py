"""A pool without processes that gets control messages, and what its instances make of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
)

from sglang_cdsp.controller.control_messages import ControlMessages
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.fake_instance import FakeInstance
from tests.controller.fake_pool import FakePool

NEW_WEIGHTS = UpdateWeightFromDiskReqInput(model_path="new")
NEW_WEIGHTS_OLD_CACHE = UpdateWeightFromDiskReqInput(model_path="new", flush_cache=False)
PAUSE = PauseGenerationReqInput(mode="in_place")
CONTINUE = ContinueGenerationReqInput()
RELEASE = ReleaseMemoryOccupationReqInput()
RESUME = ResumeMemoryOccupationReqInput()
FLUSH = FlushCacheReqInput()
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
        taken: by instance, how many messages that change weights or memory it has taken.
        released: instances whose memory is released.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.forwarded: list[Any] = []
        self.refused: list[Any] = []
        self.taken: defaultdict[int, int] = defaultdict(int)
        self.released: set[int] = set()
        self._sets: dict[tuple[int, int], set[int]] = {}
        self.control = ControlMessages(
            forward=self._forward, answer=self.refused.append, clock=lambda: self.now_s
        )
        super().__init__(gate=self.control.gate, **kwargs)

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

    def _look(self, me: int, sets: set[int]) -> None:
        sets.add(self.taken[me])
        assert len(sets) == 1, "the members of a chunk have different weights"
        assert me not in self.released, "a chunk starts in released memory"

    def _forward(self, message: Any) -> None:
        self.forwarded.append(message)
        quiet = not self.lifecycle.chunk_running or not isinstance(message, QUIET)
        assert quiet, "a message that waits for quiet goes out while a chunk runs"
        for instance in self.instances:
            instance.order(partial(self._take, instance, message))

    def _take(self, instance: FakeInstance, message: Any) -> None:
        match message:
            case PauseGenerationReqInput():
                instance.paused = True
            case ContinueGenerationReqInput():
                instance.paused = False
            case ReleaseMemoryOccupationReqInput():
                _assert_empty(instance)
                self.taken[instance.me] += 1
                self.released.add(instance.me)
            case ResumeMemoryOccupationReqInput():
                self.taken[instance.me] += 1
                self.released.discard(instance.me)
            case FlushCacheReqInput():
                _assert_empty(instance)
                self.taken[instance.me] += 1
            case UpdateWeightFromDiskReqInput():
                if message.flush_cache:
                    _assert_empty(instance)
                self.taken[instance.me] += 1


def _assert_empty(instance: FakeInstance) -> None:
    assert not instance.tasks, "an instance is flushed that holds KV"
    assert not instance.stock_requests
    assert not instance.used
