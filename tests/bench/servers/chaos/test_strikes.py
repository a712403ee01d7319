"""Events on stand-ins for servers: what is signalled, ordered, filled and noted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from bench.servers.chaos import strikes
from bench.servers.chaos.disk import SmallDisk, small_disk, why_none
from bench.servers.chaos.scenario import Event
from bench.servers.chaos.seats import SeatWatch
from bench.servers.chaos.strikes import Striker
from sglang_cdsp.engine.fault_orders import FaultFolder
from sglang_cdsp.testing.stack import RunningStack

RANK = """
import setproctitle, time
setproctitle.setproctitle("sglang::scheduler_DP1")
print("there", flush=True)
time.sleep(60)
"""


class Server:
    """A server whose only process is a rank of seat 1."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "there\n"

    def members(self) -> list[int]:
        return [self.process.pid]


class Watch:
    """All seats are in one state."""

    def __init__(self, state: str) -> None:
        self.state = state

    def wait(self, states: dict[int, str], timeout_s: float) -> bool:
        return set(states.values()) == {self.state}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.process.kill()
    server.process.wait()


def striker(
    faults: Path, server: Server | None = None, state: str = "up", disk: SmallDisk | None = None
) -> Striker:
    servers: dict[str, Any] = {"prefill": server}
    stack = RunningStack("", {}, servers, 0.0)
    return Striker(stack, cast(SeatWatch, Watch(state)), faults, disk)


def test_a_rank_is_killed(server: Server, tmp_path: Path) -> None:
    strike = striker(tmp_path, server).strike(Event(0.0, "kill", 1))
    assert strike.note == ""
    assert server.process.wait(10) == -9


def test_a_stop_that_ends_lets_the_process_go_on(server: Server, tmp_path: Path) -> None:
    hand = striker(tmp_path, server)
    seen: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        stop = threads.submit(hand.strike, Event(0.0, "stop", 1, for_s=0.5))
        while not stop.done():
            seen.append(psutil.Process(server.process.pid).status())
            time.sleep(0.01)
    assert psutil.STATUS_STOPPED in seen
    assert psutil.Process(server.process.pid).status() != psutil.STATUS_STOPPED


def test_what_is_not_there_or_not_so_is_noted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such process" in striker(tmp_path, server).strike(Event(0.0, "kill", 0)).note
    down = striker(tmp_path, server, state="down").strike(Event(0.0, "kill", 1))
    assert "was not up" in down.note
    monkeypatch.setattr(strikes, "FIRED_WAIT_S", 0.1)
    late = striker(tmp_path, server).strike(Event(0.0, "cuda", 1, moment="layer"))
    assert "nobody came to that moment" in late.note
    assert FaultFolder(tmp_path).names() == frozenset()
    assert server.process.poll() is None
    assert "no disk" in striker(tmp_path, server).strike(Event(0.0, "full-disk", for_s=0.1)).note


def test_the_hook_is_ordered_and_waited_for(server: Server, tmp_path: Path) -> None:
    folder = FaultFolder(tmp_path)

    def rank() -> None:
        while not (names := folder.names()):
            time.sleep(0.01)
        (name,) = names
        order = folder.read(name)
        assert order is not None
        assert (order.way, order.seat, order.rank, order.moment) == ("exception", 1, 1, "layer")
        assert folder.take(name, 3)

    # The notes of earlier orders stay in the folder: each order has its own.
    for _ in range(2):
        thread = threading.Thread(target=rank)
        thread.start()
        before_s = time.time()
        event = Event(0.0, "exception", 1, rank=1, moment="layer")
        strike = striker(tmp_path, server).strike(event)
        thread.join()
        assert strike.note == ""
        assert before_s <= strike.at_s <= time.time()


@pytest.mark.skipif(bool(why_none()), reason="no file system can be mounted here")
def test_a_disk_is_filled_and_freed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        log = (disk.folder / "log").open("ab", buffering=0)
        hand = striker(tmp_path, disk=disk)
        with ThreadPoolExecutor(1) as threads:
            strike = threads.submit(hand.strike, Event(0.0, "full-disk", for_s=0.5))
            failed = False
            while not strike.done():
                try:
                    log.write(b"x" * 5000)
                except OSError:
                    failed = True
                time.sleep(0.01)
        assert failed
        assert strike.result().note == ""
        log.write(b"y")
        log.close()
        ((start_s, end_s),) = hand.unlogged
        assert end_s - start_s >= 0.5
    assert not (tmp_path / "disk" / "log").exists()


def test_decode_is_not_ended_while_it_comes_back(tmp_path: Path) -> None:
    """Two events that overlap on a slow machine: the second one waits for the first."""
    alive: list[str] = []
    most: list[int] = []

    class Decode:
        def __init__(self, name: str) -> None:
            self.name, self.looks = name, 0
            alive.append(name)
            most.append(len(alive))

        def members(self) -> list[int]:
            alive.remove(self.name)
            return []

        def healthy(self) -> bool:
            self.looks += 1
            return self.looks > 1

    names = iter("bcd")
    servers: dict[str, Any] = {"decode": Decode("a")}

    def again(name: str) -> Decode:
        servers[name] = Decode(next(names))
        return cast(Decode, servers[name])

    stack = RunningStack("", {}, servers, 0.0, cast(Any, again))
    struck = Striker(stack, cast(SeatWatch, Watch("up")), tmp_path, None)
    event = Event(0.0, "decode-restart", for_s=0.0)
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(struck.strike, event) for _ in range(2))
    assert (first.result().note, second.result().note) == ("", "")
    assert (alive, max(most)) == (["c"], 1)
    (_, until_s), (from_s, _) = sorted((a.from_s, a.until_s) for a in struck.away)
    assert until_s <= from_s
    assert struck.decode_is_there.is_set()
