"""What decode's side of each transfer engine says to a prefill rank, and wants to hear from it.

Fields stand where the stock receivers of SGLang 0.5.21 put them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.nixl.conn import GUARD

from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeRank

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
    """Decode gave a room up and waits at ``host:port`` to hear that its pages are safe."""

    room: int
    tp_rank: int
    host: str | None
    port: int | None
    frames: list[bytes]


@dataclass(frozen=True)
class WireFormat:
    """One transfer engine's messages.

    Attributes:
        guard: first frame of registrations and pages, None for no such frame.
        required: where (after the guard) pages say how many agents a room has.
        pages: where registrations say how many pages decode's KV buffers have, None for nowhere.
        status_tag: first frame of a room's status, None for no such frame.
        awaits_success: decode counts no arrivals, it waits for the status of each prefill rank.
        ignored: first frames of further messages, which the pool has no use for.
    """

    guard: bytes | None
    required: int
    pages: int | None
    status_tag: bytes | None
    awaits_success: bool
    ignored: frozenset[bytes] = frozenset()

    def parse(
        self, tp_rank: int, frames: list[bytes]
    ) -> PeerMessage | RoomPages | RoomAbort | None:
        """Read a message of the stock receiver; None for kinds that the pool does not use.

        Raises:
            IndexError, ValueError: malformed.
        """
        if frames[0] == b"ABORT":
            host = frames[2].decode() if len(frames) > 2 else None
            port = int(frames[3]) if len(frames) > 3 else None
            return RoomAbort(int(frames[1]), tp_rank, host, port, frames)
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
            return PeerMessage(agent, DecodeRank(tp_rank, host, port, self._pages(fields)), frames)
        message = RoomMessage(
            tp_rank=tp_rank,
            agent=agent,
            required=int(fields[self.required]),
            host=fields[HOST].decode(),
            port=int(fields[PORT]),
            frames=frames,
        )
        return RoomPages(int(fields[ROOM]), message)

    def _pages(self, fields: list[bytes]) -> int | None:
        """Pages of decode's KV buffers; 0 and nothing at all both mean that it does not say."""
        if self.pages is None or len(fields) <= self.pages or not fields[self.pages]:
            return None
        return int(fields[self.pages]) or None

    def status(self, room: int, status: KVPoll, tp_rank: int, reason: str = "") -> list[bytes]:
        """A room's end at one prefill rank; decode answers its client with a failure's reason."""
        parts = [str(value).encode() for value in (room, int(status), tp_rank)]
        if self.status_tag is not None:
            parts.insert(0, self.status_tag)
        return [*parts, reason.encode()] if reason else parts


WIRE_FORMATS = {
    "nixl": WireFormat(
        guard=GUARD, required=6, pages=16, status_tag=b"KV_STATUS", awaits_success=False
    ),
    "mooncake": WireFormat(
        guard=None,
        required=7,
        pages=None,
        status_tag=None,
        awaits_success=True,
        ignored=frozenset({b"WATERMARK", b"STAGING_RSP"}),
    ),
}
