"""What lanes promise, over every implementation, all ends in this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.types import Arrived, Credited, Event, LinkShape, Message
from sglang_cdsp.parallel.links.work import Work
from tests.parallel.links.kinds import NIXL, SHARED, drive, hubs_of

SHAPE = LinkShape(lanes=2, depth=2, slot_bytes=64)
KINDS = [None, SHARED, NIXL]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name if kind else "threads")
def hubs(request: pytest.FixtureRequest) -> Iterator[list[LinkHub]]:
    hubs = hubs_of(request.param, 3, SHAPE)
    yield hubs
    for hub in hubs:
        hub.close()


def some(size: int, value: int) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.uint8)


def settle(hubs: Sequence[LinkHub]) -> None:
    """Poll until nothing has happened for a while."""
    quiet = 0
    while quiet < 50:
        quiet = 0 if sum(hub.poll() for hub in hubs) else quiet + 1


def test_a_lane_whose_blocks_nobody_takes_stops_no_other(hubs: list[LinkHub]) -> None:
    """Rule 12: red where lanes share slots, or where early blocks may take later ones' room."""
    stuck, free = ([hub.open(lane, 1, (0, 1)) for hub in hubs[:2]] for lane in range(2))
    early = stuck[0].exchange([Message(some(1000, 1), 1), Message(some(1000, 2), 1)], [])
    into = some(500, 0)
    works = [
        free[0].exchange([Message(some(500, 3), 1)], []),
        free[1].exchange([], [Message(into, 0)]),
    ]
    drive(hubs, lambda: all(work.done() for work in works))
    assert torch.equal(into, some(500, 3))
    assert not early.done()
    late = [some(1000, 0), some(1000, 0)]
    taken = stuck[1].exchange([], [Message(tensor, 0) for tensor in late])
    drive(hubs, lambda: taken.done() and early.done())
    assert torch.equal(late[0], some(1000, 1))
    assert torch.equal(late[1], some(1000, 2))


def test_what_is_sent_and_how_long_it_is_waited_for_is_counted(hubs: list[LinkHub]) -> None:
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs[:2]]
    lanes[0].exchange([Message(some(100, 9), 1), Message(some(50, 9), 1)], [])
    into = [some(100, 0), some(50, 0)]
    work = lanes[1].exchange([], [Message(tensor, 0) for tensor in into])
    drive(hubs, work.done)
    work.wait()
    assert hubs[0].traffic.sent_bytes == 150
    assert hubs[1].traffic.sent_bytes == 0
    assert hubs[1].traffic.waited_s > 0
    assert hubs[0].traffic.taken().sent_bytes == 150
    assert hubs[0].traffic.sent_bytes == 0


def test_a_wait_that_is_stopped_counts() -> None:
    left, right = hubs_of(None, 2, SHAPE)
    lanes = [hub.open(0, 1, (0, 1)) for hub in (left, right)]

    def stopped(ready: object) -> None:
        raise RuntimeError("stopped")

    work = lanes[1].exchange([], [Message(some(10, 0), 0)])
    waits = Work(work._progress, right.poll, stopped, right.traffic)
    with pytest.raises(RuntimeError, match="stopped"):
        waits.wait()
    assert right.traffic.waited_s > 0


def test_ranks_can_agree_on_a_failure_before_the_wait_is_over() -> None:
    """Red where a rank hears of it by itself, when the others have gone on to a collective."""
    left, right = hubs_of(None, 2, SHAPE)
    lanes = [hub.open(0, 1, (0, 1)) for hub in (left, right)]
    work = lanes[1].exchange([], [Message(some(10, 0), 0)])
    right.drop(0)
    asked = 0

    def agree(ready: Callable[[], bool] | None) -> None:
        nonlocal asked
        asked += 1
        assert ready is not None
        with pytest.raises(LinkError, match="given up"):
            ready()

    waits = Work(work._progress, right.poll, agree, right.traffic)
    with pytest.raises(LinkError, match="given up"):
        waits.wait()
    assert asked == 1


