"""A send never blocks, whoever is there."""

from __future__ import annotations

import uuid

import zmq
from sglang.srt.managers.io_struct import FlushCacheReqInput, sock_recv, sock_send

from sglang_cdsp.controller.seats.socket import LifeSocket, Sink


def test_a_send_reaches_who_has_connected_and_waits_for_nobody() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    address = f"inproc://{uuid.uuid4()}"
    sender, receiver = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    sender.bind(address)
    life = LifeSocket(sender)
    assert not life.connected
    sock_send(life, FlushCacheReqInput())
    receiver.connect(address)
    assert sender.poll(10_000, zmq.POLLOUT)
    assert life.connected
    sock_send(life, FlushCacheReqInput(timeout_s=3.0))
    assert receiver.poll(10_000)
    assert sock_recv(receiver).timeout_s == 3.0
    assert not receiver.poll(0), "what was sent to nobody is dropped"
    receiver.close(0)
    while life.connected:
        pass
    sock_send(life, FlushCacheReqInput())
    life.close()


def test_a_sink_takes_everything() -> None:
    sock_send(Sink(), FlushCacheReqInput())
    Sink().send_pyobj(object())
