"""Whether the idle controller, and a stalled or paused scheduler, wait or spin."""

import contextlib
from types import SimpleNamespace
from typing import Any
from unittest import mock

import zmq
from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.data_parallel_controller import DataParallelController
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.idle_sleeper import (
    IdleSleeper,
    RustServerIdleSleeper,
)

ROUNDS = 20


def run() -> dict[str, Any]:
    """Waits in milliseconds, by process and situation."""
    return {
        "controller": _controller(),
        "stalled": {flag: _stalled(flag == "flag") for flag in ("flag", "no flag")},
        "stalled rust": {flag: _stalled_rust(flag == "flag") for flag in ("flag", "no flag")},
        "paused": {flag: _paused(flag == "flag") for flag in ("flag", "no flag")},
    }


class Enough(Exception):
    """Ends an endless loop."""


class LateSocket:
    """A socket that is empty except for one message, which comes during the ``ROUNDS``-th wait.

    If nobody waits, it comes after as many looks.
    """

    def __init__(self) -> None:
        self.waits: list[int] = []
        self.empty_looks = 0
        self.delivered = False

    def poll(self, timeout: int | None = None, *_: Any) -> int:
        self.waits.append(-1 if timeout is None else timeout)
        return 0

    def recv(self, flags: int = 0, *_: Any, **__: Any) -> bytes:
        if not self.delivered and max(len(self.waits), self.empty_looks) >= ROUNDS:
            self.delivered = True
            return b"request"
        self.empty_looks += 1
        raise zmq.Again


def _controller() -> dict[str, Any]:
    controller = object.__new__(DataParallelController)
    socket = LateSocket()
    dispatched: list[str] = []
    fed = 0

    def feed() -> None:
        nonlocal fed
        fed += 1
        if fed > 3 * ROUNDS:
            raise Enough

    controller.recv_from_tokenizer = socket
    controller.soft_watchdog = SimpleNamespace(feed=feed)
    controller._request_dispatcher = dispatched.append
    name = "sglang.srt.managers.data_parallel_controller.sock_recv"
    with (
        mock.patch(name, lambda source, flags: source.recv(flags).decode()),
        contextlib.suppress(Enough),
    ):
        controller.event_loop()
    return {
        "looks": socket.empty_looks,
        "waits": len(socket.waits),
        "timeouts": sorted(set(socket.waits)),
        "dispatched": dispatched,
    }


class RecordingPoller:
    """Remembers how long it was asked to wait."""

    def __init__(self) -> None:
        self.waits: list[int] = []

    def poll(self, timeout: int | None = None) -> list[Any]:
        self.waits.append(-1 if timeout is None else timeout)
        return []


class StubScheduler(mock.MagicMock):
    """A scheduler of which only the idle path is real."""


def _scheduler(fully_idle: bool, sleeper: Any) -> Any:
    stub = StubScheduler()
    stub.is_fully_idle.return_value = fully_idle
    stub.idle_sleeper = sleeper
    stub._last_stall_publish_ts = float("inf")
    for name in ("maybe_sleep_on_idle", "maybe_sleep_on_stall"):
        if hasattr(Scheduler, name):
            setattr(stub, name, getattr(Scheduler, name).__get__(stub))
    return stub


def _sleeper() -> tuple[IdleSleeper, RecordingPoller]:
    sleeper = IdleSleeper(sockets=[], can_empty_cache=lambda: False)
    sleeper.poller = RecordingPoller()
    return sleeper, sleeper.poller


def _with_flag(flag: bool) -> Any:
    device = SimpleNamespace(sleep_on_idle=flag)
    return mock.patch.object(scheduler_module, "get_device", return_value=device)


def _stalled(flag: bool) -> list[int]:
    sleeper, poller = _sleeper()
    with _with_flag(flag):
        Scheduler.on_idle(_scheduler(False, sleeper if flag else None))
    return poller.waits


def _stalled_rust(flag: bool) -> list[int]:
    waits: list[int] = []
    sleeper = RustServerIdleSleeper(SimpleNamespace(wait_request=waits.append))
    with _with_flag(flag):
        Scheduler.on_idle(_scheduler(False, sleeper))
    return waits


def _paused(flag: bool) -> list[int]:
    sleeper, poller = _sleeper()
    with _with_flag(flag):
        stub = _scheduler(False, sleeper if flag else None)
        Scheduler._record_scheduler_state_for_paused_engine(stub)
    return poller.waits
