"""What decode said about rooms, and how long it is remembered."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from sglang_cdsp.controller.decode import rooms as module
from sglang_cdsp.controller.decode.rooms import (
    REMEMBERED_FOR_S,
    UNCLAIMED_FOR_S,
    RoomMessage,
    Rooms,
)


class Clock:
    """Takes the place of ``time.monotonic``."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def message(rank: int, agent: str = "a", required: int = 1) -> RoomMessage:
    return RoomMessage(rank, agent, required, "host", 1, [])


def test_a_room_is_complete_when_every_rank_has_all_its_agents() -> None:
    rooms = Rooms(2)
    for said in (message(0, "a", 2), message(1, "a", 1), message(1, "b", 1)):
        assert not rooms.complete(5)
        rooms.add(5, said)
    assert not rooms.complete(5), "rank 0 lacks its second agent"
    rooms.add(5, message(0, "a", 2))
    assert not rooms.complete(5), "the same agent twice is one"
    rooms.add(5, message(0, "b", 2))
    assert rooms.complete(5)
    assert not rooms.complete(6)
    assert [(m.tp_rank, m.agent) for m in rooms.messages(5)] == [
        *((0, "a"), (1, "a")),
        *((1, "b"), (0, "b")),
    ]


def test_forgetting_a_room_drops_its_pages() -> None:
    rooms = Rooms(1)
    rooms.add(5, message(0))
    rooms.forget(5)
    assert rooms.messages(5) == []
    assert not rooms.complete(5)


def test_a_rejection_is_remembered_for_a_while(clock: Clock) -> None:
    rooms = Rooms(1)
    rooms.reject(5, "too long", HTTPStatus.BAD_REQUEST)
    clock.now_s += REMEMBERED_FOR_S - 1
    assert (rooms.rejection(5), rooms.rejection_status(5)) == ("too long", 400)
    assert (rooms.rejection(6), rooms.rejection_status(6)) == (None, 500)
    clock.now_s += 2
    assert (rooms.rejection(5), rooms.rejection_status(5)) == (None, 500)


def test_a_new_request_in_the_room_ends_the_rejection(clock: Clock) -> None:
    rooms = Rooms(1)
    rooms.reject(5, "too long")
    rooms.readmit(5)
    assert rooms.rejection(5) is None


def test_memory_does_not_grow_with_rooms_long_over(clock: Clock) -> None:
    rooms = Rooms(1)
    for room in range(100):
        rooms.reject(room, "no")
        clock.now_s += REMEMBERED_FOR_S / 10
    assert len(rooms._past) <= 11


def test_refreshed_memory_outlives_older(clock: Clock) -> None:
    rooms = Rooms(1)
    rooms.reject(1, "first")
    rooms.reject(2, "second")
    clock.now_s += REMEMBERED_FOR_S - 1
    rooms.reject(1, "again")
    clock.now_s += 2
    rooms.reject(3, "third")
    assert [rooms.rejection(room) for room in (1, 2, 3)] == ["again", None, "third"]


def test_a_room_given_up_before_its_request(clock: Clock) -> None:
    rooms = Rooms(1)
    rooms.add(5, message(0))
    rooms.give_up(5)
    assert rooms.given_up(5)
    assert rooms.messages(5) == [], "its pages are decode's again"
    clock.now_s += REMEMBERED_FOR_S + 1
    assert not rooms.given_up(5)


def test_giving_up_a_room_that_is_over_changes_nothing(clock: Clock) -> None:
    rooms = Rooms(1)
    rooms.close(5)
    rooms.reject(6, "no")
    for room in (5, 6):
        rooms.give_up(room)
        assert not rooms.given_up(room)
    assert rooms.rejection(6) == "no"


def test_closing_keeps_a_rejection(clock: Clock) -> None:
    rooms = Rooms(1)
    rooms.reject(5, "failed")
    rooms.add(5, message(0))
    rooms.close(5)
    assert (rooms.rejection(5), rooms.messages(5)) == ("failed", [])


def test_pages_without_a_request_are_dropped_in_time(clock: Clock) -> None:
    rooms = Rooms(1)
    for room in (1, 2):
        rooms.add(room, message(0))
    clock.now_s += UNCLAIMED_FOR_S + 1
    rooms.add(3, message(0))
    rooms.prune({1})
    assert [bool(rooms.messages(room)) for room in (1, 2, 3)] == [True, False, True]
