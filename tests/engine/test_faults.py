"""Orders in a folder, and the rank that carries them out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sglang_cdsp.engine.fault_orders import MOMENTS, WAYS, FaultFolder, FaultOrder
from sglang_cdsp.engine.faults import FaultHook, InjectedFault, moments_of, requested_hook
from sglang_cdsp.engine.tasks import ChunkTask


class Signals:
    """Remembers what was sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def __call__(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))


def hook(folder: FaultFolder, seat: int = 1, incarnation: int = 1, **kinds: Any) -> FaultHook:
    return FaultHook(folder, seat, 0, incarnation, **kinds)


def task(**state: Any) -> ChunkTask:
    base: dict[str, Any] = {
        "probe": False,
        "started": True,
        "running": None,
        "over": False,
        "writes": [],
    }
    return cast(ChunkTask, SimpleNamespace(**{**base, **state}))


def test_one_rank_takes_an_order_and_says_so(tmp_path: Path) -> None:
    folder, signals = FaultFolder(tmp_path / "orders"), Signals()
    mine = hook(folder, kill=signals)
    mine.turn({"turn"})
    folder.give("first", FaultOrder("kill", seat=1))
    assert folder.fired("first") is None
    hook(folder, seat=0, kill=signals).turn({"turn"})
    assert signals.sent == []
    mine.turn({"turn"})
    assert signals.sent == [(os.getpid(), signal.SIGKILL)]
    fired = folder.fired("first")
    assert fired is not None
    assert fired.pid == os.getpid()
    mine.turn({"turn"})
    hook(folder, kill=signals).turn({"turn"})
    assert len(signals.sent) == 1


def test_an_order_waits_for_its_moment_and_for_its_life(tmp_path: Path) -> None:
    folder, signals = FaultFolder(tmp_path), Signals()
    folder.give("a", FaultOrder("stop", seat=1, moment="transfer", incarnation=2, skip=1))
    first, second = hook(folder, kill=signals), hook(folder, incarnation=2, kill=signals)
    first.turn({"transfer"})
    second.turn({"turn", "idle"})
    second.turn({"transfer"})
    assert signals.sent == []
    second.turn({"transfer"})
    assert signals.sent == [(os.getpid(), signal.SIGSTOP)]


def test_an_order_that_was_withdrawn_is_not_carried_out(tmp_path: Path) -> None:
    folder, signals = FaultFolder(tmp_path), Signals()
    mine = hook(folder, kill=signals)
    folder.give("a", FaultOrder("kill", seat=1, moment="idle"))
    mine.turn({"turn"})
    assert folder.withdraw("a")
    assert not folder.withdraw("a")
    mine.turn({"idle"})
    assert signals.sent == []


@pytest.mark.parametrize("moment", ["start", "join", "turn", "idle", "between", "transfer"])
def test_an_exception_leaves_the_loop(moment: str, tmp_path: Path) -> None:
    folder = FaultFolder(tmp_path)
    folder.give("a", FaultOrder("exception", seat=1, moment=moment))
    mine = hook(folder)
    if moment == "start":
        with pytest.raises(InjectedFault):
            mine.start()
        return
    mine.start()
    with pytest.raises(InjectedFault):
        mine.turn({moment})


def test_an_exception_inside_a_layer_fails_the_loop_and_not_the_chunk(tmp_path: Path) -> None:
    """What a chunk raises is its own failure: the loop has to fail while the chunk is suspended."""
    folder = FaultFolder(tmp_path)
    folder.give("a", FaultOrder("exception", seat=1, moment="layer"))
    mine, waits = hook(folder), []

    class Suspended(Exception):
        """The coroutine does not come back."""

    def give_way(ready: Callable[[], bool] | None) -> None:
        assert ready is not None
        waits.append(ready())
        raise Suspended

    with pytest.raises(Suspended):
        mine.layer(give_way)
    assert waits == [False]
    with pytest.raises(InjectedFault, match="inside a layer"):
        mine.turn({"turn"})


def test_a_broken_device_stays_broken(tmp_path: Path) -> None:
    folder = FaultFolder(tmp_path)
    folder.give("a", FaultOrder("cuda", seat=1, moment="layer"))
    mine = hook(folder)
    with pytest.raises(RuntimeError, match="CUDA error"):
        mine.layer(lambda ready: None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="CUDA error"):
            mine.turn({"turn"})


def test_a_slow_link_is_slow_for_a_while(tmp_path: Path) -> None:
    folder, now = FaultFolder(tmp_path), [100.0]
    mine = hook(folder, clock=lambda: now[0])
    assert mine.delay_s() == 0.0
    folder.give("a", FaultOrder("slow-link", seat=1, delay_s=0.25, for_s=3.0))
    assert mine.delay_s() == 0.25
    now[0] += 2.9
    assert mine.delay_s() == 0.25
    now[0] += 0.2
    assert mine.delay_s() == 0.0


def test_what_a_rank_is_in_the_middle_of() -> None:
    assert moments_of([], idle=True) == {"turn", "idle"}
    assert moments_of([task(probe=True)], idle=False) == {"turn"}
    assert moments_of([task(started=False)], idle=False) == {"turn"}
    assert moments_of([task(running=object(), writes=[1])], idle=False) == {"turn"}
    assert moments_of([task()], idle=False) == {"turn", "between"}
    assert moments_of([task(over=True, writes=[1])], idle=False) == {"turn", "transfer"}


@pytest.mark.parametrize("wrong", [{"way": "explode"}, {"way": "kill", "moment": "noon"}])
def test_an_unknown_order_names_those_there_are(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{WAYS[0]}.*{MOMENTS[0]}"):
        FaultOrder(**wrong, seat=0)  # type: ignore[arg-type]


def test_nothing_is_looked_at_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_CDSP_TEST_FAULTS", raising=False)
    assert requested_hook(0, 0, 1) is None
