"""The controller's orders about links to other instances, whose lives come and go."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.protocol.messages import Invitation, InviteOrder, LeaveOrder, LinkOrder

if TYPE_CHECKING:
    from sglang_cdsp.parallel.links.lanes import LinkHub

logger = logging.getLogger(__name__)


class LinkOrders:
    """Keeps one rank's links as the controller orders."""

    def __init__(self, hub: LinkHub, reporter: Reporter) -> None:
        """``hub`` has the links; ``reporter`` is the way to the controller."""
        self._hub = hub
        self._reporter = reporter

    def on_link(self, order: LinkOrder) -> None:
        """Another instance can be reached. If it has ended meanwhile, the next chunk will tell."""
        if order.tp_rank == self._reporter.tp_rank:
            try:
                self._hub.join(order.seat, order.incarnation, order.invitation)
            except LinkError as error:
                logger.error("no link to instance %d: %s", order.seat, error)

    def on_leave(self, order: LeaveOrder) -> None:
        """A life of another instance is given up: what needs it fails, the rest goes on.

        Its memory here stays as it is until its end is known, see ``on_invite``.
        """
        if self._hub.incarnation_of(order.seat) == order.incarnation:
            self._hub.drop(order.seat, f"its life {order.incarnation} was given up")

    def on_invite(self, order: InviteOrder) -> None:
        """All processes of another instance's former life have ended; its next life may link up."""
        words, error = b"", ""
        try:
            words = self._hub.invite(order.seat)
        except LinkError as failure:
            error = str(failure)
        self._reporter.send(
            Invitation, seat=order.seat, life=order.incarnation, invitation=words, error=error
        )
