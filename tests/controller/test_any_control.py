"""The life cycle under any order of events, control messages among them.

The fakes check that no chunk runs on two sets of weights and that nothing is flushed that is used.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.controller.any_order import SETTINGS, AnyOrder
from tests.controller.fake_control import (
    CONTINUE,
    FLUSH,
    NEW_WEIGHTS,
    NEW_WEIGHTS_OLD_CACHE,
    PAUSE,
    RELEASE,
    RESUME,
    ControlledPool,
)


class AnyControl(AnyOrder):
    """Somebody changes weights, memory and cache meanwhile."""

    make_pool = ControlledPool
    pool: ControlledPool

    @rule(message=st.sampled_from([NEW_WEIGHTS, NEW_WEIGHTS_OLD_CACHE, FLUSH, PAUSE, CONTINUE]))
    def control(self, message: object) -> None:
        self.pool.send(message)

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


AnyControl.TestCase.settings = SETTINGS
TestAnyControl = AnyControl.TestCase