def test_a_block_lies_at_its_receiver_when_exchange_returns() -> None:
    """Rule 11, where memory is shared: nothing but the sender's call is needed."""
    left, right = hubs_of(SHARED, 2, SHAPE)
    lanes = [hub.open(0, 1, (0, 1)) for hub in (left, right)]
    lanes[0].exchange([Message(some(100, 9), 1)], [])
    into = some(100, 0)
    drive([right], lanes[1].exchange([], [Message(into, 0)]).done)
    assert torch.equal(into, some(100, 9))


@pytest.mark.parametrize(
    ("send", "recv", "words"),
    [
        ((10, 4, 0), (10, 5, 0), "tag 4.*tag 5"),
        ((10, 4, 0), (11, 4, 0), "bytes 10.*bytes 11"),
        ((10, 4, 7), (10, 4, 8), "note 7.*note 8"),
    ],
)
def test_ends_that_disagree_are_told_what_both_say(
    hubs: list[LinkHub], send: tuple[int, int, int], recv: tuple[int, int, int], words: str
) -> None:
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs[:2]]
    lanes[0].exchange([Message(some(send[0], 1), 1, send[1])], [], send[2])
    into = some(recv[0], 0)
    work = lanes[1].exchange([], [Message(into, 0, recv[1])], recv[2])
    drive(hubs, work.done)
    with pytest.raises(LinkError, match=words):
        work.wait()
    assert not into.any()
    with pytest.raises(LinkError, match="same order"):
        lanes[1].exchange([], [])


def test_what_a_former_use_left_behind_is_given_back_unread(hubs: list[LinkHub]) -> None:
    """Red where a lane's blocks are told apart by their order alone."""
    old = [hub.open(0, 3, (0, 1)) for hub in hubs[:2]]
    old[0].exchange([Message(some(1000, 1), 1)], [])
    old[1].exchange([], [Message(some(20, 2), 0)])  # waits for what never comes
    settle(hubs)
    for lane in old:
        lane.close()
    new = [hub.open(0, 4, (0, 1)) for hub in hubs[:2]]
    into = some(1000, 0)
    works = [
        new[0].exchange([Message(some(1000, 5), 1)], []),
        new[1].exchange([], [Message(into, 0)]),
    ]
    drive(hubs, lambda: all(work.done() for work in works))
    assert torch.equal(into, some(1000, 5))


def held_back(kind: type) -> tuple[list[bool], Callable[..., tuple[list[Event], list[Event]]]]:
    """A hook that holds events of one kind back while the switch says so."""
    switch = [True]

    def hook(seat: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        kept = [event for event in events if switch[0] and isinstance(event, kind)]
        return [event for event in events if event not in kept], kept

    return switch, hook


def test_a_late_piece_of_an_earlier_use_is_ignored() -> None:
    """It reaches its receiver only after the lane was opened anew."""
    switch, hook = held_back(Arrived)
    hubs = hubs_of(None, 2, SHAPE, hook)
    old = [hub.open(0, 3, (0, 1)) for hub in hubs]
    old[0].exchange([Message(some(60, 1), 1)], [])
    settle(hubs)
    for lane in old:
        lane.close()
    new = [hub.open(0, 4, (0, 1)) for hub in hubs]
    into = some(60, 0)
    work = new[1].exchange([], [Message(into, 0)])
    switch[0] = False
    settle(hubs)
    assert not work.done()
    assert not into.any()
    new[0].exchange([Message(some(60, 5), 1)], [])
    drive(hubs, work.done)
    assert torch.equal(into, some(60, 5))


def test_a_slot_is_written_again_only_after_its_credit() -> None:
    """Rule 12: red without credits, the third piece would overwrite the first."""
    switch, hook = held_back(Credited)
    hubs = hubs_of(None, 2, SHAPE, hook)
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs]
    into = some(64 * 5, 0)
    works = [
        lanes[0].exchange([Message(some(64 * 5, 1), 1)], []),
        lanes[1].exchange([], [Message(into, 0)]),
    ]
    settle(hubs)
    assert int(into.sum()) == 2 * 64, "depth 2, and no credit has come"
    switch[0] = False
    drive(hubs, lambda: all(work.done() for work in works))
    assert int(into.sum()) == 5 * 64


