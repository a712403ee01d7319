"""Invitations lead to the process that they name, and to nobody else, over every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.threads import Switchboard, ThreadLinks
from sglang_cdsp.parallel.links.types import Links, LinkShape
from tests.parallel.links.kinds import NIXL, SHARED, Kind

SHAPE = LinkShape(lanes=1, depth=1, slot_bytes=64)
Make = Callable[[int, int], Links]


@pytest.fixture(params=[None, SHARED, NIXL], ids=lambda kind: kind.name if kind else "threads")
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes the links of a seat's life; they are closed with the test."""
    kind: Kind | None = request.param
    board, made = Switchboard(), list[Links]()

    def links_of(seat: int, incarnation: int) -> Links:
        if kind is None:
            made.append(ThreadLinks(board, seat, incarnation, SHAPE))
        else:
            made.append(kind.make(seat, incarnation, SHAPE))
        return made[-1]

    yield links_of
    for links in made:
        links.close()


def test_a_process_is_its_seat_and_its_life(make: Make) -> None:
    links = make(3, 2)
    assert (links.seat, links.incarnation) == (3, 2)


def test_whoever_joins_has_invited_before(make: Make) -> None:
    one, other = make(0, 0), make(1, 0)
    with pytest.raises(LinkError, match="instance 0 has no area for instance 1: invite first"):
        one.join(1, 0, other.invite(0))


@pytest.mark.parametrize(
    ("seat", "incarnation", "sender", "words"),
    [
        (1, 0, 0, "an invitation of 1.4 to 0 as one of 1.0"),
        (2, 4, 0, "an invitation of 1.4 to 0 as one of 2.4"),
        (1, 4, 2, "an invitation of 1.4 to 2 as one of 1.4"),
    ],
    ids=["another life", "another seat", "for another"],
)
def test_anothers_invitation_is_refused_and_the_own_one_still_leads_there(
    seat: int, incarnation: int, sender: int, words: str, make: Make
) -> None:
    one, other = make(0, 0), make(1, 4)
    for invited in (1, 2):
        one.invite(invited)
    invitation = other.invite(sender)
    with pytest.raises(LinkError, match=f"instance 0 cannot use {words}"):
        one.join(seat, incarnation, invitation)
    one.join(1, 4, other.invite(0))
    assert one.inbound(1, 0).shape == (SHAPE.slot_bytes,)


def test_without_a_partner_nothing_goes_and_nothing_is_there(make: Make) -> None:
    one, other = make(0, 0), make(1, 0)
    one.invite(1)
    one.join(1, 0, other.invite(0))
    one.drop(1)
    with pytest.raises(LinkError, match="instance 0 has no link to instance 1: join it first"):
        one.inbound(1, 0)
    with pytest.raises(LinkError, match="has no link to instance 1"):
        one.credit(1, 0, 1)
    assert one.poll() == []
