"""Links between processes: busy, killed, frozen and returning partners."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from sglang_cdsp.parallel.links.types import LinkShape
from tests.parallel.links import actions, remote
from tests.parallel.links.kinds import BETWEEN_PROCESSES, NIXL, SHARED, Kind
from tests.parallel.links.remote import Remote

SHAPE = LinkShape(lanes=1, depth=2, slot_bytes=1 << 20)
SIZE = 300_000
LONG = 5 << 20
"""More than the slots of a pair hold."""


class Pool:
    """Processes of one kind, ended with the test."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.started: list[Remote] = []

    def start(self, seat: int, incarnation: int = 0, shape: LinkShape = SHAPE) -> Remote:
        process = Remote(self.kind, seat, shape, incarnation)
        self.started.append(process)
        return process

    def pair(self, shape: LinkShape = SHAPE) -> tuple[Remote, Remote]:
        """Two linked processes with a lane open between them."""
        one, other = self.start(0, shape=shape), self.start(1, shape=shape)
        remote.link([one, other])
        for process in (one, other):
            process.call(actions.open_lane, 1, (0, 1))
        return one, other


@pytest.fixture(params=BETWEEN_PROCESSES, ids=lambda kind: kind.name)
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool(request.param)
    yield pool
    for process in pool.started:
        if process.process.is_alive():
            process.signal(signal.SIGCONT)
        process.kill()


def exchange(sender: Remote, receiver: Remote, value: int, size: int = SIZE) -> list[int]:
    """Send a message; the different bytes that came."""
    sender.begin(actions.start_send, receiver.seat, size, value)
    receiver.begin(actions.start_recv, sender.seat, size)
    for process in (sender, receiver):
        process.answer()
    for process in (sender, receiver):
        process.begin(actions.finish)
    for process in (sender, receiver):
        assert process.answer() == ""
    found: list[int] = receiver.call(actions.contents)[-1]
    return found


def test_a_block_is_all_there_when_its_arrival_is_told(pool: Pool) -> None:
    """Rule 10: red where the number of a piece is raised before its bytes are there."""
    shape = LinkShape(lanes=1, depth=1, slot_bytes=8 << 20)
    one, other = pool.pair(shape)
    other.begin(actions.read_rounds, 0, 30)
    one.begin(actions.write_rounds, 1, 0, 30)
    assert other.answer() == []
    one.answer()


def test_a_block_lands_while_its_receiver_is_busy(pool: Pool) -> None:
    """Rule 11: red where the receiver has to do something for it.

    The first block of a pair is another matter: with it UCX connects, which takes both.
    """
    one, other = pool.pair()
    assert exchange(one, other, 1) == [1]
    other.begin(actions.sleep_without_polling, 1.5)
    assert other.answer() == "asleep"
    one.call(actions.start_send, 1, SHAPE.slot_bytes, 9)
    done = one.call(actions.poll_for, 0.7)
    other.answer()
    if pool.kind.one_sided:
        assert done
        assert other.call(actions.look_at_slot, 0, 1) == [9], "the second piece on this lane"
    other.call(actions.start_recv, 0, SHAPE.slot_bytes)
    for process in (one, other):
        process.begin(actions.finish)
    for process in (one, other):
        assert process.answer() == ""
    assert other.call(actions.contents)[-1] == [9]


def test_a_killed_partner_fails_what_needs_it_and_nothing_else(pool: Pool) -> None:
    """Rule 13: red where a link is part of something that all share."""
    processes = [pool.start(seat) for seat in range(3)]
    one, victim, third = processes
    remote.link(processes)
    for process in processes:
        process.call(actions.open_lane, 1, (0, 1, 2))
    victim.begin(actions.swallow, 0, LONG)
    assert victim.answer() == "receiving"
    one.begin(actions.stream, 1, LONG)
    assert one.answer() == "streaming"
    third.call(actions.start_recv, 1, SIZE)
    victim.kill()
    if pool.kind.links == "nixl":  # it notices by itself; else the pool's supervision does
        assert "instance 1 broke" in one.answer()
    else:
        one.kill()
        one = pool.start(0, 1)
        remote.link_pair(one, third)
    third.call(remote.drop, 1)
    assert "instance 1 broke" in third.call(actions.finish)
    for process in (one, third):
        process.call(actions.open_lane if process is one and one.incarnation else reopen, 2, (0, 2))
    assert exchange(one, third, 4) == [4]


def reopen(end: remote.End, serial: int, members: tuple[int, ...]) -> None:
    actions.close_lane(end)
    actions.open_lane(end, serial, members)


def test_a_frozen_partner_is_waited_for_and_goes_on(pool: Pool) -> None:
    """What is in flight to it is bounded, what waits is shown, and nothing is lost."""
    one, other = pool.pair()
    assert exchange(one, other, 1) == [1]
    other.freeze()
    one.call(actions.start_send, 1, LONG, 6)
    assert not one.call(actions.poll_for, 0.5)
    assert one.call(actions.waiting) == [1]
    other.signal(signal.SIGCONT)
    other.call(actions.start_recv, 0, LONG)
    for process in (one, other):
        process.begin(actions.finish)
    for process in (one, other):
        assert process.answer() == ""
    assert other.call(actions.contents)[-1] == [6]


def test_a_seat_s_next_process_takes_part_and_the_former_one_is_not_heard(pool: Pool) -> None:
    """Rules 13 and 14: red where areas belong to a seat and not to one process of it.

    The former process is frozen in the middle of a stream of writes, given up, and wakes while
    its seat's next process uses the link.
    """
    one, former = pool.pair()
    assert exchange(former, one, 3) == [3]
    former.begin(actions.stream, 0, LONG)
    assert former.answer() == "streaming"
    one.call(actions.start_recv, 1, LONG)
    assert one.call(actions.finish) == ""
    former.freeze()
    one.call(actions.poll_for, 0.1)
    one.call(remote.drop, 1)
    one.call(actions.close_lane)
    following = pool.start(1, incarnation=1)
    if pool.kind is not SHARED:
        # An invitation says that the former process has ended. It wakes before that, once.
        former.signal(signal.SIGCONT)
        one.call(actions.poll_for, 0.5)
        former.kill()
    remote.link_pair(one, following)
    for process in (one, following):
        process.call(actions.open_lane, 2, (0, 1))
    if pool.kind is SHARED:
        former.signal(signal.SIGCONT)
    for value in range(20, 26):
        assert exchange(following, one, value) == [value]
        assert exchange(one, following, value) == [value]


@pytest.mark.parametrize("kind", [SHARED, NIXL], ids=lambda kind: kind.name)
def test_partners_that_come_and_go_leave_no_files_open(kind: Kind) -> None:
    pool = Pool(kind)
    one = pool.start(0)
    try:
        counts = []
        for life in range(6):
            other = pool.start(1, incarnation=life)
            remote.link([one, other])
            one.call(actions.poll_for, 0.01)
            for process in (one, other):
                process.call(actions.open_lane, life, (0, 1))
            assert exchange(one, other, life + 1) == [life + 1]
            other.kill()
            one.call(remote.drop, 1)
            one.call(actions.close_lane)
            counts.append(one.call(actions.open_files))
        assert counts[-1] <= counts[1]
        assert one.call(actions.inheritable) == []
    finally:
        for process in pool.started:
            process.kill()