def test_a_lane_opened_late_finds_what_came_early(hubs: list[LinkHub]) -> None:
    sender = hubs[0].open(1, 8, (0, 2))
    sent = sender.exchange([Message(some(100, 4), 2)], [])
    settle(hubs)
    lane = hubs[2].open(1, 8, (0, 2))
    into = some(100, 0)
    work = lane.exchange([], [Message(into, 0)])
    drive(hubs, lambda: work.done() and sent.done())
    assert torch.equal(into, some(100, 4))


def test_a_dropped_seat_fails_what_needs_it_and_nothing_else(hubs: list[LinkHub]) -> None:
    """Rule 13: links are pair by pair."""
    lanes = [hub.open(0, 1, (0, 1, 2)) for hub in hubs]
    kept, other = some(200, 0), some(200, 0)
    needs_1 = lanes[0].exchange([], [Message(other, 1)])
    needs_2 = lanes[0].exchange([], [Message(kept, 2)])
    hubs[0].drop(1, "it was killed")
    assert needs_1.done()
    with pytest.raises(LinkError, match=r"instance 1 broke \(it was killed"):
        needs_1.wait()
    lanes[2].exchange([Message(some(200, 6), 0)], [])
    drive(hubs, needs_2.done)
    needs_2.wait()
    assert torch.equal(kept, some(200, 6))
    with pytest.raises(LinkError, match="it is gone"):
        lanes[0].exchange([Message(some(1, 1), 1)], [])


def test_closing_fails_what_is_under_way(hubs: list[LinkHub]) -> None:
    lane = hubs[0].open(0, 1, (0, 1))
    work = lane.exchange([], [Message(some(10, 0), 1)])
    lane.close()
    with pytest.raises(LinkError, match=r"serial 1\) was closed"):
        work.wait()
    with pytest.raises(LinkError, match="was closed"):
        lane.exchange([], [])
    lane.close()  # twice is once
    again = hubs[0].open(0, 2, (0, 1)).exchange([], [Message(some(10, 0), 1)])
    hubs[0].close()
    with pytest.raises(LinkError, match=r"serial 2\) was closed"):
        again.wait()


def test_empty_messages_need_no_partner(hubs: list[LinkHub]) -> None:
    lane = hubs[0].open(0, 1, (0, 1))
    lane.exchange([Message(torch.empty(0), 1)], [Message(torch.empty(3, 0), 1)]).wait()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_tensors_of_any_dtype_and_shape_travel(hubs: list[LinkHub], dtype: torch.dtype) -> None:
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs[:2]]
    out = torch.randint(0, 2, (3, 5, 7)).to(dtype)
    into = torch.zeros_like(out)
    one = torch.zeros((), dtype=dtype)
    lanes[0].exchange([Message(out, 1), Message(out[1, 2, 3], 1)], [])
    work = lanes[1].exchange([], [Message(into, 0), Message(one, 0)])
    drive(hubs, work.done)
    assert torch.equal(into, out)
    assert torch.equal(one, out[1, 2, 3])


def test_tensors_of_inference_mode_travel_whoever_polls(hubs: list[LinkHub]) -> None:
    """SGLang's forwards run in inference mode, a test or another loop may poll outside of it."""
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs[:2]]
    with torch.inference_mode():
        out, into = some(1000, 7), some(1000, 0)
        lanes[0].exchange([Message(out, 1)], [])
        work = lanes[1].exchange([], [Message(into, 0)])
    drive(hubs, work.done)
    assert torch.equal(into, some(1000, 7))


