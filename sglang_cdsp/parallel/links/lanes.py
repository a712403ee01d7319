"""Exchanges of messages over links, on lanes that never wait for each other.

A message is cut into pieces of a slot's size. Pieces travel in order for each lane and pair of
instances; each lane has slots and credits of its own. A piece whose receive has not been posted
stays in its slot, so that blocks which come early never take the room of one that is needed first.
``serial`` numbers the uses of a lane, so that what a former use left in flight is recognised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.pieces import Inbox, Outbox, Part
from sglang_cdsp.parallel.links.traffic import Traffic
from sglang_cdsp.parallel.links.types import (
    Arrived,
    Credited,
    GiveWay,
    Links,
    LinkShape,
    Lost,
    Message,
    Sent,
)
from sglang_cdsp.parallel.links.work import Progress, Work

_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 50e-6, 1e-3


@dataclass(frozen=True)
class _Peer:
    """The process that has a seat now, and what is under way with it, lane by lane."""

    incarnation: int
    outboxes: tuple[Outbox, ...]
    inboxes: tuple[Inbox, ...]


class Lane:
    """One use of a lane by a group of instances: the exchanges of one chunk, say.

    Attributes:
        number: which lane.
        serial: which use of it, alike at all members.
        members: instances that take part, this one among them.
    """

    def __init__(
        self, hub: LinkHub, number: int, serial: int, lives: dict[int, int | None]
    ) -> None:
        """``lives``: by member other than this, the incarnation that it has now."""
        self.number, self.serial = number, serial
        self.members = tuple(sorted((*lives, hub.seat)))
        self._hub = hub
        self._lives = lives
        self._sent = dict.fromkeys(lives, 0)
        self._received = dict.fromkeys(lives, 0)
        self._running: list[Progress] = []
        self._error = ""

    @property
    def seat(self) -> int:
        """This instance."""
        return self._hub.seat

    # Tensors that were made in inference mode may be written to there alone, and whoever polls may
    # be outside of it.
    @torch.inference_mode()
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0) -> Work:
        """Start all of ``sends`` and ``recvs``; empty tensors are left out on both sides.

        As much as there is room for is in the partners' slots on return (on CUDA: as soon as it
        is computed); the rest follows at later polls. The tensors must be left alone until the
        work is done.

        Args:
            note: what both sides must say alike of these messages: layer and step, say.

        Raises:
            LinkError: the lane is closed or broken, a partner is gone, a message cannot travel.
        """
        if self._error:
            raise LinkError(self._error)
        recvs = [message for message in recvs if self._checked(message)]
        sends = [message for message in sends if self._checked(message)]
        progress = Progress(len(recvs) + len(sends))
        for message in recvs:
            self._received[message.peer] += 1
            number = self._received[message.peer]
            part = Part.of(message, self.serial, number, note, progress)
            self._hub.peer(message.peer).inboxes[self.number].post(part)
        for message in sends:
            self._sent[message.peer] += 1
            part = Part.of(message, self.serial, self._sent[message.peer], note, progress)
            self._hub.peer(message.peer).outboxes[self.number].add(part)
            self._hub.traffic.sent_bytes += message.tensor.nbytes
        self._running = [work for work in self._running if not work.over]
        self._running.append(progress)
        for peer in {message.peer for message in recvs}:
            self._hub.drain(peer, self.number)
        return Work(progress, self._hub.poll, self._hub.give_way, self._hub.traffic)

    def _checked(self, message: Message) -> bool:
        """Return whether there is anything to carry; raise if it cannot be carried."""
        tensor, peer = message.tensor, message.peer
        if peer not in self._lives:
            raise LinkError(
                f"instance {self.seat} cannot exchange with instance {peer} on lane {self.number}: "
                f"its members are {self.members}, and none links to itself"
            )
        if not tensor.is_contiguous():
            raise LinkError("only contiguous tensors travel: call .contiguous() first")
        life = self._hub.incarnation_of(peer)
        if life is None or life != self._lives[peer]:
            raise LinkError(
                f"instance {self.seat} has no link to the instance {peer} that lane {self.number} "
                "was opened with: it is gone; plan anew without it"
            )
        return tensor.numel() > 0

    def settled(self) -> bool:
        """Whether nothing that was sent on this lane is still being written."""
        return self._hub.settled(self.number)

    def fail(self, error: str, peer: int | None = None) -> None:
        """Fail what is under way; with ``peer`` only what needs it, and the lane stays open."""
        if peer is None:
            self._error = error
            for progress in self._running:
                progress.fail(error)
            return
        for box in self._hub.boxes(self.number, peer):
            for part in box.waiting:
                part.progress.fail(error)

    def close(self) -> None:
        """Leave: what is under way fails, what was not started is not sent.

        The lane may be opened again with a higher serial once all members have left it.
        """
        if self._hub.leave(self):
            self.fail(f"lane {self.number} (serial {self.serial}) was closed")
            for box in self._hub.boxes(self.number):
                box.clear()
            self._hub.drain_lane(self.number)


class LinkHub:
    """All links of one process, shared by its lanes. Used by one thread.

    Example:
        >>> lane = hub.open(0, serial=7, members=(0, 2))
        >>> work = lane.exchange([Message(out, 2)], [Message(into, 2)])
        >>> work.wait()
        >>> lane.close()
    """

    def __init__(self, links: Links, shape: LinkShape, give_way: GiveWay | None = None) -> None:
        """Take over ``links``.

        Args:
            shape: of the links.
            give_way: called while a work is waited for; whoever gives one polls this hub
                meanwhile. By default the hub polls itself, with short sleeps.
        """
        self._links, self._shape = links, shape
        self.give_way: GiveWay = give_way or self._poll_until
        self.traffic = Traffic()
        self._peers: dict[int, _Peer] = {}
        self._serials = [-1] * shape.lanes
        self._open: dict[int, Lane] = {}

    @property
    def seat(self) -> int:
        """This instance."""
        return self._links.seat

    def invite(self, seat: int) -> bytes:
        """Get ready for the next process of ``seat``; see ``Links.invite``."""
        return self._links.invite(seat)

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        """Link up with that process; an earlier one of the seat is dropped. See ``Links.join``."""
        self._links.join(seat, incarnation, invitation)
        self._forget(seat, f"incarnation {incarnation} took its place")
        lanes = range(self._shape.lanes)
        self._peers[seat] = _Peer(
            incarnation,
            tuple(Outbox(self._links, seat, lane, self._shape) for lane in lanes),
            tuple(Inbox(self._links, seat) for _ in lanes),
        )

    def drop(self, seat: int, why: str = "the instance was given up") -> None:
        """Forget a seat: works that need it fail, everything else goes on."""
        self._forget(seat, why)
        self._links.drop(seat)

    def _forget(self, seat: int, why: str) -> None:
        if seat in self._peers:
            error = (
                f"the link of instance {self.seat} to instance {seat} broke ({why}): what needs "
                "that instance fails, everything else goes on"
            )
            for lane in self._open.values():
                lane.fail(error, seat)
            del self._peers[seat]

    def open(self, lane: int, serial: int, members: Sequence[int]) -> Lane:
        """Begin a use of ``lane``. All ``members``, this instance among them, open it alike.

        Raises:
            LinkError: there is no such lane, it is open, or ``serial`` is not above its last one.
        """
        if not 0 <= lane < self._shape.lanes:
            raise LinkError(f"there is no lane {lane}: links have {self._shape.lanes}")
        if lane in self._open:
            raise LinkError(f"lane {lane} is in use by serial {self._serials[lane]}: close it")
        if serial <= self._serials[lane]:
            raise LinkError(f"lane {lane} was used by serial {self._serials[lane]}, not {serial}")
        if self.seat not in members:
            raise LinkError(f"instance {self.seat} is none of the members {tuple(members)}")
        others = [seat for seat in members if seat != self.seat]
        self._serials[lane] = serial
        opened = Lane(self, lane, serial, {seat: self.incarnation_of(seat) for seat in others})
        self._open[lane] = opened
        self.drain_lane(lane)
        return opened

    @torch.inference_mode()
    def poll(self) -> bool:
        """Move all lanes on; return whether anything happened. Never waits."""
        events = self._links.poll()
        touched: set[tuple[int, int]] = set()
        for event in events:
            peer = self._peers.get(event.seat)
            if peer is None:
                continue
            if isinstance(event, Lost):
                self.drop(event.seat, event.why)
                continue
            lane = event.slot // self._shape.depth
            if isinstance(event, Arrived):
                peer.inboxes[lane].on_arrived(event.slot, event.header)
                touched.add((event.seat, lane))
            elif isinstance(event, Credited):
                peer.outboxes[lane].on_credited(event.slot, event.number)
            elif isinstance(event, Sent):
                peer.outboxes[lane].on_sent(event.slot, event.number)
        for seat, lane in touched:
            if seat in self._peers:
                self.drain(seat, lane)
        return bool(events)

    def _poll_until(self, ready: Any) -> None:
        """The default way to wait: poll, sleep a little, poll."""
        if ready is None:
            self.poll()
            return
        pause = _SHORTEST_SLEEP_S
        while not ready():
            if self.poll():
                pause = _SHORTEST_SLEEP_S
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_SLEEP_S)

    def snapshot(self) -> dict[str, Any]:
        """What is linked and what is waited for, from whom and for how long; JSON-ready."""
        waiting = [
            {"lane": number, "for": what, **part.described()}
            for number in range(self._shape.lanes)
            for peer in self._peers.values()
            for what, parts in (
                ("receive", peer.inboxes[number].waiting),
                ("send", peer.outboxes[number].waiting),
            )
            for part in parts
        ]
        return {
            "instance": self.seat,
            "incarnation": self._links.incarnation,
            "peers": {str(seat): peer.incarnation for seat, peer in sorted(self._peers.items())},
            "open": {str(number): lane.serial for number, lane in sorted(self._open.items())},
            "waiting": waiting,
        }

    def close(self) -> None:
        """Close all lanes and drop all instances."""
        for lane in list(self._open.values()):
            lane.close()
        self._peers.clear()
        self._links.close()

    # What lanes need.

    def peer(self, seat: int) -> _Peer:
        return self._peers[seat]

    def incarnation_of(self, seat: int) -> int | None:
        """Which process has the seat now; None while none is linked."""
        peer = self._peers.get(seat)
        return None if peer is None else peer.incarnation

    def boxes(self, lane: int, seat: int | None = None) -> list[Inbox | Outbox]:
        """Everything under way on a lane, with one instance or with all."""
        peers = [peer for at, peer in self._peers.items() if seat in (None, at)]
        return [box for peer in peers for box in (peer.inboxes[lane], peer.outboxes[lane])]

    def settled(self, lane: int) -> bool:
        return all(peer.outboxes[lane].settled for peer in self._peers.values())

    def leave(self, lane: Lane) -> bool:
        """Take a lane out of use; return whether it was in use."""
        if self._open.get(lane.number) is not lane:
            return False
        del self._open[lane.number]
        return True

    def drain_lane(self, lane: int) -> None:
        for seat in list(self._peers):
            self.drain(seat, lane)

    def drain(self, seat: int, lane: int) -> None:
        """Take in what has come from an instance on a lane and is expected."""
        lowest = self._serials[lane] + (lane not in self._open)  # below it, pieces are stale
        wrong = self._peers[seat].inboxes[lane].drain(lambda serial: serial < lowest)
        if wrong:
            self._open[lane].fail(
                f"lane {lane} (serial {self._serials[lane]}) of instance {self.seat}: {wrong}; "
                "all members must post the same messages of a pair in the same order"
            )
