"""Links among hubs of one process, for tests and for the GPU check."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_cdsp.parallel.links.lanes import Lane, LinkHub
from sglang_cdsp.parallel.links.threads import Hook, Switchboard, ThreadLinks, at_once
from sglang_cdsp.parallel.links.types import LinkShape

SMALL = LinkShape(lanes=2, depth=2, slot_bytes=4096)
"""Slots so small that the messages of tests take many pieces."""


def link_up(hubs: Sequence[LinkHub], incarnations: Sequence[int] | None = None) -> None:
    """Link every pair of ``hubs``; hub i has seat i and incarnation 0, or that of the list."""
    lives = incarnations or [0] * len(hubs)
    seats = range(len(hubs))
    pairs = [(mine, other) for mine in seats for other in seats if mine != other]
    invitations = {(mine, other): hubs[mine].invite(other) for mine, other in pairs}
    for (mine, other), invitation in invitations.items():
        hubs[other].join(mine, lives[mine], invitation)


def thread_hubs(size: int, shape: LinkShape = SMALL, hook: Hook = at_once) -> list[LinkHub]:
    """Hubs of seats 0 to ``size - 1``, linked in this process; each for a thread of its own.

    CUDA tensors pass through host memory. ``hook`` delays and reorders what the hubs see.
    """
    board = Switchboard(hook)
    hubs = [LinkHub(ThreadLinks(board, seat, 0, shape), shape) for seat in range(size)]
    link_up(hubs)
    return hubs


def thread_lanes(size: int, shape: LinkShape = SMALL, hook: Hook = at_once) -> list[Lane]:
    """One lane of such hubs, with all of them as members."""
    return [hub.open(0, 0, range(size)) for hub in thread_hubs(size, shape, hook)]
