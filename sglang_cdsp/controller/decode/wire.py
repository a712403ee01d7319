"""What decode's side of each transfer engine says to a prefill rank, and wants to hear from it.

Fields stand where the stock receivers of all tested SGLang releases put them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from http import HTTPStatus

from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.common.utils import unpack_int_lists
from sglang.srt.disaggregation.nixl.conn import GUARD

from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeRank
from sglang_cdsp.controller.request import AbortTarget
from sglang_cdsp.releases import aborts_have_generations, nixl_writes_notify

# After the guard, if there is one; the same for all engines.
ROOM, HOST, PORT, AGENT = 0, 1, 2, 3


@dataclass(frozen=True)
class PeerMessage:
    """A decode agent registered with a prefill rank (``frames`` say so)."""

    agent: str
    rank: DecodeRank
    frames: list[bytes]


@dataclass(frozen=True)
class RoomPages:
    """Decode named a room's destination pages."""

    room: int
    message: RoomMessage


@dataclass(frozen=True)
class RoomAbort:
    """Decode gave a room up.

    Attributes:
        target: who waits to hear that the room's pages are safe, None if nobody does.
        frames: the message as it came.
    """

    room: int
    target: AbortTarget | None
    frames: list[bytes]


@dataclass(frozen=True)
class WireFormat:
    """One transfer engine's messages.

    Attributes:
        guard: first frame of registrations and pages, None for no such frame.
        required: where (after the guard) pages say how many agents a room has.
        pages: where registrations say how many pages decode's KV buffers have, None for nowhere.
        state: where registrations name the buffers of what decode keeps beside KV pages.
        status_tag: first frame of a room's status, None for no such frame.
        awaits_success: decode counts no arrivals, it waits for the status of each prefill rank.
        generations: decode numbers its aborts; one without a number awaits no acknowledgement.
        ignored: first frames of further messages, which the pool has no use for.
    """

    guard: bytes | None
    required: int
    pages: int | None
    state: int
    status_tag: bytes | None
    awaits_success: bool
    generations: bool
    ignored: frozenset[bytes] = frozenset()

    def parse(
        self, tp_rank: int, frames: list[bytes]
    ) -> PeerMessage | RoomPages | RoomAbort | None:
        """Read a message of the stock receiver; None for kinds that the pool does not use.

        Raises:
            IndexError, ValueError: malformed.
        """
        if frames[0] == b"ABORT":
            return RoomAbort(int(frames[1]), self._abort_target(tp_rank, frames), frames)
        if frames[0] in self.ignored:
            return None
        fields = frames
        if self.guard is not None:
            if frames[0] != self.guard:
                return None
            fields = frames[1:]
        agent = fields[AGENT].decode()
        if fields[ROOM] == b"None":
            host, port = fields[HOST].decode(), int(fields[PORT])
            more = self._keeps_more(fields)
            rank = DecodeRank(tp_rank, host, port, self._pages(fields), agent, more)
            return PeerMessage(agent, rank, frames)
        message = RoomMessage(
            tp_rank=tp_rank,
            agent=agent,
            required=int(fields[self.required]),
            host=fields[HOST].decode(),
            port=int(fields[PORT]),
            frames=frames,
        )
        return RoomPages(int(fields[ROOM]), message)

    def _abort_target(self, tp_rank: int, frames: list[bytes]) -> AbortTarget | None:
        """Who waits for an abort's acknowledgement: frames 2 to 4 are host, port and generation."""
        if len(frames) < (5 if self.generations else 4):
            return None
        generation = int(frames[4]) if self.generations else None
        return AbortTarget(tp_rank, frames[2].decode(), int(frames[3]), generation)

    def _pages(self, fields: list[bytes]) -> int | None:
        """Pages of decode's KV buffers; 0 and nothing at all both mean that it does not say."""
        if self.pages is None or len(fields) <= self.pages or not fields[self.pages]:
            return None
        return int(fields[self.pages]) or None

    def _keeps_more(self, fields: list[bytes]) -> bool:
        """Whether decode has buffers beside those of KV pages: a list of addresses a kind."""
        try:
            return len(fields) > self.state and any(unpack_int_lists(fields[self.state], "Q"))
        except struct.error as error:
            raise ValueError(f"no lists of addresses: {error}") from error

    def status(self, room: int, status: KVPoll, tp_rank: int) -> list[bytes]:
        """A room's end at one prefill rank."""
        parts = [str(value).encode() for value in (room, int(status), tp_rank)]
        if self.status_tag is not None:
            parts.insert(0, self.status_tag)
        return parts

    def failure(self, room: int, tp_rank: int, reason: str, status: HTTPStatus) -> list[bytes]:
        """A room's failure at one prefill rank.

        Decode answers its client with the reason, and with the status if it has patch 0014; stock
        decode does not look at that frame.
        """
        parts = self.status(room, KVPoll.Failed, tp_rank)
        return [*parts, reason.encode(), str(int(status)).encode()]


def acknowledgement(room: int, target: AbortTarget) -> list[bytes]:
    """The frames that tell ``target`` that nobody writes to the room's pages any more."""
    numbers = [room, target.tp_rank]
    if target.generation is not None:
        numbers.append(target.generation)
    return [b"ABORT_ACK", *(str(number).encode() for number in numbers)]


def wire_formats(*, writes_notify: bool, generations: bool) -> dict[str, WireFormat]:
    """Every transfer engine's messages, by its name in ``transfer.registry``.

    Args:
        writes_notify: NIXL writes carry notifications, see ``releases.nixl_writes_notify``.
        generations: see ``releases.aborts_have_generations``.
    """
    return {
        "nixl": WireFormat(
            guard=GUARD,
            required=6,
            pages=16,
            state=7,
            status_tag=b"KV_STATUS",
            awaits_success=not writes_notify,
            generations=generations,
        ),
        "mooncake": WireFormat(
            guard=None,
            required=7,
            pages=None,
            state=6,
            status_tag=None,
            awaits_success=True,
            generations=generations,
            ignored=frozenset({b"WATERMARK", b"STAGING_RSP"}),
        ),
    }


def wire_format(engine: str) -> WireFormat:
    """A transfer engine's messages in the installed SGLang.

    Raises:
        KeyError: no such engine.
    """
    formats = wire_formats(
        writes_notify=nixl_writes_notify(), generations=aborts_have_generations()
    )
    return formats[engine]
