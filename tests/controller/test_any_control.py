"""The life cycle under any order of events, control messages among them.

The fakes check that no chunk runs on two sets of weights, that nothing is flushed that is used, and
that SGLang hears as many answers as there are instances, whoever of them is lost.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

from tests.controller.any_order import SETTINGS, AnyOrder
from tests.controller.fake_control import (
    CONTINUE,
    FLUSH,
    PAUSE,
    QUESTION,
    RELEASE,
    RESUME,
    ControlledPool,
)


class AnyControl(AnyOrder):
    """Somebody changes weights, memory and cache meanwhile."""

    make_pool = ControlledPool
    pool: ControlledPool

    @rule(message=st.sampled_from([FLUSH, PAUSE, CONTINUE, QUESTION]))
    def control(self, message: object) -> None:
        self.pool.send(message)

    @rule(flush=st.booleans())
    def update_weights(self, flush: bool) -> None:
        self.updates += 1
        folder = f"weights {self.updates}"
        self.pool.send(UpdateWeightFromDiskReqInput(model_path=folder, flush_cache=flush))

    @precondition(lambda self: not self.released)
    @rule()
    def release(self) -> None:
        self.released = True
        self.pool.send(RELEASE)

    @precondition(lambda self: self.released)
    @rule()
    def resume(self) -> None:
        self.released = False
        self.pool.send(RESUME)

    @rule(timeout_s=st.floats(1, 50))
    def flush_in_time(self, timeout_s: float) -> None:
        self.pool.send(type(FLUSH)(timeout_s=timeout_s))

    def __init__(self) -> None:
        self.released = False
        self.updates = 0
        super().__init__()

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.send(CONTINUE)
            if self.released:
                self.pool.send(RESUME)
        super().teardown()
        if hasattr(self, "pool"):
            gate = self.pool.control.gate
            assert gate.may_start
            assert gate.may_bind
            assert self.pool.replies == self.pool.asked, "SGLang waits for an answer for ever"
            assert len({self.pool.weights[i.me] for i in self.pool.instances}) == 1


AnyControl.TestCase.settings = SETTINGS
TestAnyControl = AnyControl.TestCase
