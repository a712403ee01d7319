"""What a seat's next life is told."""

from __future__ import annotations

from sglang_cdsp.controller.told import Told
from sglang_cdsp.protocol.messages import LoadOrder, PeerOrder, StatusOrder


def peer(tp_rank: int, *frames: bytes) -> PeerOrder:
    return PeerOrder(tp_rank=tp_rank, frames=list(frames))


def test_the_last_of_each_kind_in_order() -> None:
    told = Told()
    assert list(told.orders(0)) == []
    first, other, again = peer(0, b"first"), peer(1, b"other"), peer(0, b"again")
    told.peer("decode 1", first)
    told.peer("decode 1", other)
    told.peer("decode 1", again)
    told.status(StatusOrder(status="old"))
    status = StatusOrder(status="new")
    told.status(status)
    load = LoadOrder(requests=1, tokens=2)
    told.load(2, load)
    assert list(told.orders(0)) == [other, again, status]
    assert list(told.orders(2)) == [other, again, status, load]
