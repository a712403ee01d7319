"""Links with a delay: everything arrives, in order, and no sooner than it should."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.links.slow import SlowLinks
from sglang_cdsp.parallel.links.threads import Switchboard, ThreadLinks
from sglang_cdsp.parallel.links.types import Arrived, Header, LinkShape

SHAPE = LinkShape(lanes=1, depth=8, slot_bytes=4)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=8))
def test_blocks_leave_in_order_and_not_before_they_are_due(delays: list[float]) -> None:
    board, now = Switchboard(), [0.0]
    waiting = iter(delays)
    sender = SlowLinks(ThreadLinks(board, 0, 1, SHAPE), lambda: next(waiting), lambda: now[0])
    receiver = ThreadLinks(board, 1, 1, SHAPE)
    to_sender, to_receiver = sender.invite(1), receiver.invite(0)
    sender.join(1, 1, to_receiver)
    receiver.join(0, 1, to_sender)
    for number in range(len(delays)):
        header = Header(number + 1, 0, 1, 0, 4, 4)
        sender.write(1, number, header, torch.full((4,), number, dtype=torch.uint8))
    seen: list[int] = []
    while len(seen) < len(delays):
        sender.poll()
        for event in receiver.poll():
            assert isinstance(event, Arrived)
            assert now[0] >= delays[event.slot]
            assert receiver.inbound(0, event.slot).tolist() == [event.slot] * 4
            seen.append(event.slot)
        now[0] += 0.5
    assert seen == list(range(len(delays)))


def test_a_partner_that_is_dropped_gets_nothing_more() -> None:
    board, now = Switchboard(), [0.0]
    sender = SlowLinks(ThreadLinks(board, 0, 1, SHAPE), lambda: 1.0, lambda: now[0])
    receiver = ThreadLinks(board, 1, 1, SHAPE)
    to_sender, to_receiver = sender.invite(1), receiver.invite(0)
    sender.join(1, 1, to_receiver)
    receiver.join(0, 1, to_sender)
    sender.write(1, 0, Header(1, 0, 1, 0, 4, 4), torch.zeros(4, dtype=torch.uint8))
    sender.drop(1)
    now[0] = 2.0
    sender.poll()
    assert receiver.poll() == []
