"""The host stays near the device, and times are the device's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.device import PIECES_AHEAD, Pace, Stopwatch, device_name, events_of
from sglang_cdsp.engine.forward_state import ForwardSurroundings, enter_forward_stream
from sglang_cdsp.engine.meters import DeviceMeter
from tests.engine.fake_device import FakeDevice
from tests.engine.fake_stock import FakeScheduler

Ready = Callable[[], bool] | None


def waits_for(device: FakeDevice, ran: list[int]) -> Callable[[Ready], None]:
    """A ``give_way`` in which the device runs one piece after the other until it may go on."""

    def give_way(ready: Ready) -> None:
        count = 0
        while ready is not None and not ready():
            assert device.ran < device.launched, "it waits for what nobody has launched"
            device.run()
            count += 1
        ran.append(count)

    return give_way


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30))
def test_no_more_than_two_pieces_are_ahead_of_the_device(
    pieces: list[tuple[bool, int]],
) -> None:
    """Layers and tiles, while the device runs at any speed. Red with another boundary's event."""
    device, waited = FakeDevice(), list[int]()
    pace = Pace(waits_for(device, waited), device)
    tiles = Pacing(pace, 1.0)
    for tile, runs_meanwhile in pieces:
        tiles.boundary() if tile else pace()
        device.launch()
        device.run(runs_meanwhile)
    assert device.most <= PIECES_AHEAD
    assert len(waited) == len(pieces), "each boundary gives way once"


def test_the_host_does_not_wait_for_the_piece_that_it_has_just_launched() -> None:
    """Else the device would idle at every boundary."""
    device, waited = FakeDevice(), list[int]()
    pace = Pace(waits_for(device, waited), device)
    for _ in range(6):
        pace()
        device.launch()
    assert device.launched - device.ran == PIECES_AHEAD


def test_what_else_is_waited_for_counts_too() -> None:
    """Neither the device alone nor the block that came is enough."""
    device, there, seen = FakeDevice(), [False], list[bool]()

    def give_way(ready: Ready) -> None:
        if ready is None:
            return
        seen.append(ready())
        there[0] = True
        seen.append(ready())
        there[0] = False
        device.run(2)
        seen.append(ready())
        there[0] = True
        seen.append(ready())

    pace = Pace(give_way, device)
    for ready in (None, lambda: there[0]):
        device.launch()
        pace(ready)
    assert seen == [False, False, False, True]


def test_where_the_host_computes_there_are_no_events() -> None:
    assert events_of("cpu") is None
    on_cuda: Any = events_of("cuda:1")
    assert on_cuda is torch.cuda.Event
    asked: list[Ready] = []
    Pace(asked.append, None)()
    assert asked == [None]


def test_a_chunk_takes_what_the_device_takes() -> None:
    """Launched in no time, seen late: 30 ms of its own, behind 5 ms of somebody else's."""
    device = FakeDevice()
    device.launch()
    watch = Stopwatch(device)
    for _ in range(3):
        device.launch()
    now_s = [100.0]

    def give_way(ready: Ready) -> None:
        assert ready is not None
        device.run(1, ms=5.0)
        assert not ready()
        device.run(3, ms=10.0)
        assert ready()
        now_s[0] = 100.04

    assert watch.stop(give_way, lambda: now_s[0]) == pytest.approx(100.04 - 0.030)


class NoGlobals:
    """Forwards that set nothing."""

    def take(self) -> None:
        """Nothing."""

    def put(self, state: None) -> None:
        """Nothing."""


def test_what_passes_is_counted_by_the_device() -> None:
    """Two chunks take turns; the host launches in no time and hears of the ends much later."""
    device = FakeDevice()
    run = Coroutines(
        surroundings=NoGlobals(),
        ranks=Agreement(None, 1),
        leads=True,
        stretch_s=0.0,
        clock=lambda: 0.0,
        meter=DeviceMeter(device),
    )
    own: dict[str, list[float]] = {"a": [10.0, 20.0], "b": [400.0, 500.0]}
    launched: list[float] = []

    def chunk(name: str) -> Callable[[], None]:
        def work() -> None:
            for ms in own[name]:
                run.give_way(lambda: len(launched) % 2 == (name == "b"))
                device.launch()
                launched.append(ms)
            run.give_way(lambda: len(launched) == 4)

        return work

    a, b = run.start("a", (0, 0), chunk("a")), run.start("b", (0, 1), chunk("b"))
    while len(launched) < 4:
        run.turn()
    assert run.passed_s(a) == run.passed_s(b) == 0.0, "the device has run nothing yet"
    for ms in launched:
        device.run(1, ms)
    assert run.passed_s(a) == pytest.approx(0.9)
    assert run.passed_s(b) == pytest.approx(0.03)


class Stream:
    """A CUDA stream that knows which streams it waited for."""

    def __init__(self) -> None:
        self.behind: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.behind.append(other)


class Cuda:
    """The current stream of this thread."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def current_stream(self) -> Stream:
        return self.stream

    def set_stream(self, stream: Stream) -> None:
        self.stream = stream


@pytest.mark.parametrize("overlap", [True, False])
def test_a_chunk_runs_on_the_stream_of_stock_forwards(
    monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """It keeps it over its switches, and the loop keeps its own."""
    schedule, forward = Stream(), Stream()
    cuda = Cuda(schedule)
    monkeypatch.setattr(torch, "cuda", cuda)
    scheduler: Any = SimpleNamespace(
        enable_overlap=overlap, schedule_stream=schedule, forward_stream=forward
    )
    run = Coroutines(
        surroundings=ForwardSurroundings("cuda"),
        ranks=Agreement(None, 1),
        leads=True,
        stretch_s=0.0,
    )
    seen: list[Stream] = []

    def work() -> None:
        run.give_way()
        enter_forward_stream(scheduler, "cuda")
        for _ in range(3):
            seen.append(cuda.stream)
            run.give_way()

    run.start("chunk", (0, 0), work)
    while run.turn():
        assert cuda.stream is schedule
    assert seen == [forward if overlap else schedule] * 3
    assert forward.behind == ([schedule] if overlap else [])
    assert schedule.behind == []


def test_without_cuda_there_are_no_streams() -> None:
    enter_forward_stream(FakeScheduler(), "cpu")


def test_a_cpu_is_known_by_its_name_and_what_this_process_has_of_it(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name : Some CPU @ 2 GHz\nmodel name : Another\n")
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    assert device_name("cpu", info) == f"Some CPU @ 2 GHz, {threads} threads on {cores} cores"
    assert device_name("cpu", tmp_path / "none")


def test_a_gpu_is_known_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert device_name("cuda:1") == "Some GPU"
