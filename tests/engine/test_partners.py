"""Instances that come and go, as one rank hears of them."""

from __future__ import annotations

import pytest

from sglang_cdsp.protocol.messages import Invitation, InviteOrder, LeaveOrder, LinkOrder
from tests.engine.fake_rank import Rank


def link(seat: int, incarnation: int, tp_rank: int = 0) -> LinkOrder:
    return LinkOrder(tp_rank=tp_rank, seat=seat, incarnation=incarnation, invitation=b"there")


def test_the_same_rank_of_another_instance_is_joined() -> None:
    rank = Rank(tp_rank=1)
    rank.engine.links.on_link(link(2, 5, tp_rank=0))
    rank.engine.links.on_link(link(2, 5, tp_rank=1))
    assert rank.joined == [(2, 5, b"there")]


def test_a_link_that_cannot_be_made_does_not_end_the_scheduler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other one may have ended since it said how it is reached."""
    rank = Rank()
    rank.no_room = "cannot open /proc/7/fd/8"
    rank.engine.links.on_link(link(2, 5))
    assert rank.joined == []
    assert "no link to instance 2: cannot open /proc/7/fd/8" in caplog.text


def test_only_the_life_that_is_given_up_is_dropped() -> None:
    rank = Rank()
    rank.engine.links.on_link(link(2, 5))
    rank.engine.links.on_leave(LeaveOrder(seat=2, incarnation=4))
    rank.engine.links.on_leave(LeaveOrder(seat=1, incarnation=5))
    assert rank.dropped == []
    rank.engine.links.on_leave(LeaveOrder(seat=2, incarnation=5))
    rank.engine.links.on_leave(LeaveOrder(seat=2, incarnation=5))
    assert rank.dropped == [2]


def test_a_next_life_is_invited_by_every_rank() -> None:
    rank = Rank(tp_rank=1)
    rank.engine.links.on_invite(InviteOrder(seat=2, incarnation=6))
    invited = {"seat": 2, "life": 6, "invitation": b"for 2", "error": ""}
    assert rank.last(Invitation) == invited
    rank.no_room = "no address space"
    rank.engine.links.on_invite(InviteOrder(seat=2, incarnation=7))
    refused = {"seat": 2, "life": 7, "invitation": b"", "error": "no address space"}
    assert rank.last(Invitation) == refused
