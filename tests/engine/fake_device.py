"""A device without one: what is launched runs when the test says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_cdsp.engine.device import Event, Events


@dataclass
class FakeDevice:
    """A stream of pieces and events; makes events as ``torch.cuda.Event`` does.

    Attributes:
        launched, ran: pieces so far.
        by_events: each event ends a piece: for code that launches by itself.
        now_ms: the device's time.
        most: pieces that were launched and had not run, at most.
    """

    launched: int = 0
    ran: int = 0
    now_ms: float = 0.0
    most: int = 0
    by_events: bool = False
    events: list[FakeEvent] = field(default_factory=list)

    def __call__(self, *, enable_timing: bool = False) -> FakeEvent:
        return FakeEvent(self, enable_timing)

    def launch(self) -> None:
        """The host launches a piece."""
        self.launched += 1
        self.most = max(self.most, self.launched - self.ran)

    def run(self, pieces: int = 1, ms: float = 1.0) -> None:
        """The device runs pieces, each of which takes so long."""
        for _ in range(min(pieces, self.launched - self.ran)):
            self.ran += 1
            self.now_ms += ms
            self.stamp()

    def stamp(self) -> None:
        """Events whose time has come get it."""
        for event in self.events:
            if event.passed_ms is None and event.query():
                event.passed_ms = self.now_ms


@dataclass(eq=False)
class FakeEvent:
    """A point behind the pieces that were launched when it was recorded."""

    device: FakeDevice
    timed: bool
    behind: int | None = None
    passed_ms: float | None = None

    def record(self) -> None:
        if self.device.by_events:
            self.device.launch()
        self.behind = self.device.launched
        self.device.events.append(self)
        self.device.stamp()

    def query(self) -> bool:
        assert self.behind is not None, "asked before it is recorded"
        return self.device.ran >= self.behind

    def elapsed_time(self, later: Any, /) -> float:
        assert self.timed, "made without enable_timing"
        assert later.timed, "made without enable_timing"
        assert self.passed_ms is not None, "torch raises: the device has not come that far"
        assert later.passed_ms is not None, "torch raises: the device has not come that far"
        return float(later.passed_ms - self.passed_ms)


if TYPE_CHECKING:
    CHECKED: tuple[type[Event], Events] = (FakeEvent, FakeDevice())