def test_misuse_is_refused(hubs: list[LinkHub]) -> None:
    hub = hubs[0]
    lane = hub.open(0, 5, (0, 1))
    with pytest.raises(LinkError, match="contiguous"):
        lane.exchange([Message(torch.zeros(8)[::2], 1)], [])
    with pytest.raises(LinkError, match="none links to itself"):
        lane.exchange([Message(torch.zeros(1), 0)], [])
    with pytest.raises(LinkError, match=r"members are \(0, 1\)"):
        lane.exchange([], [Message(torch.zeros(1), 2)])
    with pytest.raises(LinkError, match="no lane 2"):
        hub.open(2, 1, (0, 1))
    with pytest.raises(LinkError, match="in use by serial 5"):
        hub.open(0, 6, (0, 1))
    lane.close()
    with pytest.raises(LinkError, match="used by serial 5"):
        hub.open(0, 5, (0, 1))
    with pytest.raises(LinkError, match="none of the members"):
        hub.open(0, 6, (1, 2))
    with pytest.raises(LinkError, match="at least 1"):
        LinkShape(1, 0, 64)
    with pytest.raises(LinkError, match="invite first"):
        hub.join(2, 1, hubs[2].invite(0))
    hub.invite(1)
    hub.invite(2)
    with pytest.raises(LinkError, match="invitation"):
        hub.join(1, 0, hubs[2].invite(0))


def test_a_message_that_cannot_travel_leaves_none_behind(hubs: list[LinkHub]) -> None:
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs[:2]]
    with pytest.raises(LinkError, match="contiguous"):
        lanes[0].exchange([Message(some(4, 1), 1), Message(some(8, 1)[::2], 1)], [])
    lanes[0].exchange([Message(some(4, 2), 1)], [])
    into = some(4, 0)
    work = lanes[1].exchange([], [Message(into, 0)])
    drive(hubs, work.done)
    work.wait()
    assert torch.equal(into, some(4, 2))


def test_what_is_waited_for_is_shown(hubs: list[LinkHub]) -> None:
    lanes = [hub.open(1, 7, (0, 1)) for hub in hubs[:2]]
    lanes[0].exchange([Message(some(1000, 1), 1, 2)], [Message(some(50, 0), 1, 3)], 11)
    settle(hubs)
    shown = json.loads(json.dumps(hubs[0].snapshot()))
    assert (shown["instance"], shown["peers"], shown["open"]) == (0, {"1": 0, "2": 0}, {"1": 7})
    for entry in shown["waiting"]:
        assert entry.pop("seconds") >= 0
    common = {"lane": 1, "instance": 1, "serial": 7, "note": 11}
    assert shown["waiting"] == [
        {"for": "receive", "tag": 3, "bytes": 50, "bytes_done": 0, **common},
        {"for": "send", "tag": 2, "bytes": 1000, "bytes_done": 128, **common},
    ]


def test_who_waits_sleeps_between_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 9: red where a waiting instance spins beside its neighbour."""
    slept: list[float] = []
    me, really_sleep = threading.get_ident(), time.sleep

    def sleep(seconds: float) -> None:
        if threading.get_ident() != me:  # what another test's thread does
            really_sleep(seconds)
            return
        slept.append(seconds)
        if len(slept) == 8:
            lanes[1].exchange([Message(some(10, 8), 0)], [])

    monkeypatch.setattr(time, "sleep", sleep)
    hubs = hubs_of(None, 2, SHAPE)
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs]
    lanes[0].exchange([], [Message(some(10, 0), 1)]).wait()
    assert len(slept) == 8
    assert slept == sorted(slept)
    assert (slept[0], slept[-1]) == (50e-6, 1e-3)


def test_waiting_gives_way_with_what_it_waits_for() -> None:
    """The loop that waits for it polls; here it lets the partner do its part, too."""
    asked = []

    def give_way(ready: Callable[[], bool] | None) -> None:
        asked.append(ready)
        for hub in hubs:
            hub.poll()
        if len(asked) == 3:
            lanes[1].exchange([Message(some(10, 8), 0)], [])

    hubs = hubs_of(None, 2, SHAPE)
    hubs[0].give_way = give_way
    lanes = [hub.open(0, 1, (0, 1)) for hub in hubs]
    into = some(10, 0)
    work = lanes[0].exchange([], [Message(into, 1)])
    work.wait()
    assert torch.equal(into, some(10, 8))
    assert asked[0] is not None
    assert asked[0]()
    assert len(asked) >= 3
