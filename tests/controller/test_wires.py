"""The ways to schedulers, life after life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
from sglang.srt.managers.io_struct import FlushCacheReqInput, sock_recv

from sglang_cdsp.controller.wires import SeatWires

LIMIT_MS = 10_000


def connect(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.PULL)
    socket.connect(endpoint)
    return socket


def test_orders_reach_the_present_life_and_no_other(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    workers: list[Any] = [None, None]
    heard: list[tuple[int, bool]] = []
    wires = SeatWires(context, workers, lambda seat, listens: heard.append((seat, listens)))
    first, second = (f"ipc://{tmp_path}/{name}" for name in ("first", "second"))
    wires.send(1, FlushCacheReqInput(timeout_s=1.0))
    assert not wires.connected(1)

    wires.open(1, first)
    life = connect(context, first)
    wires.send(1, FlushCacheReqInput(timeout_s=2.0))
    while not wires.connected(1):
        pass
    wires.listening(1, listens=True)
    wires.send(1, FlushCacheReqInput(timeout_s=3.0))
    assert life.poll(LIMIT_MS)
    assert sock_recv(life).timeout_s == 3.0, "before it listened, orders were for nobody"

    wires.listening(1, listens=False)
    wires.send(1, FlushCacheReqInput(timeout_s=4.0))
    assert not life.poll(0)
    assert not (tmp_path / "first").exists(), "a life's address goes with it"
    assert heard == [(1, True), (1, False)]

    wires.open(1, second)
    next_life = connect(context, second)
    while not wires.connected(1):
        pass
    wires.listening(1, listens=True)
    wires.send(1, FlushCacheReqInput(timeout_s=5.0))
    assert next_life.poll(LIMIT_MS)
    assert sock_recv(next_life).timeout_s == 5.0
    wires.listening(1, listens=False)
    for socket in (life, next_life):
        socket.close(0)
